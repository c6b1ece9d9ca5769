"""Checkpoints of the DeCLIP family (Li et al. 2022): CLIP, SLIP, FILIP, DeCLIP and DeFILIP of one code base.

OpenAI's names with the text tower under ``encode_text.`` (SLIP: ``text_encoder.``), a projection with bias, QuickGELU, and a
vocabulary of 49,409: a mask token before start and end. On reading, the mask's row moves behind them, so that ids are
OpenAI's and the end token has every CLIP's id; writing moves it back. The heads of the other losses are left out.
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
from diptych.models.vit import VitConfig
from diptych.tensorfiles.read import Stored
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description, require_clip
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._infer import config_from_shapes
from diptych.weights._rename import Rule, Transform

MASK_ID, VOCAB_SIZE = 49406, 49409
PREPROCESS = PreprocessConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "shortest", 256)
PREFIXES = ("encode_text.", "text_encoder.")


def _mask_last(tensor: Tensor, _: int) -> Sequence[Tensor]:
    if tensor.shape[0] != VOCAB_SIZE:
        return [tensor]
    return [torch.cat([tensor[:MASK_ID], tensor[MASK_ID + 1 :], tensor[MASK_ID : MASK_ID + 1]])]


def _mask_before(parts: Sequence[Tensor]) -> Tensor:
    tensor = parts[0]
    if tensor.shape[0] != VOCAB_SIZE:
        return tensor
    return torch.cat([tensor[:MASK_ID], tensor[-1:], tensor[MASK_ID:-1]])


@CHECKPOINT_FORMATS.register("declip")
class DeClip(CheckpointFormat):
    """Names of DeCLIP."""

    name = "declip"
    summary = "DeCLIP family (SLIP, FILIP, DeCLIP, DeFILIP); QuickGELU, ImageNet's mean and std"
    ignored = (
        "projector.*", "predictor*", "text_label_predictor.*", "image_mapping.*", "text_mapping.*", "logit_scale_dense",
        "visual.fc.*", "visual.avgpool.*", "nn_replacer*", "queue*", "encode_text.attn_mask",
    )  # fmt: skip

    def recognizes(self, stored: Stored) -> bool:
        """An image tower under ``visual.`` and a text tower under DeCLIP's names."""
        return any(name.startswith("visual.") for name in stored.tensors) and _prefix(stored) is not None

    def describe(self, stored: Stored) -> Description:
        """By the shapes: heads are always 64 wide."""
        config = config_from_shapes(stored.tensors, self._scheme(stored), str(stored.path), heads_of_64=True)
        config = dataclasses.replace(config, name="declip", activation="quickgelu", preprocess=PREPROCESS)
        if isinstance(config.vision, VitConfig):  # the family's dense features are tokens before the last norm
            config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, norm_tokens=False))
        return Description(config, "DeCLIP's weights", preprocess_known=True)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """DeCLIP's names."""
        require_clip(config, self.name)
        rows = Transform(_mask_last, _mask_before)
        return [
            dataclasses.replace(rule, transform=rows) if rule.ours == ("text.token_embedding.weight",) else rule
            for rule in clip_rules(config, self._scheme(stored))
        ]

    def _scheme(self, stored: Stored | None) -> NamingScheme:
        return NamingScheme(text=(stored and _prefix(stored)) or PREFIXES[0], scale_shape=1)

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``ckpt.pth.tar`` with the model's names behind ``module.``, as the original saves it."""
        if not config.text.projection_bias or config.text.vocab_size != VOCAB_SIZE or config.activation != "quickgelu":
            raise WeightsError(
                f"{config.name} is not DeCLIP-shaped (a projection with bias, a vocabulary of {VOCAB_SIZE}, quickgelu); "
                "write it as openclip."
            )
        path = folder / "ckpt.pth.tar"
        with replacing(path, "weight file") as beside:
            torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, beside)
        return path


def _prefix(stored: Stored) -> str | None:
    return next((prefix for prefix in PREFIXES if f"{prefix}token_embedding.weight" in stored.tensors), None)
