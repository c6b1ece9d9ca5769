"""open_clip's ``model_cfg`` and ``preprocess_cfg`` as our config, and back; PaddleMIX shares most of the keys.

What Diptych's towers cannot do is a WeightsError that names the key. No weights and no names of tensors here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from diptych.errors import WeightsError
from diptych.models import ModelConfig, PreprocessConfig, TextConfig, VisionConfig
from diptych.models.resnet import STRIDE, ResNetConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.weights._config_table import Activation, ConfigTable, validated

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
HARMLESS_MODEL = ("custom_text", "multimodal_cfg", "nonscalar_logit_scale")
OPENAI_SIZES = (49408, 49409)
LARGE_VOCABULARY = 250_000  # SigLIP 2's; SigLIP's has 32,000


def config_of(model: object, where: str, preprocess: object = None) -> ModelConfig:
    """A ``model_cfg`` of open_clip (and its ``preprocess_cfg``) as our config. Raises WeightsError for what we do not have."""
    try:
        table = _object(model, "model_cfg")
        vision, activation = _vision(table.table("vision_cfg"), table.flag("quick_gelu"), where)
        text = _text(table.table("text_cfg"), isinstance(vision, SiglipConfig), where)
        text = text if text.activation != activation else dataclasses.replace(text, activation=None)
        config = ModelConfig(
            "open_clip", table.integer("embed_dim"), vision, text, activation,
            _preprocess(_object(preprocess or {}, "preprocess_cfg"), where),
            table.number("init_logit_scale", ModelConfig.logit_scale), table.optional_number("init_logit_bias"),
        )  # fmt: skip
        table.refuse_rest(HARMLESS_MODEL, where)
        return validated(config, where)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise WeightsError(
            f"{where}: no model of open_clip that Diptych knows ({type(error).__name__}: {error})."
        ) from error


def _object(values: object, name: str) -> ConfigTable:
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is {values!r}; expected an object")
    return ConfigTable(values)


def _vision(table: ConfigTable, quick: bool, where: str) -> tuple[VisionConfig, Activation]:
    size = table.integers("image_size", 224)[0]
    timm = table.text("timm_model_name", "")
    if timm:
        match = TIMM.fullmatch(timm)
        if match is None:
            raise WeightsError(f"{where}: its image tower is timm's {timm}, which Diptych does not have.")
        table.refuse_rest(HARMLESS, where)
        width, layers, heads, mlp = TIMM_SIZES[match.group(1)]
        siglip = SiglipConfig(size, int(match.group(2)), layers, heads, mlp, width=width)
        return siglip, "gelu_tanh" if TIMM_TANH.match(timm) else "gelu"
    activation: Activation = "quickgelu" if quick else "gelu"
    stages, width = table.integers("layers", 12), table.integer("width", 768)
    head_width, patch = table.integer("head_width", 64), table.integer("patch_size", 16)
    if len(stages) > 1:
        table.refuse_rest(("mlp_ratio",), where)
        first, second, third, last = stages
        return ResNetConfig(size, (first, second, third, last), width * STRIDE // head_width, width=width), activation
    mlp, scale = table.number("mlp_ratio", 4.0), table.optional_number("ls_init_value")
    # The norm follows the mean; the other order is a model that Diptych does not have.
    mean = table.text("pool_type", "tok") == "avg" and table.flag("final_ln_after_pool")
    before = not table.flag("no_ln_pre")
    table.refuse_rest((), where)
    tower = VitConfig(
        size, patch, stages[0], width // head_width, mlp, scale, width=width, norm_before=before,
        pool="patches" if mean else "class",
    )  # fmt: skip
    return tower, activation


def _text(table: ConfigTable, siglip: bool, where: str) -> TextConfig:
    bidirectional, pool = table.flag("no_causal_mask"), table.text("pool_type", "argmax")
    if bidirectional != (pool == "last"):
        raise WeightsError(
            f"{where}: a text tower that is {'not ' * bidirectional}causal and pools {pool!r} is not known."
        )
    if not bidirectional and pool != "argmax":
        raise WeightsError(f"{where}: a causal text tower that pools {pool!r} is not known.")
    tanh = table.table("act_kwargs", {}).values.get("approximate") == "tanh"
    bert = bidirectional and "bert" in str(table.values.get("hf_tokenizer_name", ""))
    vocab_size = table.integer("vocab_size", 49408)
    # Only the vocabulary's size shows which of the two SigLIPs it is.
    tokenizer = "clipa" if bert else ("siglip2" if vocab_size >= LARGE_VOCABULARY else "siglip")
    config = TextConfig(
        width=table.integer("width", 512), layers=table.integer("layers", 12), heads=table.integer("heads", 8),
        context_length=table.integer("context_length", 77), vocab_size=vocab_size,
        mlp_ratio=table.number("mlp_ratio", 4.0), norm_eps=table.table("norm_kwargs", {}).number("eps", 1e-5),
        projection_bias=table.flag("proj_bias"),
        activation="gelu_tanh" if tanh else ("gelu" if bidirectional else None),
        tokenizer=tokenizer if bidirectional else ("bpe" if vocab_size in OPENAI_SIZES else "own"),
        pad_id=int(bidirectional and tokenizer == "siglip"),
        family="siglip_text" if bidirectional else "transformer",
    )  # fmt: skip
    table.refuse_rest(HARMLESS if siglip or bert else HARMLESS - {"hf_tokenizer_name"}, where)
    return config


def _preprocess(table: ConfigTable, where: str) -> PreprocessConfig:
    default = PreprocessConfig()
    interpolation = table.text("interpolation", default.interpolation)
    mode = table.text("resize_mode", default.resize_mode)
    if interpolation not in ("bicubic", "bilinear") or mode not in ("shortest", "squash", "longest"):
        raise WeightsError(
            f"{where}: preprocessing with interpolation {interpolation!r}, resize_mode {mode!r} is not known."
        )
    mean, std = table.rgb("mean", default.mean), table.rgb("std", default.std)
    return PreprocessConfig(mean, std, interpolation, mode)  # type: ignore[arg-type]  # checked above


def preprocess_cfg(config: ModelConfig) -> dict[str, object]:
    """Our preprocessing as open_clip's ``preprocess_cfg``. Raises WeightsError for what it cannot express."""
    preprocess = config.preprocess
    if preprocess.resize_to not in (0, config.vision.image_size):
        raise WeightsError(
            f"{config.name} resizes to {preprocess.resize_to} before the crop, which open_clip's config cannot express."
        )
    return {
        "size": [config.vision.image_size] * 2, "mode": "RGB", "mean": list(preprocess.mean), "std": list(preprocess.std),
        "interpolation": preprocess.interpolation, "resize_mode": preprocess.resize_mode, "fill_color": 0,
    }  # fmt: skip


def model_cfg(config: ModelConfig) -> dict[str, object]:
    """Our config as open_clip's ``model_cfg``; ``config_of`` is the inverse. Raises WeightsError for what it cannot express."""
    vision, text = config.vision, config.text
    values: dict[str, object] = {"embed_dim": config.embed_dim, "init_logit_scale": config.logit_scale}
    if config.logit_bias is not None:
        values["init_logit_bias"] = config.logit_bias
    text_cfg: dict[str, object] = {
        "context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width,
        "heads": text.heads, "layers": text.layers, "mlp_ratio": text.mlp_ratio,
    }  # fmt: skip
    if isinstance(vision, SiglipConfig):
        return {**values, "custom_text": True, **_siglip_cfg(config, vision, text_cfg)}
    clipa = text.tokenizer == "clipa" and isinstance(vision, VitConfig)
    if (text.family != "transformer" and not clipa) or text.activation not in (None, config.activation):
        raise WeightsError(f"{config.name}: open_clip's config cannot express these two towers together.")
    if text.projection_bias:
        raise WeightsError(
            f"{config.name} has a projection with bias, which open_clip's CLIP does not load; write it as diptych."
        )
    if clipa:
        text_cfg |= {
            "pool_type": "last", "no_causal_mask": True,
            "hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True},
        }  # fmt: skip
    tower = {"image_size": vision.image_size, **_vision_cfg(config)}
    return {**values, "text_cfg": text_cfg, "vision_cfg": tower, "quick_gelu": config.activation == "quickgelu"}


def _vision_cfg(config: ModelConfig) -> dict[str, object]:
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        head_width = vision.width * STRIDE // vision.heads
        return {"layers": list(vision.layers), "width": vision.width, "head_width": head_width}
    if not isinstance(vision, VitConfig):
        raise WeightsError(f"{config.name}: open_clip has no image tower of the family {vision.family!r}.")
    tower: dict[str, object] = {
        "layers": vision.layers, "width": vision.width, "head_width": vision.width // vision.heads,
        "patch_size": vision.patch_size, "mlp_ratio": vision.mlp_ratio,
    }  # fmt: skip
    if vision.layer_scale is not None:
        tower["ls_init_value"] = vision.layer_scale
    if not vision.norm_before:
        tower["no_ln_pre"] = True
    if vision.pool == "patches":
        tower |= {"pool_type": "avg", "final_ln_after_pool": True}
    return tower


def _siglip_cfg(config: ModelConfig, vision: SiglipConfig, text_cfg: dict[str, object]) -> dict[str, object]:
    text, sizes = config.text, (vision.width, vision.layers, vision.heads)
    size_name = next((name for name, known in TIMM_SIZES.items() if known[:3] == sizes), None)
    timm = f"vit_{size_name}_patch{vision.patch_size}_siglip_{vision.image_size}"
    if size_name is None or config.activation != ("gelu_tanh" if TIMM_TANH.match(timm) else "gelu"):
        raise WeightsError(
            f"{config.name}: open_clip has this image tower only through timm's {timm}, whose size or activation differs "
            f"(this model's is {config.activation}); write it as hf."
        )
    text_cfg = text_cfg | {
        "no_causal_mask": True, "proj_bias": text.projection_bias, "pool_type": "last", "norm_kwargs": {"eps": text.norm_eps},
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2" if text.tokenizer == "siglip2" else "timm/ViT-B-16-SigLIP",
    }  # fmt: skip
    if (text.activation or config.activation) == "gelu_tanh":
        text_cfg["act_kwargs"] = {"approximate": "tanh"}
    tower = {"image_size": vision.image_size, "timm_model_name": timm, "timm_model_pretrained": False}
    return {"text_cfg": text_cfg, "vision_cfg": {**tower, "timm_pool": "map", "timm_proj": "none"}}
