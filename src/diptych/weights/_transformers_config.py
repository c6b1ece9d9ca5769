"""``config.json`` and ``preprocessor_config.json`` of Hugging Face's transformers as our config, and back.

What Diptych's towers cannot do is a WeightsError that names the key. No weights and no names of tensors here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from diptych.errors import WeightsError
from diptych.models import ModelConfig, PreprocessConfig, TextConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.weights._config_table import Activation, ConfigTable, mlp_ratio, validated
from diptych.weights._vocabulary import ARGMAX_END, TextIds, text_ids

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "quick_gelu": "quickgelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
KERNELS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
             "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
SIGLIP_VISION = CLIP_VISION | {
    "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_patches": 256,
}  # fmt: skip
SIGLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "max_position_embeddings": 64, "vocab_size": 32000, "hidden_act": "gelu_pytorch_tanh",
               "layer_norm_eps": 1e-6}  # fmt: skip
LARGE_VOCABULARY = 250_000  # SigLIP 2's; SigLIP's has 32,000
HALF = (0.5, 0.5, 0.5)


def config_of(values: Mapping[str, object], pixels: Mapping[str, object], where: Path) -> ModelConfig:
    """A ``config.json`` of CLIP or SigLIP, with the ``preprocessor_config.json`` or {}, as our config. Raises WeightsError.

    The tokenizer's files beside ``where`` say whose vocabulary it is.
    """
    try:
        return validated(_config(ConfigTable(values), ConfigTable(pixels), where), str(where))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{where}: not a config of CLIP or SigLIP ({type(error).__name__}: {error}).") from error


def _config(table: ConfigTable, pixels: ConfigTable, where: Path) -> ModelConfig:
    model_type = table.text("model_type", "clip")
    if model_type not in ("clip", "siglip", "siglip2"):
        raise WeightsError(f"{where}: a {model_type!r} model; Diptych reads clip, siglip and siglip2.")
    siglip = model_type != "clip"
    vision = ConfigTable((SIGLIP_VISION if siglip else CLIP_VISION) | _tower(table, "vision_config"))
    text = ConfigTable((SIGLIP_TEXT if siglip else CLIP_TEXT) | _tower(table, "text_config"))
    activation, text_activation = _activation(vision, where), _activation(text, where)
    text_config = _text(text, siglip, None if text_activation == activation else text_activation, where)
    preprocess = _preprocess(pixels, siglip, where)
    if siglip:
        tower = _siglip_vision(vision, model_type)
        embed_dim = text.integer("projection_size", text_config.width)
        return ModelConfig(model_type, embed_dim, tower, text_config, activation, preprocess, math.log(10), -10.0)
    width = vision.integer("hidden_size")
    clip_tower = VitConfig(
        vision.integer("image_size"), vision.integer("patch_size"), vision.integer("num_hidden_layers"),
        vision.integer("num_attention_heads"), mlp_ratio(vision.integer("intermediate_size"), width), None,
        vision.number("layer_norm_eps"), width=width,
    )  # fmt: skip
    embed_dim, scale = table.integer("projection_dim", 512), table.number("logit_scale_init_value", 2.6592)
    return ModelConfig(model_type, embed_dim, clip_tower, text_config, activation, preprocess, scale)


def _tower(table: ConfigTable, key: str) -> dict[str, object]:
    """A tower's part of the config; what older versions wrote under ``..._dict`` beside it wins, as in transformers."""
    return {**table.table(key, {}).values, **table.table(f"{key}_dict", {}).values}


def _siglip_vision(table: ConfigTable, model_type: str) -> SiglipConfig:
    if not table.flag("vision_use_head", True):
        raise WeightsError("a SigLIP without its attention pool (vision_use_head false) gives no image features.")
    size, patch, width = table.integer("image_size"), table.integer("patch_size"), table.integer("hidden_size")
    if model_type == "siglip2":  # its own grid is a square of num_patches
        size = patch * round(table.integer("num_patches") ** 0.5)
    return SiglipConfig(
        size, patch, table.integer("num_hidden_layers"), table.integer("num_attention_heads"),
        mlp_ratio(table.integer("intermediate_size"), width), table.number("layer_norm_eps"), width=width,
    )  # fmt: skip


def _text(table: ConfigTable, siglip: bool, activation: Activation | None, where: Path) -> TextConfig:
    vocab_size, width = table.integer("vocab_size"), table.integer("hidden_size")
    second = vocab_size >= LARGE_VOCABULARY
    if siglip:
        ids = TextIds("siglip2" if second else "siglip", pad_id=int(not second))
    else:
        ids = text_ids(where.parent, table.values, vocab_size, where)
    return TextConfig(
        width, table.integer("num_hidden_layers"), table.integer("num_attention_heads"),
        table.integer("max_position_embeddings"), vocab_size,
        mlp_ratio(table.integer("intermediate_size"), width), table.number("layer_norm_eps"),
        projection_bias=siglip, activation=activation, **ids._asdict(),
        family="siglip_text" if siglip else "transformer",
    )  # fmt: skip


def _activation(table: ConfigTable, where: Path) -> Activation:
    name = table.text("hidden_act")
    if name not in ACTIVATIONS:
        raise WeightsError(f"{where}: the activation {name!r} is not known; known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _preprocess(table: ConfigTable, siglip: bool, where: Path) -> PreprocessConfig:
    default = PreprocessConfig(HALF, HALF, "bicubic", "squash") if siglip else PreprocessConfig()
    if not table.values:
        return default
    number = table.integer("resample", 3)
    if number not in KERNELS:
        raise WeightsError(f"{where}: the resampling filter {number} of its pixels is not known.")
    factor = table.number("rescale_factor", 1 / 255)
    if not table.flag("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
        raise WeightsError(f"{where}: its pixels are not divided by 255 (rescale_factor {factor:g}), as Diptych's are.")
    if not table.flag("do_normalize", True):
        table.values |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    size, crop = table.take("size", {}), table.take("crop_size", {})
    squash = isinstance(size, dict) and "height" in size and not table.flag("do_center_crop")
    return PreprocessConfig(
        table.rgb("image_mean", default.mean), table.rgb("image_std", default.std), KERNELS[number],
        "squash" if squash else "shortest", _short_side(size, crop),
    )  # fmt: skip


def _short_side(size: object, crop: object) -> int:
    """The short side before the crop, in pixels; 0 when it is the crop's own."""
    short = size.get("shortest_edge", 0) if isinstance(size, dict) else size
    side = crop.get("height", 0) if isinstance(crop, dict) else crop
    if not isinstance(short, int) or not isinstance(side, int):
        raise ValueError(f"size is {size!r} and crop_size {crop!r}; expected whole numbers")
    return 0 if not side or short == side else short


def config_json(config: ModelConfig) -> dict[str, object]:
    """Our config as ``config.json``; ``config_of`` is the inverse. ``vision`` is a ViT's or SigLIP's."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    vision, text = config.vision, config.text
    assert isinstance(vision, VitConfig | SiglipConfig)
    siglip = isinstance(vision, SiglipConfig)

    def tower(sizes: VitConfig | SiglipConfig | TextConfig, activation: Activation) -> dict[str, object]:
        return {
            "hidden_size": sizes.width, "intermediate_size": int(sizes.width * sizes.mlp_ratio),
            "layer_norm_eps": sizes.norm_eps, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
            "hidden_act": names[activation],
        }  # fmt: skip

    text_config = tower(text, text.activation or config.activation)
    text_config |= {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    vision_config = tower(vision, config.activation)
    vision_config |= {"image_size": vision.image_size, "patch_size": vision.patch_size}
    if siglip:
        text_config |= {"projection_size": config.embed_dim}
        architecture, extra = "SiglipModel", {}
    else:
        start, end = text.start_id, text.end_id
        ends = {
            "pad_token_id": 1 if end is None else text.pad_id,
            "bos_token_id": text.vocab_size - 2 if start is None else start,
            "eos_token_id": text.vocab_size - 1 if end is None else end,
        }
        if end == ARGMAX_END:
            raise WeightsError(f"{config.name}: its end token is {end}, which transformers takes for the largest id.")
        text_config |= {"projection_dim": config.embed_dim, **ends}
        vision_config |= {"projection_dim": config.embed_dim}
        architecture = "CLIPModel"
        extra = {"projection_dim": config.embed_dim, "logit_scale_init_value": config.logit_scale}
    return {
        "architectures": [architecture], "model_type": "siglip" if siglip else "clip", **extra,
        "text_config": text_config, "vision_config": vision_config,
    }  # fmt: skip


def preprocessor_json(config: ModelConfig) -> dict[str, object]:
    """Our preprocessing as ``preprocessor_config.json``. Raises WeightsError for what it cannot express."""
    preprocess, side = config.preprocess, config.vision.image_size
    if preprocess.resize_mode == "longest":
        raise WeightsError(f"{config.name} pads its images, which transformers' image processors cannot express.")
    squash, square = preprocess.resize_mode == "squash", {"height": side, "width": side}
    siglip = config.vision.family == "siglip"
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_resize": True, "size": square if squash else {"shortest_edge": preprocess.resize_to or side},
        "do_center_crop": not squash, "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "resample": {kernel: number for number, kernel in KERNELS.items()}[preprocess.interpolation],
        "image_mean": list(preprocess.mean), "image_std": list(preprocess.std), "do_convert_rgb": True,
    }  # fmt: skip


def tokenizer_json(context_length: int, start: str, end: str) -> dict[str, object]:
    """``tokenizer_config.json`` of CLIP's tokenizer."""
    return {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True,
        "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end,
    }  # fmt: skip
