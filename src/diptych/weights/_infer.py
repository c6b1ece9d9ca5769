"""The architecture of CLIP's tensors, read off their shapes.

The number of heads and the activation leave no trace in shapes: heads come from the preset of the same sizes, or are 64 wide
where a system always has them so; the activation stays unknown. Tensors have the names of ``_clip_names``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig, TextConfig, list_models, model_config
from diptych.models.resnet import STRIDE, ResNetConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.weights._base import UndescribedError
from diptych.weights._clip_names import NamingScheme
from diptych.weights._config_table import mlp_ratio, validated

HEAD_WIDTH = 64
OPENAI_SIZES = (49408, 49409)  # DeCLIP has a mask token more
SHAPES = "the shapes of the tensors"


def config_from_shapes(
    tensors: Mapping[str, Tensor], scheme: NamingScheme, where: str, *, heads_of_64: bool = False
) -> ModelConfig:
    """The architecture of these tensors, under a scheme's names; preprocessing and activation are the preset's, or CLIP's.

    Sizes of a preset take its heads. Others raise WeightsError, unless ``heads_of_64`` says that this system's are 64 wide;
    so does what is no whole CLIP.
    """
    prefix = scheme.text
    try:
        vision = _vision(tensors, scheme)
        positions, embedding = tensors[f"{prefix}positional_embedding"], tensors[f"{prefix}token_embedding.weight"]
        hidden = tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"]
        width = embedding.shape[1]
        text = TextConfig(
            width=width, layers=_count(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
            heads=max(1, width // HEAD_WIDTH), context_length=positions.shape[0], vocab_size=embedding.shape[0],
            mlp_ratio=mlp_ratio(hidden.shape[-1 if scheme.linear_transposed else -2], width),
            projection_bias=f"{prefix}text_projection.bias" in tensors,
            tokenizer="bpe" if embedding.shape[0] in OPENAI_SIZES else "own",
            # Only CLIPA's image tower has no norm before its blocks, and its text tower is not causal.
            family="transformer" if isinstance(vision, ResNetConfig) or vision.norm_before else "siglip_text",
        )  # fmt: skip
        if text.projection_bias:
            embed_dim = tensors[f"{prefix}text_projection.weight"].shape[0]
        else:
            embed_dim = tensors[f"{prefix}text_projection"].shape[1]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{where}: no whole CLIP: {error} is missing or has an odd shape.") from error
    bias = 0.0 if "logit_bias" in tensors else None
    inferred = ModelConfig(name="from-tensors", embed_dim=embed_dim, vision=vision, text=text, logit_bias=bias)
    return _with_heads(inferred, where, heads_of_64)


def _vision(tensors: Mapping[str, Tensor], scheme: NamingScheme) -> VitConfig | ResNetConfig:
    if "visual.layer1.0.conv1.weight" in tensors:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        side = _grid_side(tensors["visual.attnpool.positional_embedding"])
        first, second, third, last = (_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        return ResNetConfig(STRIDE * side, (first, second, third, last), width=width, heads=max(1, width // 2))
    patches = tensors["visual.conv1.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    hidden = tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    return VitConfig(
        image_size=patch * _grid_side(tensors["visual.positional_embedding"]), patch_size=patch, width=width,
        layers=_count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."), heads=max(1, width // HEAD_WIDTH),
        mlp_ratio=mlp_ratio(hidden.shape[-1 if scheme.linear_transposed else -2], width),
        layer_scale=1e-5 if f"visual.transformer.resblocks.0.ls_1.{scheme.layer_scale}" in tensors else None,
        norm_before="visual.ln_pre.weight" in tensors,
    )  # fmt: skip


def _grid_side(table: Tensor) -> int:
    """The side of the grid of a position table that has one more row."""
    return round((table.shape[0] - 1) ** 0.5)


def _count(names: Iterable[str], pattern: str) -> int:
    indices = {int(match.group(1)) for name in names if (match := re.match(pattern, name))}
    if not indices or indices != set(range(len(indices))):
        raise KeyError(pattern)
    return len(indices)


def _with_heads(inferred: ModelConfig, where: str, heads_of_64: bool) -> ModelConfig:
    for name in list_models():
        preset = model_config(name)
        if visible_sizes(preset) == visible_sizes(inferred) and preset.activation == "gelu":
            # At another image size it is the same architecture.
            vision = dataclasses.replace(preset.vision, image_size=inferred.vision.image_size)
            full_name = name if preset.vision == vision else f"{name}-at-{vision.image_size}"
            return dataclasses.replace(preset, name=full_name, vision=vision, logit_bias=inferred.logit_bias)
    if not heads_of_64:
        raise UndescribedError(
            f"{where}: these sizes are no architecture that Diptych knows, and how many heads a tower has cannot be seen in "
            "its tensors; say which it is (--model), or put the model's config beside the file."
        )
    return validated(inferred, where)


def visible_sizes(config: ModelConfig) -> tuple[object, ...]:
    """What tensors' shapes show of an architecture, but for the image size."""
    vision, text = config.vision, config.text
    image: tuple[object, ...] = (vision,)
    if isinstance(vision, ResNetConfig):
        image = (vision.layers, vision.width)
    elif isinstance(vision, VitConfig | SiglipConfig):
        hidden = int(vision.width * vision.mlp_ratio)
        image = (vision.patch_size, vision.width, vision.layers, hidden, vision.family)
        if isinstance(vision, VitConfig):
            image += (vision.layer_scale is not None, vision.norm_before)
    text_sizes = (text.width, text.layers, text.context_length, text.vocab_size, int(text.width * text.mlp_ratio))
    return (*image, config.embed_dim, *text_sizes, text.projection_bias, text.family)
