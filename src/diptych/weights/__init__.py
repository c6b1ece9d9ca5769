"""The one door through which weights enter and leave.

``load(path)`` gives a model from a file of ours or a run's folder; ``save`` writes one whose metadata carries the
architecture, the activation and the preprocessing, so that nothing has to be guessed. ``create_model_and_transforms``
and ``get_tokenizer`` are the spellings that open_clip's users know. Layouts of other systems are not here yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.devices import get_device
from diptych.errors import WeightsError
from diptych.image import EvalTransform, TrainTransform
from diptych.models import ModelConfig, TwoTower, create_model, model_config
from diptych.text import Tokenizer
from diptych.text import get_tokenizer as tokenizer_named
from diptych.weights import _native

WEIGHT_FILE = "model.safetensors"


def load(source: str | Path, device: str = "cpu") -> TwoTower:
    """A model, ready for inference, from a ``model.safetensors`` of Diptych or a folder that holds one.

    ``device`` is a device name such as "cpu" or "auto". Raises WeightsError for a file that is missing, cut short or of
    another layout.
    """
    model = _native.read(_weight_file(Path(source)))
    return model.to(get_device(device).torch_device).eval()


def save(path: Path, model: TwoTower, notes: Mapping[str, str] | None = None) -> None:
    """Write the weights in one step, with everything needed to use them in the file's metadata. Raises OutputError."""
    _native.write(path, model, notes or {})


def create(name: str, pretrained: str = "") -> TwoTower:
    """A model to train: architecture ``name`` with random weights, or with those of ``pretrained``.

    Raises WeightsError when the weights are of another architecture.
    """
    if not pretrained:
        return create_model(name)
    model, asked = load(pretrained), model_config(name)
    same = _shape_of(model.config) == _shape_of(asked)
    if not same:
        raise WeightsError(
            f"--pretrained {pretrained} holds a {model.config.name!r}, which is not the architecture of --model {name!r}; "
            f"use --model {model.config.name}."
        )
    return model.train()


def _shape_of(config: ModelConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key not in ("name", "preprocess")}


def _weight_file(path: Path) -> Path:
    if path.is_dir():
        if not (path / WEIGHT_FILE).is_file():
            raise WeightsError(
                f"{path}: no {WEIGHT_FILE} in this folder; has the run ended? A checkpoint is no weight file."
            )
        return path / WEIGHT_FILE
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; give a {WEIGHT_FILE} or a folder that holds one.")
    return path


@dataclass(frozen=True)
class Preprocess:
    """A picture to what the image tower takes: uint8 [3, H, W]; the tower normalises with its own mean and std."""

    transform: EvalTransform | TrainTransform

    def __call__(self, image: Image.Image) -> Tensor:
        """``image`` of any mode. A training transform draws its crop from torch's global random state."""
        rgb = image.convert("RGB")
        if isinstance(self.transform, EvalTransform):
            return self.transform(rgb)
        seed = int(torch.randint(2**62, ()).item())
        return torch.from_numpy(self.transform(rgb, np.random.default_rng(seed)))


def transforms(config: ModelConfig) -> tuple[Preprocess, Preprocess]:
    """The training and the evaluation preprocessing of an architecture."""
    size, look = config.vision.image_size, config.preprocess
    return (
        Preprocess(TrainTransform(size, interpolation=look.interpolation)),
        Preprocess(EvalTransform(size, resize_mode=look.resize_mode, interpolation=look.interpolation)),
    )


def create_model_and_transforms(
    model_name: str, pretrained: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[TwoTower, Preprocess, Preprocess]:
    """A model in evaluation mode, its training preprocessing and its evaluation preprocessing, as open_clip returns them.

    ``pretrained`` is a weight file or run folder; None gives random weights. Raises ConfigError, WeightsError, DeviceError.
    """
    model = create(model_name, str(pretrained) if pretrained else "")
    place = get_device(device).torch_device
    return (model.to(place).eval(), *transforms(model.config))


def get_tokenizer(model_name: str) -> Tokenizer:
    """The tokenizer of an architecture, with its context length. Raises ConfigError for an unknown name."""
    return tokenizer_named("bpe", model_config(model_name).text.context_length)


__all__ = [
    "ConfigError",
    "Preprocess",
    "create",
    "create_model_and_transforms",
    "get_tokenizer",
    "load",
    "save",
    "transforms",
]
