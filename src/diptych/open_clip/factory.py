"""open_clip's module ``factory``: models, tokenizers, transforms and losses from names.

Signatures are open_clip 3.3.0's, positional order included. What an argument asks for and is not here is one line; nothing is
accepted and ignored. Two things differ on purpose: weights decide about their activation and preprocessing where they certainly
say them, and files are never unpickled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych import log
from diptych.open_clip._absent import refuse
from diptych.open_clip._checkpoints import load_checkpoint, load_state_dict
from diptych.open_clip._creation import (
    agree_on_activation,
    build,
    cast_and_move,
    finish,
    load_towers,
    plan_for,
    read_weights,
)
from diptych.open_clip._errors import ModelError
from diptych.open_clip._registry import (
    HF_HUB_PREFIX,
    LOCAL_DIR_PREFIX,
    add_model_config,
    config_file,
    get_model_config,
    list_models,
    parse_model_name,
)
from diptych.open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from diptych.open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SigLipTokenizer, SimpleTokenizer
from diptych.open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2, merge_preprocess_dict


def create_model(
    model_name: str,
    pretrained: str | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    jit: bool = False,
    force_quick_gelu: bool = False,
    force_custom_text: bool = False,
    force_patch_dropout: float | None = None,
    force_image_size: int | tuple[int, int] | None = None,
    force_preprocess_cfg: dict[str, Any] | None = None,
    force_context_length: int | None = None,
    pretrained_image: bool = False,
    pretrained_text: bool = True,
    pretrained_image_path: str | None = None,
    pretrained_text_path: str | None = None,
    cache_dir: str | None = None,
    output_dict: bool | None = None,
    require_pretrained: bool = False,
    weights_only: bool = True,
    **model_kwargs: Any,
) -> nn.Module:
    """A model in training mode, as open_clip gives it.

    ``model_name`` is an architecture, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``; ``pretrained`` a tag or a path of weights
    in any format that Diptych reads. ``precision`` "fp16" and "bf16" cast products only, "pure_fp16" and "pure_bf16"
    everything, "amp" and its kin nothing. ``pretrained_text`` and ``weights_only`` change nothing here: no text tower of
    transformers exists, and no file is unpickled. ``model_kwargs`` go to the model's constructor. Raises ModelError (a
    RuntimeError) and other DiptychErrors, one line each.
    """
    del pretrained_text, weights_only
    model_kwargs.pop("pretrained_hf", None)  # the older name of pretrained_text
    if jit:
        log.warn(
            "jit=True: these models are not scripted; the plain one is given. open_clip.trace_model(model) traces it."
        )
    if pretrained_image:
        refuse("TimmModel")
    plan = plan_for(model_name, pretrained, load_weights, cache_dir)
    vision, text = plan.model_cfg["vision_cfg"], plan.model_cfg["text_cfg"]
    if force_quick_gelu:
        plan.model_cfg["quick_gelu"] = True
    if force_patch_dropout is not None:
        vision["patch_dropout"] = force_patch_dropout
    if force_image_size is not None:
        vision["image_size"] = force_image_size
    if force_context_length is not None:
        text["context_length"] = force_context_length
    state = read_weights(plan)
    if "quick_gelu" not in model_kwargs:
        agree_on_activation(plan, state, force_quick_gelu)
    if state is None and require_pretrained:
        raise ModelError(
            f"{model_name}: pretrained weights are required, and none were given; say pretrained=TAG or a path."
        )
    model = build(plan, state, precision, force_custom_text, model_kwargs)
    load_towers(model, pretrained_image_path, pretrained_text_path)
    if state is None and not (pretrained_image_path or pretrained_text_path):
        log.warn(f"{model_name}: no weights were loaded; they are random.")
    cast_and_move(model, precision, device)
    if output_dict:
        model.output_dict = True  # type: ignore[assignment]
    finish(plan, model, force_preprocess_cfg)
    return model


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    jit: bool = False,
    force_quick_gelu: bool = False,
    force_custom_text: bool = False,
    force_patch_dropout: float | None = None,
    force_image_size: int | tuple[int, int] | None = None,
    force_context_length: int | None = None,
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    aug_cfg: dict[str, Any] | AugmentationCfg | None = None,
    pretrained_image: bool = False,
    pretrained_text: bool = True,
    pretrained_image_path: str | None = None,
    pretrained_text_path: str | None = None,
    cache_dir: str | None = None,
    output_dict: bool | None = None,
    weights_only: bool = True,
    **model_kwargs: Any,
) -> tuple[nn.Module, Any, Any]:
    """A model, its training transform and its evaluation transform (PIL image -> normalized [3, H, W]).

    ``image_*`` replace what the weights say of their images; ``aug_cfg`` is of the training transform. See ``create_model``.
    """
    overrides = _preprocess_overrides(image_mean, image_std, image_interpolation, image_resize_mode)
    model: Any = create_model(
        model_name, pretrained, load_weights=load_weights, precision=precision, device=device, jit=jit,
        force_quick_gelu=force_quick_gelu, force_custom_text=force_custom_text, force_patch_dropout=force_patch_dropout,
        force_image_size=force_image_size, force_preprocess_cfg=overrides, force_context_length=force_context_length,
        pretrained_image=pretrained_image, pretrained_text=pretrained_text, pretrained_image_path=pretrained_image_path,
        pretrained_text_path=pretrained_text_path, cache_dir=cache_dir, output_dict=output_dict, weights_only=weights_only,
        **model_kwargs,
    )  # fmt: skip
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    return model, image_transform_v2(cfg, is_train=True, aug_cfg=aug_cfg), image_transform_v2(cfg, is_train=False)


def create_model_from_pretrained(
    model_name: str,
    pretrained: str | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    jit: bool = False,
    force_quick_gelu: bool = False,
    force_custom_text: bool = False,
    force_image_size: int | tuple[int, int] | None = None,
    force_context_length: int | None = None,
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    return_transform: bool = True,
    cache_dir: str | None = None,
    weights_only: bool = True,
    **model_kwargs: Any,
) -> Any:
    """A model with weights, and its evaluation transform unless ``return_transform`` is False.

    See ``create_model``. Raises ModelError when there are no weights.
    """
    overrides = _preprocess_overrides(image_mean, image_std, image_interpolation, image_resize_mode)
    model: Any = create_model(
        model_name, pretrained, precision=precision, device=device, jit=jit, force_quick_gelu=force_quick_gelu,
        force_custom_text=force_custom_text, force_image_size=force_image_size, force_preprocess_cfg=overrides,
        force_context_length=force_context_length, cache_dir=cache_dir, require_pretrained=True, weights_only=weights_only,
        **model_kwargs,
    )  # fmt: skip
    if not return_transform:
        return model
    return model, image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def _preprocess_overrides(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, interpolation: str | None, resize_mode: str | None
) -> dict[str, Any]:
    values = {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": resize_mode}
    return merge_preprocess_dict({}, values)


def get_tokenizer(
    model_name: str = "", context_length: int | None = None, cache_dir: str | None = None, **kwargs: Any
) -> Any:
    """The tokenizer of an architecture, a folder or a repository; ``kwargs`` go to its constructor.

    An unknown name gives CLIP's tokenizer, with a line in the log, as in open_clip; "" gives it without.
    """
    schema, identifier = parse_model_name(model_name)
    config = config_file(model_name, cache_dir) if schema else get_model_config(identifier)
    if config is None:
        if identifier and "siglip" not in identifier.lower():
            log.warn(f"{identifier}: no such model; the tokenizer is CLIP's.")
        config = {}
    text = config.get("model_cfg", config).get("text_cfg", {})
    length = context_length or text.get("context_length")
    options = {**(text.get("tokenizer_kwargs") or {}), **kwargs}
    name = text.get("hf_tokenizer_name")
    if name:
        source = identifier if schema == "local-dir" else name
        mode = text.get("tokenizer_mode")
        return HFTokenizer(
            source, context_length=length or DEFAULT_CONTEXT_LENGTH, cache_dir=cache_dir, tokenizer_mode=mode, **options
        )
    if schema is None and "siglip" in identifier.lower():
        lowered = identifier.lower()
        vocabulary = "gemma" if "siglip2" in lowered else "mc4" if "i18n" in lowered else "c4-en"
        return SigLipTokenizer(vocabulary, context_length=length or 64)
    return SimpleTokenizer(context_length=length or DEFAULT_CONTEXT_LENGTH, **options)


def create_loss(args: Any) -> nn.Module:
    """The loss that the arguments of open_clip's trainer mean: distillation, CoCa (refused), SigLIP, or CLIP."""
    shared = {"rank": args.rank, "world_size": args.world_size}
    gathering = {
        "local_loss": args.local_loss, "gather_with_grad": args.gather_with_grad, "cache_labels": True,
        "use_horovod": args.horovod, **shared,
    }  # fmt: skip
    if args.distill:
        return DistillClipLoss(**gathering)
    if "coca" in args.model.lower():
        refuse("CoCaLoss")
    if args.siglip:
        if args.horovod:
            raise ModelError("siglip and horovod were both given; the sigmoid loss runs with torch.distributed only.")
        return SigLipLoss(**shared, dist_impl=args.loss_dist_impl)
    return ClipLoss(**gathering)


__all__ = [
    "HF_HUB_PREFIX",
    "LOCAL_DIR_PREFIX",
    "add_model_config",
    "create_loss",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "get_model_config",
    "get_tokenizer",
    "list_models",
    "load_checkpoint",
    "load_state_dict",
    "parse_model_name",
]
