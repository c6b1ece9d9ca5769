"""Checkpoints of the DeCLIP family (Li et al. 2022): CLIP, SLIP, FILIP, DeCLIP and DeFILIP of one code base.

OpenAI's names with the text tower under ``encode_text.`` (SLIP: ``text_encoder.``), a projection with bias, QuickGELU, and a
vocabulary of 49,409: a mask token stands before start and end. Here the mask's row moves behind them, so that ids are
OpenAI's and the end token stays where every CLIP has it; writing moves it back. The heads of the other losses are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.files import replacing
from diptych.models import ModelConfig, PreprocessConfig
from diptych.tensorfiles.read import Stored
from diptych.weights import CHECKPOINT_FORMATS
from diptych.weights._clip_names import NamingScheme, clip_rules, shapes_tell
from diptych.weights._format import CheckpointFormat, Found, only_clip
from diptych.weights._rename import Rule, Transform

MASK, WORDS = 49406, 49409
LOOK = PreprocessConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "shortest", 256)


def _mask_last(tensor: Tensor, _: int) -> Sequence[Tensor]:
    if tensor.shape[0] != WORDS:
        return [tensor]
    return [torch.cat([tensor[:MASK], tensor[MASK + 1 :], tensor[MASK : MASK + 1]])]


def _mask_before(parts: Sequence[Tensor]) -> Tensor:
    tensor = parts[0]
    return tensor if tensor.shape[0] != WORDS else torch.cat([tensor[:MASK], tensor[-1:], tensor[MASK:-1]])


@CHECKPOINT_FORMATS.register("declip")
class DeClip(CheckpointFormat):
    """Names of DeCLIP."""

    name = "declip"
    about = "DeCLIP family (SLIP, FILIP, DeCLIP, DeFILIP); QuickGELU, ImageNet's mean and std"
    ignored = (
        "projector.*", "predictor*", "text_label_predictor.*", "image_mapping.*", "text_mapping.*", "logit_scale_dense",
        "visual.fc.*", "visual.avgpool.*", "nn_replacer*", "queue*", "encode_text.attn_mask",
    )  # fmt: skip

    def recognises(self, stored: Stored) -> bool:
        """An image tower under ``visual.`` and a text tower under DeCLIP's names."""
        return any(name.startswith("visual.") for name in stored.tensors) and _prefix(stored) is not None

    def describe(self, stored: Stored) -> Found:
        """By the shapes: heads are always 64 wide."""
        config = shapes_tell(stored.tensors, self._dialect(stored), str(stored.path), heads_of_64=True)
        config = dataclasses.replace(config, name="declip", activation="quickgelu", preprocess=LOOK)
        return Found(config, "DeCLIP's weights", True, preprocess_known=True)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """DeCLIP's names."""
        only_clip(config, self.name)
        rules = clip_rules(config, self._dialect(stored))
        words = Transform(_mask_last, _mask_before)
        return [
            dataclasses.replace(rule, change=words) if rule.ours == ("text.token_embedding.weight",) else rule
            for rule in rules
        ]

    def _dialect(self, stored: Stored | None) -> NamingScheme:
        return NamingScheme(text=(stored and _prefix(stored)) or "encode_text.", scale_shape=1)

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``ckpt.pth.tar`` with the model's names behind ``module.``, as the original saves it."""
        if not config.text.projection_bias or config.text.vocab_size != WORDS or config.activation != "quickgelu":
            raise WeightsError(
                f"{config.name} is not DeCLIP-shaped (a projection with bias, {WORDS} words, quickgelu); write it as openclip."
            )
        path = folder / "ckpt.pth.tar"
        with replacing(path, "weight file") as beside:
            torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, beside)
        return path


def _prefix(stored: Stored) -> str | None:
    known = ("encode_text.", "text_encoder.")
    return next((one for one in known if f"{one}token_embedding.weight" in stored.tensors), None)
