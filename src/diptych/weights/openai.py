"""OpenAI's own files: TorchScript archives, and plain state dicts with the same names (Radford et al. 2021).

Always QuickGELU, heads 64 wide, CLIP's mean and std. A plain state dict with these names may as well be open_clip's: then
the format ``openclip`` takes it, unless the file's name says OpenAI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.files import replacing
from diptych.models import ModelConfig
from diptych.tensorfiles.read import Stored
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description, require_clip
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._infer import config_from_shapes
from diptych.weights._rename import Rule


@CHECKPOINT_FORMATS.register("openai")
class OpenAI(CheckpointFormat):
    """Names of OpenAI's release."""

    name = "openai"
    summary = "OpenAI's CLIP (TorchScript archive or plain state dict); always QuickGELU"
    ignored = ("input_resolution", "context_length", "vocab_size")
    scheme = NamingScheme()

    def recognizes(self, stored: Stored) -> bool:
        """A TorchScript archive, a state dict with OpenAI's three numbers, or a file whose name says so."""
        names = stored.tensors
        if "token_embedding.weight" not in names or not {"visual.proj", "visual.attnpool.c_proj.weight"} & set(names):
            return False
        marked = "input_resolution" in stored.tensors or "openai" in stored.path.stem.lower()
        return stored.kind == "torchscript" or (stored.kind == "torch" and marked)

    def describe(self, stored: Stored) -> Description:
        """By the shapes."""
        config = config_from_shapes(stored.tensors, self.scheme, str(stored.path), heads_of_64=True)
        config = dataclasses.replace(config, activation="quickgelu")
        return Description(config, "OpenAI's weights", preprocess_known=True)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """OpenAI's names."""
        require_clip(config, self.name)
        return clip_rules(config, self.scheme)

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """A state dict ``model-openai.pt`` with OpenAI's three numbers, which say that it is QuickGELU's."""
        if config.activation != "quickgelu":
            raise WeightsError(
                f"{config.name} uses {config.activation}, and OpenAI's format always means quickgelu: whoever loaded it would "
                "get wrong features. Write it as openclip or hf, whose configs name the activation."
            )
        numbers = {
            "input_resolution": config.vision.image_size,
            "context_length": config.text.context_length,
            "vocab_size": config.text.vocab_size,
        }
        path = folder / "model-openai.pt"
        with replacing(path, "weight file") as beside:
            torch.save({**tensors, **{key: torch.tensor(value) for key, value in numbers.items()}}, beside)
        return path
