"""An architecture as data: frozen dataclasses that presets fill and weight files carry.

Sizes, activation and preprocessing together, because weights are useless when any of them is guessed wrong. The activation
belongs to the whole model: CLIP's towers share it, unless the text's says otherwise. What only one family of towers has
stands in that family's own file, on its ``Config``; this file names no family. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from diptych import config as options
from diptych.errors import ConfigError
from diptych.registry import Registry, did_you_mean
from diptych.text import TOKENIZERS

LARGEST = 1 << 24
CLIP_VOCABULARY = 49408
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
Activation = Literal["gelu", "quickgelu", "gelu_tanh"]
MAY_BE_ZERO = ("start_id", "end_id", "pad_id", "resize_to")


@dataclass(frozen=True)
class VisionConfig:
    """What every image tower has: the side of its images in pixels, its width, and the name of its family.

    A family's file derives its own ``Config`` from it and gives ``family`` its default.
    """

    image_size: int
    width: int = field(kw_only=True)
    family: str = field(default="", kw_only=True)

    def problem(self, embed_dim: int) -> str:
        """What does not fit together, in a clause, with what was given and expected; "" where all does."""
        return ""


@dataclass(frozen=True)
class TextConfig:
    """A transformer over token ids. ``tokenizer`` names what makes the ids; ``pad_id`` fills up a shorter text.

    ``start_id`` and ``end_id`` None are the tokenizer's own; a vocabulary of the model's own (tokenizer "own") has them here.
    ``activation`` None takes the model's. A family with more to say derives its own ``Config`` from it.
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
    tokenizer: str = "bpe"
    pad_id: int = 0
    start_id: int | None = None
    end_id: int | None = None
    family: str = "transformer"

    @property
    def mask_id(self) -> int | None:
        """The mask's id where CLIP's vocabulary has one more row for it, the last; other tokenizers know their own."""
        own = self.tokenizer == "bpe" and self.vocab_size == CLIP_VOCABULARY + 1
        return CLIP_VOCABULARY if own else None

    @property
    def searched_end(self) -> int | None:
        """The end token's id where a text's end must be looked for; None where it is the largest id, as CLIP's is."""
        return self.end_id if self.end_id is not None or self.mask_id is None else self.mask_id - 1

    @property
    def lacks_mask(self) -> bool:
        """Whether the vocabulary is CLIP's, which has no mask."""
        return self.tokenizer == "bpe" and self.vocab_size == CLIP_VOCABULARY

    def problem(self, embed_dim: int) -> str:
        """What does not fit together, in a clause, with what was given and expected; "" where all does."""
        if self.width % self.heads:
            return f"the text tower's width {self.width} is no multiple of its {self.heads} heads."
        return ""


@dataclass(frozen=True)
class PreprocessConfig:
    """How images must be prepared for these weights; ``mean`` and ``std`` are of pixels in 0..1, in RGB order."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    resize_to: int = 0
    """The short side before the center is cropped, in pixels; 0 is the crop's own size."""


@dataclass(frozen=True)
class ModelNeeds:
    """What a loss needs of a model before its weights exist: an initial bias, an initial log scale; None leaves it.

    ``mask_token`` asks for a token that stands for masked ones: CLIP's vocabulary gets one more row, its last.
    """

    logit_bias: float | None = None
    logit_scale: float | None = None
    mask_token: bool = False


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

    def with_needs(self, needs: ModelNeeds) -> ModelConfig:
        """The config with the initial scale and bias that a loss needs; one without a bias gets it.

        Raises ConfigError for a number that is not finite.
        """
        changes: dict[str, Any] = {"logit_bias": needs.logit_bias, "logit_scale": needs.logit_scale}
        changes = {name: value for name, value in changes.items() if value is not None}
        if needs.mask_token and self.text.lacks_mask:
            changes["text"] = dataclasses.replace(self.text, vocab_size=CLIP_VOCABULARY + 1)
        return checked(dataclasses.replace(self, **changes), self.name)


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """Return the config if its sizes fit together and its tokenizer is known. Raises ConfigError."""
    _check_numbers("image tower", config.vision, where)
    _check_numbers("text tower", config.text, where)
    _check_numbers("model", config, where)
    for tower in (config.vision, config.text):
        if problem := tower.problem(config.embed_dim):
            raise ConfigError(f"{where}: {problem}")
    if not is_known(TOKENIZERS, config.text.tokenizer):
        raise ConfigError(f"{where}: {did_you_mean(config.text.tokenizer, TOKENIZERS.names(), 'tokenizer')}")
    return config


def _check_numbers(owner: str, part: VisionConfig | TextConfig | ModelConfig, where: str) -> None:
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        for number in value if isinstance(value, tuple) else (value,):
            # Sizes are at least 1, and no architecture that anybody runs comes near the bound.
            if type(number) is int and item.name not in MAY_BE_ZERO and not 1 <= number <= LARGEST:
                raise ConfigError(f"{where}: the {owner}'s {item.name} is {number}; expected 1 to {LARGEST:,}.")
            allowed = not isinstance(number, float) or (
                0 < number <= 256 if item.name == "mlp_ratio" else math.isfinite(number)
            )
            if not allowed:
                raise ConfigError(
                    f"{where}: the {owner}'s {item.name} is {number}; expected a finite number, as models have."
                )


def is_known(registry: Registry[Any], name: str) -> bool:
    """Whether ``name`` is an entry, or "module:Class" of a module that is imported already.

    A config may come with a weight file of strangers, which must not choose what is imported.
    """
    module, colon, _ = name.partition(":")
    return module in sys.modules if colon else name in registry.names()
