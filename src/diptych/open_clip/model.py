"""open_clip's module ``model``: the model classes, and functions on models and their state dicts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.log import warn
from diptych.open_clip._attention import Attention
from diptych.open_clip._clip import CLIP, CustomTextCLIP
from diptych.open_clip._configs import CLIPTextCfg, CLIPVisionCfg
from diptych.open_clip._text import TextTransformer
from diptych.open_clip._vision import VisionTransformer
from diptych.open_clip.utils import to_2tuple

TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
CPU = torch.device("cpu")
NO_PARAMETERS = ("input_resolution", "context_length", "vocab_size")  # numbers in the state dicts of OpenAI's archives


def get_cast_dtype(precision: str) -> torch.dtype | None:
    """The dtype that "bf16" and "fp16" cast weights to; None for every other precision."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def get_input_dtype(precision: str) -> torch.dtype | None:
    """The dtype that images should have; None: fp32."""
    return get_cast_dtype(precision.removeprefix("pure_"))


def convert_weights_to_lp(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast convolutions, linears, attention and projections to ``dtype``, in place; norms and embeddings stay."""

    def cast(module: nn.Module) -> None:
        names: tuple[str, ...] = ()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            names = ("weight", "bias")
        elif isinstance(module, nn.MultiheadAttention | Attention):
            names = (
                "in_proj_weight",
                "q_proj_weight",
                "k_proj_weight",
                "v_proj_weight",
                "in_proj_bias",
                "bias_k",
                "bias_v",
            )
        elif isinstance(module, CLIP | TextTransformer):
            names = ("text_projection",)
        elif isinstance(module, VisionTransformer):
            names = ("proj",)
        for name in names:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                tensor.data = tensor.data.to(dtype)

    model.apply(cast)


convert_weights_to_fp16 = convert_weights_to_lp


def convert_to_custom_text_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """``CLIP``'s names as ``CustomTextCLIP``'s: text parts under ``text.``; others are given back as they are."""
    if "text_projection" not in state_dict:
        return state_dict
    return {f"text.{name}" if name.startswith(TEXT_PARTS) else name: value for name, value in state_dict.items()}


def _layers(names: Mapping[str, Any], prefix: str) -> int:
    depth = prefix.count(".") + 1
    return len({name.split(".")[depth] for name in names if name.startswith(f"{prefix}.")})


def _openai_vision(tensors: Mapping[str, Tensor]) -> CLIPVisionCfg:
    if "visual.proj" in tensors:
        width, _, _, patch = tensors["visual.conv1.weight"].shape
        grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        layers = _layers(tensors, "visual.transformer.resblocks")
        return CLIPVisionCfg(layers=layers, width=width, patch_size=patch, image_size=patch * grid)
    stages = tuple(_layers(tensors, f"visual.layer{number}") for number in (1, 2, 3, 4))
    side = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    width = tensors["visual.layer1.0.conv1.weight"].shape[0]
    return CLIPVisionCfg(layers=stages, width=width, image_size=side * 32)  # type: ignore[arg-type]


def build_model_from_openai_state_dict(
    state_dict: dict[str, Any], quick_gelu: bool = True, cast_dtype: torch.dtype = torch.float16
) -> CLIP:
    """A CLIP in evaluation mode with the architecture that the shapes of ``state_dict`` say, weights partly in fp16.

    The three numbers of OpenAI's archives are removed from ``state_dict``, as open_clip does.
    """
    width = state_dict["ln_final.weight"].shape[0]
    vocabulary, context = state_dict["token_embedding.weight"].shape[0], state_dict["positional_embedding"].shape[0]
    layers = _layers(state_dict, "transformer.resblocks")
    text = CLIPTextCfg(context_length=context, vocab_size=vocabulary, width=width, heads=width // 64, layers=layers)
    embed_dim = state_dict["text_projection"].shape[1]
    model = CLIP(embed_dim, _openai_vision(state_dict), text, quick_gelu=quick_gelu, cast_dtype=cast_dtype)
    for name in NO_PARAMETERS:
        state_dict.pop(name, None)
    convert_weights_to_lp(model)
    model.load_state_dict(state_dict)
    return model.eval()


def trace_model(model: nn.Module, batch_size: int = 256, device: torch.device = CPU) -> torch.jit.ScriptModule:
    """The model in evaluation mode, traced with its methods ``forward``, ``encode_text`` and ``encode_image``.

    The traced model is right for any batch, because tracing takes the padded form.
    """
    model.eval()
    size: Any = model.visual.image_size  # type: ignore[union-attr]
    images = torch.ones((batch_size, 3, *to_2tuple(size)), device=device)
    texts = torch.zeros((batch_size, model.context_length), dtype=torch.int, device=device)  # type: ignore[arg-type]
    inputs = {"forward": (images, texts), "encode_text": (texts,), "encode_image": (images,)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's advice to export instead
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks inside of torch's own attention
        # Without torch's second run: its attention takes another way there, and the graphs would differ.
        traced = torch.jit.trace_module(model, inputs, check_trace=False)
    traced.visual.image_size = size
    return traced  # type: ignore[no-any-return]


def resize_pos_embed(
    state_dict: dict[str, Any], model: nn.Module, interpolation: str = "bicubic", antialias: bool = True
) -> None:
    """Resize ``visual.positional_embedding`` of ``state_dict`` to the grid of ``model``, in place; the class token stays."""
    table = state_dict.get("visual.positional_embedding")
    grid: Any = getattr(model.visual, "grid_size", None)
    if table is None or grid is None:
        return
    grid = to_2tuple(grid)
    if grid[0] * grid[1] + 1 == table.shape[0]:
        return
    side = int((table.shape[0] - 1) ** 0.5)
    warn(f"positions of images are resized from {side} x {side} to {grid[0]} x {grid[1]} patches.")
    patches = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
    patches = F.interpolate(patches, size=tuple(grid), mode=interpolation, antialias=antialias, align_corners=False)
    state_dict["visual.positional_embedding"] = torch.cat([table[:1], patches[0].flatten(1).T])


def resize_text_pos_embed(
    state_dict: dict[str, Any], model: nn.Module, interpolation: str = "linear", antialias: bool = False
) -> None:
    """Resize the positions of texts in ``state_dict`` to the context of ``model``, in place."""
    name = "positional_embedding" if "positional_embedding" in state_dict else "text.positional_embedding"
    table = state_dict.get(name)
    if table is None:
        return
    own: Any = getattr(model, "positional_embedding", None)
    own = model.text.positional_embedding if own is None else own  # type: ignore[union-attr]
    assert table.shape[1] == own.shape[1], f"texts of width {table.shape[1]} were given; the model's is {own.shape[1]}."
    if table.shape[0] == own.shape[0]:
        return
    warn(f"positions of texts are resized from {table.shape[0]} to {own.shape[0]}.")
    resized = F.interpolate(
        table.T[None], size=own.shape[0], mode=interpolation, antialias=antialias, align_corners=False
    )
    state_dict[name] = resized[0].T


def get_model_preprocess_cfg(model: nn.Module) -> dict[str, Any]:
    """``preprocess_cfg`` of the image tower, or what its older attributes say."""
    tower = getattr(model, "visual", model)
    known = getattr(tower, "preprocess_cfg", None)
    if known:
        return known  # type: ignore[no-any-return]
    names = {"size": "image_size", "mean": "image_mean", "std": "image_std"}
    values = {name: getattr(tower, attribute, None) for name, attribute in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def set_model_preprocess_cfg(model: nn.Module, preprocess_cfg: dict[str, Any]) -> None:
    """Set ``preprocess_cfg`` of the image tower, and the older ``image_mean`` and ``image_std``."""
    tower: Any = getattr(model, "visual", model)
    tower.image_mean, tower.image_std = preprocess_cfg["mean"], preprocess_cfg["std"]
    tower.preprocess_cfg = copy.deepcopy(preprocess_cfg)


def get_model_tokenize_cfg(model: nn.Module) -> dict[str, Any]:
    """Context and vocabulary of the text tower."""
    tower = getattr(model, "text", model)
    values = {name: getattr(tower, name, None) for name in ("context_length", "vocab_size")}
    return {name: value for name, value in values.items() if value is not None}


__all__ = [
    "CLIP",
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "CustomTextCLIP",
    "build_model_from_openai_state_dict",
    "convert_to_custom_text_state_dict",
    "convert_weights_to_fp16",
    "convert_weights_to_lp",
    "get_cast_dtype",
    "get_input_dtype",
    "get_model_preprocess_cfg",
    "get_model_tokenize_cfg",
    "resize_pos_embed",
    "resize_text_pos_embed",
    "set_model_preprocess_cfg",
    "trace_model",
]
