"""Hugging Face's ``transformers`` layout: CLIPModel, SiglipModel, and Siglip2Model at its own grid of patches.

A folder with ``config.json`` and ``model.safetensors`` (or shards with an index, or ``pytorch_model.bin``), and
``preprocessor_config.json`` for the pixels. The names follow from the sizes alone; the config gives heads and activation.
Not NaFlex: pictures of many shapes in one batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diptych.errors import ConfigError, WeightsError
from diptych.files import replacing, write_text
from diptych.models import ModelConfig, PreprocessConfig
from diptych.models._config import TextConfig, checked
from diptych.models.resnet import ResNetConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.tensorfiles.read import Stored
from diptych.weights import CHECKPOINT_FORMATS
from diptych.weights._format import CheckpointFormat, Found, ratio, read_json
from diptych.weights._rename import LEADING_TWO, ONE, SAME, SCALAR, STACKED, Rule, Transform, same

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quickgelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
KERNELS = {2: "bilinear", 3: "bicubic"}
CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
             "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
             "eos_token_id": 49407}  # fmt: skip
SIGLIP_VISION = CLIP_VISION | {
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "num_patches": 256,
}
SIGLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "max_position_embeddings": 64, "vocab_size": 32000, "hidden_act": "gelu_pytorch_tanh",
               "layer_norm_eps": 1e-6}  # fmt: skip
PATCHES = "vision_model.embeddings.patch_embedding.weight"
LARGE_VOCABULARY = 250_000  # SigLIP 2's; SigLIP's has 32,000


@CHECKPOINT_FORMATS.register("huggingface")
class HuggingFace(CheckpointFormat):
    """Names of transformers."""

    name = "huggingface"
    about = "Hugging Face transformers (CLIPModel, SiglipModel, Siglip2Model)"
    ignored = ("*.position_ids",)

    def recognises(self, stored: Stored) -> bool:
        """Both towers under transformers' names."""
        return {PATCHES, "text_model.embeddings.token_embedding.weight"} <= set(stored.tensors)

    def describe(self, stored: Stored) -> Found:
        """By ``config.json``, which has to be there: nothing else tells heads and activation."""
        path = stored.path.parent / "config.json"
        about = read_json(path)
        if not about:
            raise WeightsError(f"{stored.path}: a transformers file without its config.json beside it; put it there.")
        pixels = read_json(stored.path.parent / "preprocessor_config.json")
        try:
            config = config_of(about, pixels, str(path))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise WeightsError(f"{path}: not a config of CLIP or SigLIP ({type(error).__name__}: {error}).") from error
        except ConfigError as error:
            raise WeightsError(str(error)) from error
        return Found(config, "config.json", True, preprocess_known=bool(pixels))

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """transformers' names."""
        if isinstance(config.vision, ResNetConfig):
            raise WeightsError(
                f"{config.name} has a ResNet, which transformers' CLIPModel does not; write it as openclip."
            )
        clip = isinstance(config.vision, VitConfig)
        if clip and config.text.family != "transformer":
            raise WeightsError(
                f"{config.name} pairs a ViT with a text tower that is not causal, as no model of transformers does; write it "
                "as openclip."
            )
        rules = (
            _clip(config)
            if clip
            else _siglip(config, flat_patches=stored is not None and stored.tensors[PATCHES].ndim == 2)
        )
        for tower, layers in (("vision", config.vision.layers), ("text", config.text.layers)):
            ours = "image" if tower == "vision" else "text"
            for layer in range(layers):
                rules += _block(f"{tower}_model.encoder.layers.{layer}", f"{ours}.layers.{layer}")
        return rules

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``model.safetensors``, ``config.json`` and ``preprocessor_config.json``."""
        about, pixels = config_json(config), preprocessor_json(config)
        path = folder / "model.safetensors"
        with replacing(path, "weight file") as beside:
            save_file(dict(tensors), beside, metadata={"format": "pt"})
        write_text(folder / "config.json", json.dumps(about, indent=2) + "\n", "config")
        write_text(folder / "preprocessor_config.json", json.dumps(pixels, indent=2) + "\n", "config")
        return path


def _clip(config: ModelConfig) -> list[Rule]:
    rules = [
        Rule("logit_scale", ("logit_scale",), SCALAR),
        Rule("vision_model.embeddings.class_embedding", ("image.class_embedding",)),
        Rule(PATCHES, ("image.patch_embedding.weight",)),
        Rule("vision_model.embeddings.position_embedding.weight", ("image.positional_embedding",)),
        *same("vision_model.pre_layrnorm", "image.ln_pre"),  # sic
        *same("vision_model.post_layernorm", "image.ln_post"),
        Rule("visual_projection.weight", ("image.projection.weight",)),
        Rule("text_projection.weight", ("text.projection.weight",)),
    ]
    if config.text.projection_bias or config.logit_bias is not None or getattr(config.vision, "layer_scale", None):
        raise WeightsError(
            f"{config.name} has a bias or layer scale that transformers' CLIPModel does not; try openclip."
        )
    return rules + _words()


def _siglip(config: ModelConfig, flat_patches: bool) -> list[Rule]:
    head = "vision_model.head"
    change = _flat(config.vision.patch_size) if flat_patches else SAME  # type: ignore[union-attr]
    rules = [
        Rule("logit_scale", ("logit_scale",), ONE), Rule("logit_bias", ("logit_bias",), ONE),
        Rule(PATCHES, ("image.patch_embedding.weight",), change),
        Rule("vision_model.embeddings.patch_embedding.bias", ("image.patch_embedding.bias",)),
        Rule("vision_model.embeddings.position_embedding.weight", ("image.positional_embedding",)),
        *same("vision_model.post_layernorm", "image.ln_post"),
        Rule(f"{head}.probe", ("image.pool.probe",), LEADING_TWO),
        *same(f"{head}.attention.out_proj", "image.pool.out"), *same(f"{head}.layernorm", "image.pool.norm"),
        *same(f"{head}.mlp.fc1", "image.pool.mlp_in"), *same(f"{head}.mlp.fc2", "image.pool.mlp_out"),
        *same("text_model.head", "text.projection"),
    ]  # fmt: skip
    for leaf in ("weight", "bias"):
        parts = tuple(f"image.pool.{one}.{leaf}" for one in "qkv")
        rules.append(Rule(f"{head}.attention.in_proj_{leaf}", parts, STACKED))
    return rules + _words()


def _flat(patch: int) -> Transform:
    """Siglip2Model embeds patches with a linear layer over (row, column, channel); ours is the convolution it equals."""
    return Transform(
        lambda tensor, _: [tensor.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2)],
        lambda parts: parts[0].permute(0, 2, 3, 1).flatten(1),
    )


def _words() -> list[Rule]:
    return [
        Rule("text_model.embeddings.token_embedding.weight", ("text.token_embedding.weight",)),
        Rule("text_model.embeddings.position_embedding.weight", ("text.positional_embedding",)),
        *same("text_model.final_layer_norm", "text.ln_final"),
    ]


def _block(theirs: str, ours: str) -> list[Rule]:
    names = [("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp_in"), ("mlp.fc2", "mlp_out")]
    names += [(f"self_attn.{one}_proj", f"attention.{one}") for one in "qkv"] + [
        ("self_attn.out_proj", "attention.out")
    ]
    return [rule for their, our in names for rule in same(f"{theirs}.{their}", f"{ours}.{our}")]


def config_of(about: Mapping[str, Any], pixels: Mapping[str, Any], where: str) -> ModelConfig:
    """A ``config.json`` of CLIP or SigLIP as our config."""
    kind = about.get("model_type", "clip")
    if kind not in ("clip", "siglip", "siglip2"):
        raise WeightsError(f"{where}: a {kind!r} model; Diptych reads clip, siglip and siglip2.")
    siglip = kind != "clip"
    vision: dict[str, Any] = (SIGLIP_VISION if siglip else CLIP_VISION) | dict(about.get("vision_config") or {})
    text: dict[str, Any] = (SIGLIP_TEXT if siglip else CLIP_TEXT) | dict(about.get("text_config") or {})
    activation, spoken = _activation(vision, where), _activation(text, where)
    words = _text(text, siglip, None if spoken == activation else spoken, where)
    look = _look(pixels, siglip, where)
    if siglip:
        pixels_tower, scale = _siglip_vision(vision, kind), math.log(10)
        return checked(ModelConfig(kind, words[1], pixels_tower, words[0], activation, look, scale, -10.0), where)
    tower = VitConfig(
        vision["image_size"], vision["patch_size"], vision["hidden_size"], vision["num_hidden_layers"],
        vision["num_attention_heads"], ratio(vision["intermediate_size"], vision["hidden_size"]), None,
        vision["layer_norm_eps"],
    )  # fmt: skip
    scale = about.get("logit_scale_init_value", 2.6592)
    return checked(ModelConfig(kind, about.get("projection_dim", 512), tower, words[0], activation, look, scale), where)


def _siglip_vision(vision: Mapping[str, Any], kind: str) -> SiglipConfig:
    if not vision.get("vision_use_head", True):
        raise WeightsError("a SigLIP without its attention pool (vision_use_head false) gives no image features.")
    size = vision["image_size"]
    if kind == "siglip2":  # its own grid is a square of num_patches
        size = vision["patch_size"] * round(vision["num_patches"] ** 0.5)
    return SiglipConfig(
        size, vision["patch_size"], vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"],
        ratio(vision["intermediate_size"], vision["hidden_size"]), vision["layer_norm_eps"],
    )  # fmt: skip


def _text(text: Mapping[str, Any], siglip: bool, activation: Any, where: str) -> tuple[TextConfig, int]:
    if not siglip and text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        raise WeightsError(
            f"{where}: its end token {text['eos_token_id']} is not the last of {text['vocab_size']} words."
        )
    second = text["vocab_size"] >= LARGE_VOCABULARY
    found = TextConfig(
        text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"], text["max_position_embeddings"],
        text["vocab_size"], ratio(text["intermediate_size"], text["hidden_size"]), text["layer_norm_eps"],
        projection_bias=siglip, activation=activation, pad_id=int(siglip and not second),
        tokenizer=("siglip2" if second else "siglip") if siglip else "bpe", family="siglip_text" if siglip else "transformer",
    )  # fmt: skip
    return found, text.get("projection_size") or text["hidden_size"]


def _activation(tower: Mapping[str, Any], where: str) -> Any:
    if tower["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(
            f"{where}: the activation {tower['hidden_act']!r} is not known; known: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[tower["hidden_act"]]


def _look(pixels: Mapping[str, Any], siglip: bool, where: str) -> PreprocessConfig:
    usual = PreprocessConfig((0.5,) * 3, (0.5,) * 3, "bicubic", "squash") if siglip else PreprocessConfig()  # type: ignore[arg-type]
    if not pixels:
        return usual
    kernel: Any = KERNELS.get(pixels.get("resample", 3))
    if kernel is None:
        raise WeightsError(f"{where}: the resampling filter {pixels['resample']!r} of its pixels is not known.")
    size = pixels.get("size", {})
    squash = isinstance(size, dict) and "height" in size and not pixels.get("do_center_crop", False)
    return PreprocessConfig(
        tuple(pixels.get("image_mean", usual.mean)), tuple(pixels.get("image_std", usual.std)),
        kernel, "squash" if squash else "shortest", _short_side(pixels),
    )  # type: ignore[arg-type]  # fmt: skip


def _short_side(pixels: Mapping[str, Any]) -> int:
    """The short side before the crop, 0 when it is the crop's own."""
    size, crop = pixels.get("size"), pixels.get("crop_size")
    short = size.get("shortest_edge", 0) if isinstance(size, dict) else (size or 0)
    side = crop.get("height", 0) if isinstance(crop, dict) else (crop or 0)
    return 0 if not side or short == side else int(short)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Our config in transformers' words; ``config_of`` is the inverse."""
    spoken = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    vision, text = config.vision, config.text
    assert not isinstance(vision, ResNetConfig)
    siglip = isinstance(vision, SiglipConfig)

    def tower(sizes: Any, activation: str, eps: float) -> dict[str, Any]:
        return {
            "hidden_size": sizes.width, "intermediate_size": int(sizes.width * sizes.mlp_ratio), "layer_norm_eps": eps,
            "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "hidden_act": spoken[activation],
        }  # fmt: skip

    words = tower(text, text.activation or config.activation, text.norm_eps)
    words |= {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    ends = {"pad_token_id": 1, "bos_token_id": text.vocab_size - 2, "eos_token_id": text.vocab_size - 1}
    words |= {"projection_size": config.embed_dim} if siglip else {"projection_dim": config.embed_dim, **ends}
    pixels = tower(vision, config.activation, vision.norm_eps)
    pixels |= {"image_size": vision.image_size, "patch_size": vision.patch_size}
    if siglip:
        return {"architectures": ["SiglipModel"], "model_type": "siglip", "text_config": words, "vision_config": pixels}
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.logit_scale, "text_config": words,
        "vision_config": pixels | {"projection_dim": config.embed_dim},
    }  # fmt: skip


def preprocessor_json(config: ModelConfig) -> dict[str, Any]:
    """Our preprocessing in transformers' words."""
    look, side = config.preprocess, config.vision.image_size
    if look.resize_mode == "longest":
        raise WeightsError(f"{config.name} pads its pictures, which transformers' image processors cannot be told.")
    squash, square = look.resize_mode == "squash", {"height": side, "width": side}
    siglip = config.vision.family == "siglip"
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_resize": True, "size": square if squash else {"shortest_edge": look.resize_to or side},
        "do_center_crop": not squash, "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "resample": {kernel: number for number, kernel in KERNELS.items()}[look.interpolation],
        "image_mean": list(look.mean), "image_std": list(look.std), "do_convert_rgb": True,
    }  # fmt: skip
