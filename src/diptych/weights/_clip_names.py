"""The names that OpenAI gave CLIP's parameters, which open_clip, PaddleMIX and DeCLIP share, each in its own naming scheme.

Differences are fields of ``NamingScheme``: the prefix of the text tower, whether q, k and v are stacked, whether linear weights
are [in, out]. Architectures are read off such tensors in ``_infer``.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.models import ModelConfig
from diptych.models.resnet import ResNetConfig
from diptych.models.vit import VitConfig
from diptych.weights._rename import SAME, SCALAR, SINGLETON, STACKED, TRANSPOSED, Rule, same

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class NamingScheme:
    """How a system writes the names. ``linear_transposed``: linear weights are [in, out], as in Paddle.

    ``text`` is the prefix of the text tower; ``stacked``: q, k and v are one tensor; ``scale_shape`` 0: the scale and bias are
    [], 1: they are [1].
    """

    text: str = ""
    stacked: bool = True
    linear_transposed: bool = False
    scale_shape: int = 0
    layer_scale: str = "gamma"


def clip_rules(config: ModelConfig, scheme: NamingScheme) -> list[Rule]:
    """The rules for a CLIP with a ViT or modified ResNet; the names are CLIPA's too."""
    vision, prefix = config.vision, scheme.text
    scalar = SINGLETON if scheme.scale_shape else SCALAR
    rules = [Rule("logit_scale", ("logit_scale",), scalar)]
    if config.logit_bias is not None:
        rules.append(Rule("logit_bias", ("logit_bias",), scalar))
    rules += _resnet(vision) if isinstance(vision, ResNetConfig) else _vit(config, scheme)
    rules += [
        Rule(f"{prefix}positional_embedding", ("text.positional_embedding",)),
        Rule(f"{prefix}token_embedding.weight", ("text.token_embedding.weight",)),
        *same(f"{prefix}ln_final", "text.ln_final"),
    ]
    for layer in range(config.text.layers):
        rules += _block(f"{prefix}transformer.resblocks.{layer}", f"text.layers.{layer}", scheme, False)
    if config.text.projection_bias:
        return rules + same(f"{prefix}text_projection", "text.projection")
    return [*rules, Rule(f"{prefix}text_projection", ("text.projection.weight",), TRANSPOSED)]


def _vit(config: ModelConfig, scheme: NamingScheme) -> list[Rule]:
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
        rules += _block(f"visual.transformer.resblocks.{layer}", f"image.layers.{layer}", scheme, scaled)
    return rules


def _block(theirs: str, ours: str, scheme: NamingScheme, scaled: bool) -> list[Rule]:
    linear = TRANSPOSED if scheme.linear_transposed else SAME
    rules = [*same(f"{theirs}.ln_1", f"{ours}.ln_1"), *same(f"{theirs}.ln_2", f"{ours}.ln_2")]
    if scheme.stacked:
        for leaf in ("weight", "bias"):
            parts = tuple(f"{ours}.attention.{letter}.{leaf}" for letter in "qkv")
            rules.append(Rule(f"{theirs}.attn.in_proj_{leaf}", parts, STACKED))
    names = [] if scheme.stacked else [(f"attn.{letter}_proj", f"attention.{letter}") for letter in "qkv"]
    names += [("attn.out_proj", "attention.out"), ("mlp.c_fc", "mlp_in"), ("mlp.c_proj", "mlp_out")]
    for their, our in names:
        rules.append(Rule(f"{theirs}.{their}.weight", (f"{ours}.{our}.weight",), linear))
        rules.append(Rule(f"{theirs}.{their}.bias", (f"{ours}.{our}.bias",)))
    if scaled:
        rules += [Rule(f"{theirs}.ls_{n}.{scheme.layer_scale}", (f"{ours}.scale_{n}",)) for n in (1, 2)]
    return rules


def _resnet(vision: ResNetConfig) -> list[Rule]:
    rules = [Rule("visual.attnpool.positional_embedding", ("image.pool.positional_embedding",))]
    for their, our in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("c_proj", "out")):
        rules += same(f"visual.attnpool.{their}", f"image.pool.{our}")
    for index in range(3):
        rules.append(Rule(f"visual.conv{index + 1}.weight", (f"image.stem.{index}.0.weight",)))
        rules += same(f"visual.bn{index + 1}", f"image.stem.{index}.1", NORM)
    for stage, blocks in enumerate(vision.layers):
        for block in range(blocks):
            theirs, ours = f"visual.layer{stage + 1}.{block}", f"image.stages.{stage}.{block}"
            for number, part in enumerate(("reduce", "spatial", "expand"), 1):
                rules.append(Rule(f"{theirs}.conv{number}.weight", (f"{ours}.{part}.0.weight",)))
                rules += same(f"{theirs}.bn{number}", f"{ours}.{part}.1", NORM)
            if block == 0:
                rules.append(Rule(f"{theirs}.downsample.0.weight", (f"{ours}.shortcut.1.weight",)))
                rules += same(f"{theirs}.downsample.1", f"{ours}.shortcut.2", NORM)
    return rules
