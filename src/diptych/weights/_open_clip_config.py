"""The words of open_clip's ``model_cfg`` and ``preprocess_cfg``, both ways; PaddleMIX kept most of them.

What Diptych's towers cannot do is a WeightsError that names the key. No weights and no names of tensors here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from diptych.errors import ConfigError, WeightsError
from diptych.models import ModelConfig, PreprocessConfig
from diptych.models._config import TextConfig, checked
from diptych.models.resnet import ResNetConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.weights._format import no_others, taken

TIMM = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
TIMM_SIZES = {  # width, layers, heads, mlp ratio
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
# The image towers that timm runs with the tanh form of GELU, as they were trained; it runs the others with the exact form.
TIMM_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")
HARMLESS = frozenset(
    {"timm_model_pretrained", "timm_pool", "timm_proj", "hf_tokenizer_name", "tokenizer_kwargs", "pool_type"}
)


def config_of(values: Mapping[str, Any], where: str, look: Mapping[str, Any] | None = None) -> ModelConfig:
    """A ``model_cfg`` of open_clip (and its ``preprocess_cfg``) as our config. Raises WeightsError for what we do not have."""
    try:
        rest = dict(values)
        vision, activation = _vision(dict(rest.pop("vision_cfg")), bool(taken(rest, "quick_gelu", False)), where)
        text = _text(dict(rest.pop("text_cfg")), isinstance(vision, SiglipConfig), where)
        embed, bias = int(rest.pop("embed_dim")), rest.pop("init_logit_bias", None)
        scale = taken(rest, "init_logit_scale", ModelConfig.logit_scale)
        no_others(rest, frozenset({"custom_text", "multimodal_cfg", "nonscalar_logit_scale"}), where)
        text = text if text.activation != activation else dataclasses.replace(text, activation=None)
        # Nothing but its own word tells which of the two SigLIPs it is: their vocabularies differ.
        found = ModelConfig(
            "open_clip", embed, vision, text, activation, _look(look or {}, where), float(scale),
            None if bias is None else float(bias),
        )  # fmt: skip
        return checked(found, where)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise WeightsError(
            f"{where}: no model of open_clip that Diptych knows ({type(error).__name__}: {error})."
        ) from error
    except ConfigError as error:
        raise WeightsError(str(error)) from error


def _vision(values: dict[str, Any], quick: bool, where: str) -> tuple[Any, Any]:
    size = values.pop("image_size", 224)
    size = size[0] if isinstance(size, list) else size
    timm = values.pop("timm_model_name", None)
    if timm:
        match = TIMM.fullmatch(timm)
        if match is None:
            raise WeightsError(f"{where}: its image tower is timm's {timm}, which Diptych does not have.")
        no_others(values, HARMLESS, where)
        width, layers, heads, mlp = TIMM_SIZES[match.group(1)]
        tower = SiglipConfig(size, int(match.group(2)), width, layers, heads, mlp)
        return tower, "gelu_tanh" if TIMM_TANH.match(timm) else "gelu"
    activation = "quickgelu" if quick else "gelu"
    layers, width = taken(values, "layers", 12), taken(values, "width", 768)
    head_width, patch = taken(values, "head_width", 64), taken(values, "patch_size", 16)
    if isinstance(layers, list):
        no_others(values, frozenset({"mlp_ratio"}), where)
        return ResNetConfig(size, tuple(layers), width, width * 32 // head_width), activation  # type: ignore[arg-type]
    mlp, scale = taken(values, "mlp_ratio", 4.0), values.pop("ls_init_value", None)
    # The norm follows the mean; the other order is somebody else's model.
    mean = taken(values, "pool_type", "tok") == "avg" and bool(values.pop("final_ln_after_pool", False))
    before = not taken(values, "no_ln_pre", False)
    no_others(values, frozenset(), where)
    pool: Any = "patches" if mean else "class"
    heads = width // head_width
    return VitConfig(size, patch, width, layers, heads, float(mlp), scale, norm_before=before, pool=pool), activation


def _text(values: dict[str, Any], siglip: bool, where: str) -> TextConfig:
    width, layers, heads = taken(values, "width", 512), taken(values, "layers", 12), taken(values, "heads", 8)
    context, words = taken(values, "context_length", 77), taken(values, "vocab_size", 49408)
    mlp, norm = float(taken(values, "mlp_ratio", 4.0)), taken(values, "norm_kwargs", {}).get("eps", 1e-5)
    bias, pool = bool(taken(values, "proj_bias", False)), taken(values, "pool_type", "argmax")
    bidirectional = bool(taken(values, "no_causal_mask", False))
    tanh = taken(values, "act_kwargs", {}).get("approximate") == "tanh"
    if bidirectional != (pool == "last"):
        raise WeightsError(
            f"{where}: a text tower that is {'not ' * bidirectional}causal and pools {pool!r} is not known."
        )
    if not bidirectional and pool != "argmax":
        raise WeightsError(f"{where}: a causal text tower that pools {pool!r} is not known.")
    bert = bidirectional and "bert" in str(values.get("hf_tokenizer_name", ""))
    no_others(values, HARMLESS if siglip or bert else HARMLESS - {"hf_tokenizer_name"}, where)
    second = words >= 250_000
    words_of = "clipa" if bert else ("siglip2" if second else "siglip")
    return TextConfig(
        width=width, layers=layers, heads=heads, context_length=context, vocab_size=words, mlp_ratio=mlp, norm_eps=norm,
        projection_bias=bias, activation="gelu_tanh" if tanh else ("gelu" if bidirectional else None),
        tokenizer=words_of if bidirectional else "bpe",  # type: ignore[arg-type]
        pad_id=int(words_of == "siglip") if bidirectional else 0,
        family="siglip_text" if bidirectional else "transformer",
    )  # fmt: skip


def _look(values: Mapping[str, Any], where: str) -> PreprocessConfig:
    known = PreprocessConfig()
    interpolation, mode = values.get("interpolation", known.interpolation), values.get("resize_mode", known.resize_mode)
    if interpolation not in ("bicubic", "bilinear") or mode not in ("shortest", "squash", "longest"):
        raise WeightsError(
            f"{where}: preprocessing with interpolation {interpolation!r}, resize_mode {mode!r} is not known."
        )
    return PreprocessConfig(
        tuple(values.get("mean", known.mean)), tuple(values.get("std", known.std)), interpolation, mode
    )


def preprocess_cfg(config: ModelConfig) -> dict[str, Any]:
    """Our preprocessing in open_clip's words."""
    look = config.preprocess
    if look.resize_to not in (0, config.vision.image_size):
        raise WeightsError(
            f"{config.name} resizes to {look.resize_to} before the crop, which open_clip's config cannot say."
        )
    size = [config.vision.image_size] * 2
    return {
        "size": size, "mode": "RGB", "mean": list(look.mean), "std": list(look.std),
        "interpolation": look.interpolation, "resize_mode": look.resize_mode, "fill_color": 0,
    }  # fmt: skip


def model_cfg(config: ModelConfig) -> dict[str, Any]:
    """Our config in open_clip's words; ``config_of`` is the inverse. Raises WeightsError for what it has no words for."""
    vision, text = config.vision, config.text
    words: dict[str, Any] = {
        "context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width,
        "heads": text.heads, "layers": text.layers, "mlp_ratio": text.mlp_ratio,
    }  # fmt: skip
    about: dict[str, Any] = {"embed_dim": config.embed_dim, "text_cfg": words, "init_logit_scale": config.logit_scale}
    if config.logit_bias is not None:
        about["init_logit_bias"] = config.logit_bias
    if isinstance(vision, SiglipConfig):
        return _siglip_cfg(config, about)
    clipa = text.tokenizer == "clipa" and not isinstance(vision, ResNetConfig)
    if (text.family != "transformer" and not clipa) or text.activation not in (None, config.activation):
        raise WeightsError(f"{config.name}: open_clip's config has no words for these two towers together.")
    if text.projection_bias:
        raise WeightsError(
            f"{config.name} has a projection with bias, which open_clip's CLIP does not load; write it as diptych."
        )
    if isinstance(vision, ResNetConfig):
        tower = {"layers": list(vision.layers), "width": vision.width, "head_width": vision.width * 32 // vision.heads}
    else:
        tower = {
            "layers": vision.layers, "width": vision.width, "head_width": vision.width // vision.heads,
            "patch_size": vision.patch_size, "mlp_ratio": vision.mlp_ratio,
        }  # fmt: skip
        if vision.layer_scale is not None:
            tower["ls_init_value"] = vision.layer_scale
        if not vision.norm_before:
            tower["no_ln_pre"] = True
        if vision.pool == "patches":
            tower |= {"pool_type": "avg", "final_ln_after_pool": True}
    if clipa:
        words |= {
            "pool_type": "last", "no_causal_mask": True,
            "hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True},
        }  # fmt: skip
    about["vision_cfg"] = {"image_size": vision.image_size, **tower}
    about["quick_gelu"] = config.activation == "quickgelu"
    return about


def _siglip_cfg(config: ModelConfig, about: dict[str, Any]) -> dict[str, Any]:
    vision, text = config.vision, config.text
    assert isinstance(vision, SiglipConfig)
    found = (vision.width, vision.layers, vision.heads)
    kind = next((name for name, sizes in TIMM_SIZES.items() if sizes[:3] == found), None)
    timm = f"vit_{kind}_patch{vision.patch_size}_siglip_{vision.image_size}"
    if kind is None or config.activation != ("gelu_tanh" if TIMM_TANH.match(timm) else "gelu"):
        raise WeightsError(
            f"{config.name}: open_clip has this image tower only through timm's {timm}, whose size or activation differs "
            f"(here {config.activation}); write it as hf."
        )
    about["text_cfg"] |= {
        "no_causal_mask": True, "proj_bias": text.projection_bias, "pool_type": "last", "norm_kwargs": {"eps": text.norm_eps},
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2" if text.tokenizer == "siglip2" else "timm/ViT-B-16-SigLIP",
    }  # fmt: skip
    if (text.activation or config.activation) == "gelu_tanh":
        about["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    tower = {"image_size": vision.image_size, "timm_model_name": timm, "timm_model_pretrained": False}
    return {**about, "custom_text": True, "vision_cfg": {**tower, "timm_pool": "map", "timm_proj": "none"}}
