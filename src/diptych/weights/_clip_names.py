"""The names that OpenAI gave CLIP's parameters, which open_clip, PaddleMIX and DeCLIP kept, each in its own dialect.

Differences are arguments: where the text tower's names begin, whether q, k and v are stacked, whether linear weights stand
[in, out]. The architecture can be read off the tensors too, but for the width of heads other than 64 and the activation,
which leave no trace in shapes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig, list_models, model_config
from diptych.models._config import TextConfig, checked
from diptych.models.resnet import ResNetConfig
from diptych.models.vit import VitConfig
from diptych.weights._format import ratio
from diptych.weights._rename import ONE, SAME, SCALAR, STACKED, TRANSPOSED, Rule, same

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class NamingScheme:
    """How a system writes the names. ``linear_transposed``: linear weights are [in, out], as Paddle keeps them."""

    text: str = ""
    stacked: bool = True
    linear_transposed: bool = False
    scale_shape: int = 0
    projection_linear: bool = False
    layer_scale: str = "gamma"


def clip_rules(config: ModelConfig, dialect: NamingScheme) -> list[Rule]:
    """The table for a CLIP with a ViT or modified ResNet; the names are CLIPA's too."""
    vision, prefix = config.vision, dialect.text
    rules = [Rule("logit_scale", ("logit_scale",), ONE if dialect.scale_shape else SCALAR)]
    if config.logit_bias is not None:
        rules.append(Rule("logit_bias", ("logit_bias",), ONE if dialect.scale_shape else SCALAR))
    rules += _resnet(vision) if isinstance(vision, ResNetConfig) else _vit(config, dialect)
    rules += [
        Rule(f"{prefix}positional_embedding", ("text.positional_embedding",)),
        Rule(f"{prefix}token_embedding.weight", ("text.token_embedding.weight",)),
        *same(f"{prefix}ln_final", "text.ln_final"),
    ]
    for layer in range(config.text.layers):
        rules += _block(f"{prefix}transformer.resblocks.{layer}", f"text.layers.{layer}", dialect, False)
    if config.text.projection_bias:
        return rules + same(f"{prefix}text_projection", "text.projection")
    return [*rules, Rule(f"{prefix}text_projection", ("text.projection.weight",), TRANSPOSED)]


def _vit(config: ModelConfig, dialect: NamingScheme) -> list[Rule]:
    vision = config.vision
    assert isinstance(vision, VitConfig)
    rules = [
        Rule("visual.class_embedding", ("image.class_embedding",)),
        Rule("visual.positional_embedding", ("image.positional_embedding",)),
        Rule("visual.conv1.weight", ("image.patch_embedding.weight",)),
        *(same("visual.ln_pre", "image.ln_pre") if vision.norm_before else []),
        *same("visual.ln_post", "image.ln_post"),
        Rule("visual.proj", ("image.projection.weight",), TRANSPOSED),
    ]
    for layer in range(vision.layers):
        scaled = vision.layer_scale is not None
        rules += _block(f"visual.transformer.resblocks.{layer}", f"image.layers.{layer}", dialect, scaled)
    return rules


def _block(theirs: str, ours: str, dialect: NamingScheme, scaled: bool) -> list[Rule]:
    linear = TRANSPOSED if dialect.linear_transposed else SAME
    rules = [*same(f"{theirs}.ln_1", f"{ours}.ln_1"), *same(f"{theirs}.ln_2", f"{ours}.ln_2")]
    if dialect.stacked:
        for leaf in ("weight", "bias"):
            parts = tuple(f"{ours}.attention.{one}.{leaf}" for one in "qkv")
            rules.append(Rule(f"{theirs}.attn.in_proj_{leaf}", parts, STACKED))
    names = [] if dialect.stacked else [(f"attn.{one}_proj", f"attention.{one}") for one in "qkv"]
    names += [("attn.out_proj", "attention.out"), ("mlp.c_fc", "mlp_in"), ("mlp.c_proj", "mlp_out")]
    for their, our in names:
        rules.append(Rule(f"{theirs}.{their}.weight", (f"{ours}.{our}.weight",), linear))
        rules.append(Rule(f"{theirs}.{their}.bias", (f"{ours}.{our}.bias",)))
    if scaled:
        rules += [Rule(f"{theirs}.ls_{one}.{dialect.layer_scale}", (f"{ours}.scale_{one}",)) for one in (1, 2)]
    return rules


def _resnet(vision: ResNetConfig) -> list[Rule]:
    rules = [Rule("visual.attnpool.positional_embedding", ("image.pool.positional_embedding",))]
    for their, our in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("c_proj", "out")):
        rules += same(f"visual.attnpool.{their}", f"image.pool.{our}")
    for place in range(3):
        rules.append(Rule(f"visual.conv{place + 1}.weight", (f"image.stem.{place}.0.weight",)))
        rules += same(f"visual.bn{place + 1}", f"image.stem.{place}.1", NORM)
    for stage, blocks in enumerate(vision.layers):
        for block in range(blocks):
            theirs, ours = f"visual.layer{stage + 1}.{block}", f"image.stages.{stage}.{block}"
            for place, part in enumerate(("reduce", "spatial", "expand"), 1):
                rules.append(Rule(f"{theirs}.conv{place}.weight", (f"{ours}.{part}.0.weight",)))
                rules += same(f"{theirs}.bn{place}", f"{ours}.{part}.1", NORM)
            if block == 0:
                rules.append(Rule(f"{theirs}.downsample.0.weight", (f"{ours}.shortcut.1.weight",)))
                rules += same(f"{theirs}.downsample.1", f"{ours}.shortcut.2", NORM)
    return rules


def shapes_tell(
    tensors: Mapping[str, Tensor], dialect: NamingScheme, where: str, *, heads_of_64: bool = False
) -> ModelConfig:
    """The architecture that these tensors have, in a dialect's names; preprocessing and activation are the preset's, or CLIP's.

    Sizes of a preset take its heads. Others raise WeightsError, unless ``heads_of_64`` says that this system's are 64 wide;
    so does what is no whole CLIP.
    """
    prefix = dialect.text
    try:
        vision = _vision_of(tensors, dialect)
        table, words = tensors[f"{prefix}positional_embedding"], tensors[f"{prefix}token_embedding.weight"]
        hidden = tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"]
        text = TextConfig(
            width=words.shape[1], layers=_count(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
            heads=max(1, words.shape[1] // 64), context_length=table.shape[0], vocab_size=words.shape[0],
            mlp_ratio=ratio(hidden.shape[-1 if dialect.linear_transposed else -2], words.shape[1]),
            projection_bias=f"{prefix}text_projection.bias" in tensors,
            # Only CLIPA's image tower has no norm before its blocks, and its text tower is not causal.
            family="transformer" if getattr(vision, "norm_before", True) else "siglip_text",
        )  # fmt: skip
        if text.projection_bias:
            embed = tensors[f"{prefix}text_projection.weight"].shape[0]
        else:
            embed = tensors[f"{prefix}text_projection"].shape[1]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{where}: no whole CLIP: {error} is missing or has an odd shape.") from error
    bias = 0.0 if "logit_bias" in tensors else None
    found = ModelConfig(name="from-tensors", embed_dim=embed, vision=vision, text=text, logit_bias=bias)
    return _with_heads(found, where, heads_of_64)


def _vision_of(tensors: Mapping[str, Tensor], dialect: NamingScheme) -> VitConfig | ResNetConfig:
    if "visual.layer1.0.conv1.weight" in tensors:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        grid = _side(tensors["visual.attnpool.positional_embedding"])
        layers = [_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        return ResNetConfig(image_size=32 * grid, layers=tuple(layers), width=width, heads=max(1, width // 2))  # type: ignore[arg-type]
    patches = tensors["visual.conv1.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    hidden = tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    return VitConfig(
        image_size=patch * _side(tensors["visual.positional_embedding"]), patch_size=patch, width=width,
        layers=_count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."), heads=max(1, width // 64),
        mlp_ratio=ratio(hidden.shape[-1 if dialect.linear_transposed else -2], width),
        layer_scale=1e-5 if f"visual.transformer.resblocks.0.ls_1.{dialect.layer_scale}" in tensors else None,
        norm_before="visual.ln_pre.weight" in tensors,
    )  # fmt: skip


def _side(table: Tensor) -> int:
    """The side of the grid of a position table that has one more row."""
    return round((table.shape[0] - 1) ** 0.5)


def _count(names: Iterable[str], pattern: str) -> int:
    found = {int(match.group(1)) for name in names if (match := re.match(pattern, name))}
    if not found or found != set(range(len(found))):
        raise KeyError(pattern)
    return len(found)


def _with_heads(found: ModelConfig, where: str, heads_of_64: bool) -> ModelConfig:
    for name in list_models():
        preset = model_config(name)
        if sizes(preset) == sizes(found) and preset.activation == "gelu":
            # At another size of picture it is the same architecture.
            vision = dataclasses.replace(preset.vision, image_size=found.vision.image_size)
            named = name if preset.vision == vision else f"{name}-at-{vision.image_size}"
            return dataclasses.replace(preset, name=named, vision=vision, logit_bias=found.logit_bias)
    if not heads_of_64:
        raise WeightsError(
            f"{where}: these sizes are no architecture that Diptych knows, and how many heads a tower has cannot be seen in "
            "its tensors; say which it is (--model), or put the model's config beside the file."
        )
    return checked(found, where)


def sizes(config: ModelConfig) -> tuple[object, ...]:
    """What tensors' shapes show of an architecture, but for the size of the pictures."""
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        seen: tuple[object, ...] = (vision.layers, vision.width)
    else:
        scaled = getattr(vision, "layer_scale", None) is not None
        hidden = int(vision.width * vision.mlp_ratio)
        seen = (
            vision.patch_size,
            vision.width,
            vision.layers,
            hidden,
            vision.family,
            scaled,
            getattr(vision, "norm_before", True),
        )
    words = (text.width, text.layers, text.context_length, text.vocab_size, int(text.width * text.mlp_ratio))
    return (*seen, config.embed_dim, *words, text.projection_bias, text.family)
