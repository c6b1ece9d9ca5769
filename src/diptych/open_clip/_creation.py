"""How a model of this package is made: config, weights, class, dtype, device. ``factory`` holds the public signatures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych import log
from diptych.devices import get_device
from diptych.open_clip._absent import refuse
from diptych.open_clip._checkpoints import load_tensors, load_tower, materialized, weight_file_in
from diptych.open_clip._clip import CLIP, CustomTextCLIP
from diptych.open_clip._errors import ModelError
from diptych.open_clip._registry import config_file, get_model_config, parse_model_name, unknown_model
from diptych.open_clip.model import convert_weights_to_lp, get_cast_dtype, set_model_preprocess_cfg
from diptych.open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from diptych.open_clip.transform import PreprocessCfg, merge_preprocess_dict
from diptych.registry import did_you_mean
from diptych.weights import OpenClipState, open_clip_state

PRECISIONS = (
    "fp32", "fp16", "bf16", "pure_fp16", "pure_bf16", "amp", "amp_bf16", "amp_bfloat16",
)  # fmt: skip


@dataclass
class Plan:
    """What is to be built: the config, how images are prepared, which weights, and what the tag says of them."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=lambda: asdict(PreprocessCfg()))
    weights: str | Path = ""
    tag_cfg: dict[str, Any] | None = None


def plan_for(model_name: str, pretrained: str | Path | None, load_weights: bool, cache_dir: str | None) -> Plan:
    """The config and the weights that the arguments mean. Raises ModelError, MissingError, InvalidError."""
    schema, identifier = parse_model_name(model_name)
    if schema is not None:
        if pretrained:
            log.warn(f"pretrained={str(pretrained)!r} is not used: {model_name} brings its own weights.")
        values = config_file(model_name, cache_dir)
        plan = Plan(model_name, dict(values.get("model_cfg", values)))
        plan.preprocess_cfg = merge_preprocess_dict(plan.preprocess_cfg, values.get("preprocess_cfg", {}))
        if load_weights:
            local = schema == "local-dir"
            plan.weights = (
                weight_file_in(Path(identifier).expanduser())
                if local
                else download_pretrained_from_hf(identifier, cache_dir=cache_dir)
            )
        return plan
    name = identifier.replace("/", "-")
    model_cfg = get_model_config(name)
    if model_cfg is None:
        raise unknown_model(name)
    plan = Plan(name, model_cfg)
    if pretrained:
        _choose_weights(plan, pretrained, load_weights, cache_dir)
    return plan


def _choose_weights(plan: Plan, pretrained: str | Path, load_weights: bool, cache_dir: str | None) -> None:
    """A tag of the model wins over a path, as in open_clip."""
    tag_cfg = get_pretrained_cfg(plan.name, str(pretrained))
    if tag_cfg:
        plan.tag_cfg = tag_cfg
        plan.preprocess_cfg = merge_preprocess_dict(plan.preprocess_cfg, tag_cfg)
        plan.weights = download_pretrained(tag_cfg, cache_dir=cache_dir) if load_weights else ""
    elif Path(str(pretrained).partition("#")[0]).expanduser().exists():
        plan.weights = pretrained if load_weights else ""
    else:
        tags = list_pretrained_tags_by_model(plan.name)
        raise ModelError(
            f"there is no such weight file, and {did_you_mean(str(pretrained), tags, f'tag of {plan.name}')}"
        )


def read_weights(plan: Plan) -> OpenClipState | None:
    """The tensors of the plan's weights; what these certainly say of their preprocessing goes into the plan."""
    if not plan.weights:
        return None
    state = open_clip_state(plan.weights, plan.name)
    if plan.tag_cfg is None and state.preprocess is not None:
        merged = merge_preprocess_dict(plan.preprocess_cfg, state.preprocess)
        names = [
            name
            for name in ("mean", "std", "interpolation", "resize_mode")
            if _differs(merged, plan.preprocess_cfg, name)
        ]
        if names:
            log.info(
                f"{plan.weights}: images are prepared as the weights say: {', '.join(f'{n}={merged[n]}' for n in names)}."
            )
        plan.preprocess_cfg = merged
    return state


def _differs(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> bool:
    as_plain = [list(value) if isinstance(value, tuple | list) else value for value in (first[name], second[name])]
    return bool(as_plain[0] != as_plain[1])


def agree_on_activation(plan: Plan, state: OpenClipState | None, forced: bool) -> None:
    """Give the config the activation that the weights certainly have, and say so.

    open_clip would build the name's own and give other features: with a warning for a tag, without a word for a file. Raises
    ModelError where the name itself ends in -quickgelu, or force_quick_gelu asks for it, and the weights want GELU.
    """
    known = None if state is None else state.activation
    if plan.tag_cfg is not None and plan.weights:
        known = "quickgelu" if plan.tag_cfg.get("quick_gelu") else "gelu"
    quick = bool(plan.model_cfg.get("quick_gelu", False))
    if known not in ("gelu", "quickgelu") or quick == (known == "quickgelu"):
        return
    if quick:
        asked = "force_quick_gelu" if forced else plan.name
        raise ModelError(
            f"{asked} asks for QuickGELU, but the weights {plan.weights} were trained with GELU; leave it out."
        )
    plan.model_cfg["quick_gelu"] = True
    line = (
        f"QuickGELU mismatch: {plan.weights or plan.name} was trained with QuickGELU, so {plan.name} is built with it."
    )
    warnings.warn(line, UserWarning, stacklevel=4)


def build(
    plan: Plan, state: OpenClipState | None, precision: str, custom_text: bool, extra: dict[str, Any]
) -> nn.Module:
    """The model, with the weights of ``state`` or torch's random ones. Raises ModelError for weights that do not fit."""
    if precision not in PRECISIONS:
        raise ModelError(did_you_mean(precision, PRECISIONS, "precision"))
    model_cfg = deepcopy(plan.model_cfg)
    custom = model_cfg.pop("custom_text", False) or custom_text
    if "multimodal_cfg" in model_cfg:
        refuse("CoCa")
    model_cfg |= extra
    kind = CustomTextCLIP if custom else CLIP
    dtype = get_cast_dtype(precision)
    if state is None:
        return kind(**model_cfg, cast_dtype=dtype)
    with torch.device("meta"):  # so that no random value is drawn only to be overwritten
        model = kind(**model_cfg, cast_dtype=dtype)
    load_tensors(model, dict(state.tensors), str(plan.weights))
    return materialized(model)


def cast_and_move(model: nn.Module, precision: str, device: str | torch.device) -> nn.Module:
    """To the device, and to the precision: "fp16" and "bf16" leave norms and embeddings in fp32, "pure_" ones nothing."""
    model.to(get_device(device).torch_device)
    dtype = get_cast_dtype(precision)
    if dtype is not None:
        convert_weights_to_lp(model, dtype=dtype)
    elif precision.startswith("pure_"):
        model.to(dtype=torch.float16 if precision.endswith("fp16") else torch.bfloat16)
    return model


def finish(plan: Plan, model: nn.Module, force_preprocess_cfg: Mapping[str, Any] | None) -> None:
    """Write the final preprocessing onto the image tower."""
    values = dict(plan.preprocess_cfg)
    values["size"] = model.visual.image_size  # type: ignore[union-attr]
    set_model_preprocess_cfg(model, merge_preprocess_dict(values, dict(force_preprocess_cfg or {})))


def load_towers(model: nn.Module, image_path: str | None, text_path: str | None) -> None:
    """Weights of single towers, over what is there."""
    if image_path:
        load_tower(model.visual, image_path, "visual.")  # type: ignore[arg-type]
    if text_path:
        if not hasattr(model, "text"):
            raise ModelError(
                "pretrained_text_path was given for a model without a text tower of its own; say force_custom_text=True."
            )
        load_tower(model.text, text_path, "text.")  # type: ignore[arg-type]
