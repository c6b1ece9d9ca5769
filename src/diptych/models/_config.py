"""An architecture as data: frozen dataclasses that presets fill and weight files carry.

Sizes, activation and preprocessing together, because weights are useless when any of them is guessed wrong. The activation
belongs to the whole model: CLIP's towers share it, unless the text's says otherwise. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diptych import config as options
from diptych.errors import ConfigError

LARGEST = 1 << 24
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
Activation = Literal["gelu", "quickgelu", "gelu_tanh"]


@dataclass(frozen=True)
class VitConfig:
    """A vision transformer; ``mlp_ratio`` times ``width``, rounded down, is the hidden width of its MLPs."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    """Initial factor of each residual branch; None has no such parameters."""
    norm_eps: float = 1e-5
    norm_before: bool = True
    """A norm before the first block; CLIPA has none."""
    pool: Literal["class", "patches"] = "class"
    """What becomes the picture's feature: the class token, or the mean of the patches, normed afterwards (CLIPA)."""
    family: Literal["vit"] = "vit"


@dataclass(frozen=True)
class SiglipConfig:
    """SigLIP's vision transformer: no class token, attention pooling; ``norm_eps`` is that of its layer norms."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    family: Literal["siglip"] = "siglip"


@dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: ``layers`` blocks in each of four stages, ``width`` channels after the stem."""

    image_size: int
    layers: tuple[int, int, int, int]
    width: int
    heads: int
    family: Literal["resnet"] = "resnet"


VisionConfig = VitConfig | SiglipConfig | ResNetConfig


@dataclass(frozen=True)
class TextConfig:
    """A transformer over token ids: "transformer" is causal and pools the end token, "siglip_text" neither.

    ``tokenizer`` names what makes the ids; ``pad_id`` fills up a text that is shorter than the context. ``activation`` None
    takes the model's.
    """

    width: int
    layers: int
    heads: int
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5
    projection_bias: bool = False
    activation: Activation | None = None
    tokenizer: Literal["bpe", "siglip", "siglip2", "clipa"] = "bpe"
    pad_id: int = 0
    family: Literal["transformer", "siglip_text"] = "transformer"


@dataclass(frozen=True)
class PreprocessConfig:
    """How pictures must be prepared for these weights; ``mean`` and ``std`` are of pixels in 0..1, in RGB order."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    resize_to: int = 0
    """The short side before the centre is cropped, in pixels; 0 is the crop's own size."""


@dataclass(frozen=True)
class ModelConfig:
    """Both towers and what they share. ``logit_scale`` is the initial logarithm of the scale; ``logit_bias`` None has none."""

    name: str
    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    activation: Activation = "gelu"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as TOML or JSON hold them; ``model_config_from_dict`` is the inverse."""
        return options.to_dict(self)


FAMILIES: dict[str, type] = {"vit": VitConfig, "siglip": SiglipConfig, "resnet": ResNetConfig}


def model_config_from_dict(values: Mapping[str, Any], where: str = "model config") -> ModelConfig:
    """Build a config from plain values. Raises ConfigError for an unknown or missing key, or a value that cannot be."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, got {values!r}.")
    rest = dict(values)
    vision = rest.pop("vision", None)
    if not isinstance(vision, Mapping) or str(vision.get("family", "vit")) not in FAMILIES:
        raise ConfigError(
            f"{where}: [vision] must be a table whose family is one of {', '.join(FAMILIES)}; got {vision!r}."
        )
    tower: VisionConfig = options.from_dict(FAMILIES[vision.get("family", "vit")], vision, f"{where}, [vision]")
    text = options.from_dict(TextConfig, _table(rest, "text", where), f"{where}, [text]")
    look = options.from_dict(PreprocessConfig, _table(rest, "preprocess", where), f"{where}, [preprocess]")
    plain = options.from_dict(_Plain, rest, where)
    return checked(ModelConfig(vision=tower, text=text, preprocess=look, **dataclasses.asdict(plain)), where)


@dataclass(frozen=True)
class _Plain:
    """The leaves of ModelConfig, for checking their names and types."""

    name: str
    embed_dim: int
    activation: Activation = "gelu"
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None


def _table(values: dict[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = values.pop(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: [{key}] must be a table, got {table!r}.")
    return table


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """Return the config if its sizes fit together. Raises ConfigError."""
    vision, text = config.vision, config.text
    for tower, part in (("image tower", vision), ("text tower", text), ("model", config)):
        for item in dataclasses.fields(part):
            value = getattr(part, item.name)
            for one in value if isinstance(value, tuple) else (value,):
                # Sizes are at least 1, and no architecture that anybody runs comes near the bound.
                if type(one) is int and item.name not in ("pad_id", "resize_to") and not 1 <= one <= LARGEST:
                    raise ConfigError(f"{where}: the {tower}'s {item.name} is {one}; expected 1 to {LARGEST:,}.")
                if isinstance(one, float) and not (0 < one <= 256 if item.name == "mlp_ratio" else math.isfinite(one)):
                    raise ConfigError(
                        f"{where}: the {tower}'s {item.name} is {one}; expected a finite number, as models have."
                    )
    if isinstance(vision, VitConfig | SiglipConfig):
        # SigLIP's SO400M at 384 pixels leaves a strip of 6 unseen; CLIP's models fit.
        if vision.family == "vit" and vision.image_size % vision.patch_size:
            raise ConfigError(
                f"{where}: image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}."
            )
        if vision.width % vision.heads:
            raise ConfigError(
                f"{where}: the image tower's width {vision.width} is no multiple of its {vision.heads} heads."
            )
    elif vision.image_size % 32:
        raise ConfigError(f"{where}: image_size {vision.image_size} is no multiple of 32, as a ResNet needs.")
    if isinstance(vision, SiglipConfig) and vision.width != config.embed_dim:
        raise ConfigError(f"{where}: embed_dim {config.embed_dim} must be the siglip tower's width {vision.width}.")
    if text.width % text.heads:
        raise ConfigError(f"{where}: the text tower's width {text.width} is no multiple of its {text.heads} heads.")
    return config
