"""Hugging Face's ``transformers`` format: CLIPModel, SiglipModel, and Siglip2Model at its own grid of patches.

A folder with ``config.json`` and ``model.safetensors`` (or shards with an index, or ``pytorch_model.bin``), and
``preprocessor_config.json`` for the pixels. The names follow from the sizes alone; the config gives heads and activation.
Not NaFlex: images of many shapes in one batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from diptych.errors import WeightsError
from diptych.files import replacing, write_text
from diptych.models import ModelConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.tensorfiles.read import Stored
from diptych.text.bpe import END, START, vocabulary
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description, UndescribedError
from diptych.weights._config_table import read_json
from diptych.weights._rename import LEADING_TWO, SAME, SCALAR, SINGLETON, STACKED, Rule, Transform, same
from diptych.weights._transformers_config import config_json, config_of, preprocessor_json, tokenizer_json

PATCHES = "vision_model.embeddings.patch_embedding.weight"


@CHECKPOINT_FORMATS.register("huggingface")
class HuggingFace(CheckpointFormat):
    """Names of transformers."""

    name = "huggingface"
    summary = "Hugging Face transformers (CLIPModel, SiglipModel, Siglip2Model)"
    ignored = ("*.position_ids",)

    def recognizes(self, stored: Stored) -> bool:
        """Both towers under transformers' names."""
        return {PATCHES, "text_model.embeddings.token_embedding.weight"} <= set(stored.tensors)

    def describe(self, stored: Stored) -> Description:
        """By ``config.json``, which has to be there: nothing else gives heads and activation."""
        path = stored.path.parent / "config.json"
        values = read_json(path)
        if not values:
            raise UndescribedError(
                f"{stored.path}: a transformers file without its config.json beside it; put it there."
            )
        pixels = _pixels(stored.path.parent)
        return Description(config_of(values, pixels, path), "config.json", preprocess_known=bool(pixels))

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """transformers' names."""
        vision = config.vision
        if isinstance(vision, SiglipConfig):
            rules = _siglip(vision, flat_patches=stored is not None and stored.tensors[PATCHES].ndim == 2)
        elif isinstance(vision, VitConfig):
            rules = _clip(config, vision)
        else:
            tower = "ResNet" if vision.family == "resnet" else vision.family
            raise WeightsError(
                f"{config.name} has a {tower}, which transformers' CLIPModel does not; write it as openclip."
            )
        rules += _text()
        for theirs, ours, layers in (("vision", "image", vision.layers), ("text", "text", config.text.layers)):
            for layer in range(layers):
                rules += _block(f"{theirs}_model.encoder.layers.{layer}", f"{ours}.layers.{layer}")
        return rules

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``model.safetensors``, ``config.json``, ``preprocessor_config.json``, and CLIP's tokenizer."""
        model, pixels = config_json(config), preprocessor_json(config)
        path = folder / "model.safetensors"
        with replacing(path, "weight file") as beside:
            save_file(dict(tensors), beside, metadata={"format": "pt"})
        write_text(folder / "config.json", json.dumps(model, indent=2) + "\n", "config")
        write_text(folder / "preprocessor_config.json", json.dumps(pixels, indent=2) + "\n", "config")
        if config.text.tokenizer == "bpe":
            _write_tokenizer(folder, config.text.context_length)
        return path


def _pixels(folder: Path) -> dict[str, object]:
    """What a folder says of its images: ``preprocessor_config.json``, else what ``processor_config.json`` holds of it."""
    values = read_json(folder / "preprocessor_config.json")
    if values:
        return values
    inner = read_json(folder / "processor_config.json").get("image_processor")
    return inner if isinstance(inner, dict) else {}


def _clip(config: ModelConfig, vision: VitConfig) -> list[Rule]:
    if config.text.family != "transformer":
        raise WeightsError(
            f"{config.name} pairs a ViT with a text tower that is not causal, as no model of transformers does; write it "
            "as openclip."
        )
    if config.text.projection_bias or config.logit_bias is not None or vision.layer_scale is not None:
        raise WeightsError(
            f"{config.name} has a bias or layer scale that transformers' CLIPModel does not; try openclip."
        )
    return [
        Rule("logit_scale", ("logit_scale",), SCALAR),
        Rule("vision_model.embeddings.class_embedding", ("image.class_embedding",)),
        Rule(PATCHES, ("image.patch_embedding.weight",)),
        Rule("vision_model.embeddings.position_embedding.weight", ("image.positional_embedding",)),
        *same("vision_model.pre_layrnorm", "image.ln_pre"),  # sic
        *same("vision_model.post_layernorm", "image.ln_post"),
        Rule("visual_projection.weight", ("image.projection.weight",)),
        Rule("text_projection.weight", ("text.projection.weight",)),
    ]


def _siglip(vision: SiglipConfig, flat_patches: bool) -> list[Rule]:
    head = "vision_model.head"
    rules = [
        Rule("logit_scale", ("logit_scale",), SINGLETON), Rule("logit_bias", ("logit_bias",), SINGLETON),
        Rule(PATCHES, ("image.patch_embedding.weight",), _flat(vision.patch_size) if flat_patches else SAME),
        Rule("vision_model.embeddings.patch_embedding.bias", ("image.patch_embedding.bias",)),
        Rule("vision_model.embeddings.position_embedding.weight", ("image.positional_embedding",)),
        *same("vision_model.post_layernorm", "image.ln_post"),
        Rule(f"{head}.probe", ("image.pool.probe",), LEADING_TWO),
        *same(f"{head}.attention.out_proj", "image.pool.out"), *same(f"{head}.layernorm", "image.pool.norm"),
        *same(f"{head}.mlp.fc1", "image.pool.mlp_in"), *same(f"{head}.mlp.fc2", "image.pool.mlp_out"),
        *same("text_model.head", "text.projection"),
    ]  # fmt: skip
    for leaf in ("weight", "bias"):
        parts = tuple(f"image.pool.{letter}.{leaf}" for letter in "qkv")
        rules.append(Rule(f"{head}.attention.in_proj_{leaf}", parts, STACKED))
    return rules


def _flat(patch: int) -> Transform:
    """Siglip2Model embeds patches with a linear layer over (row, column, channel); ours is the convolution it equals."""
    return Transform(
        lambda tensor, _: [tensor.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2)],
        lambda parts: parts[0].permute(0, 2, 3, 1).flatten(1),
    )


def _text() -> list[Rule]:
    return [
        Rule("text_model.embeddings.token_embedding.weight", ("text.token_embedding.weight",)),
        Rule("text_model.embeddings.position_embedding.weight", ("text.positional_embedding",)),
        *same("text_model.final_layer_norm", "text.ln_final"),
    ]


def _block(theirs: str, ours: str) -> list[Rule]:
    names = [
        ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp_in"), ("mlp.fc2", "mlp_out"),
        *((f"self_attn.{letter}_proj", f"attention.{letter}") for letter in "qkv"), ("self_attn.out_proj", "attention.out"),
    ]  # fmt: skip
    return [rule for their, our in names for rule in same(f"{theirs}.{their}", f"{ours}.{our}")]


def _write_tokenizer(folder: Path, context_length: int) -> None:
    """CLIP's tokenizer in transformers' files, so that its processor opens the folder."""
    known = vocabulary()
    merges = sorted(known.ranks, key=known.ranks.__getitem__)
    write_text(folder / "vocab.json", json.dumps(dict(known.ids), ensure_ascii=False), "vocabulary")
    lines = "".join(f"{first} {second}\n" for first, second in merges)
    write_text(folder / "merges.txt", f"#version: 0.2\n{lines}", "vocabulary")
    settings = json.dumps(tokenizer_json(context_length, START, END), indent=2)
    write_text(folder / "tokenizer_config.json", settings + "\n", "config")
