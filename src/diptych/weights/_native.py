"""Diptych's own checkpoint format: safetensors with the architecture in the metadata.

The metadata is one JSON text under the key ``diptych``: the format's version, the model's config (with activation,
tokenizer and preprocessing), and notes. Only a state that can be read back is written; building models is not done here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.errors import ConfigError, WeightsError
from diptych.files import StrPath, replacing
from diptych.models import ModelConfig, TwoTower, create_model, model_config_from_dict
from diptych.tensorfiles.read import Stored
from diptych.weights._rename import listed

VERSION = 1
WEIGHT_FILE = "model.safetensors"


def save(path: StrPath, model: TwoTower, notes: Mapping[str, str] | None = None) -> None:
    """Write a model's weights to the file ``path`` as ``save_state`` does."""
    save_state(path, model.config, model.state_dict(), notes)


def save_state(
    path: StrPath, config: ModelConfig, state: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write a state dict with everything needed to use it in the file's metadata: beside ``path``, then renamed.

    ``state`` has the names and shapes of ``TwoTower.state_dict()`` for ``config``, on any device, in any floating-point dtype.
    Raises WeightsError, and writes nothing, when it does not: such a file could not be read back. Raises OutputError when
    the disk refuses.
    """
    path = Path(path).expanduser()
    _check_state(path, config, state)
    metadata = {
        "layout": VERSION, "config": config.to_dict(), "tokenizer": config.text.tokenizer, "notes": dict(notes or {}),
    }  # fmt: skip
    with replacing(path, "weight file") as beside:
        try:
            save_file(_unshared(state), beside, metadata={"diptych": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def _check_state(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    expected = create_model(config, device="meta").state_dict()
    problems = [
        f"{title}: {listed(sorted(names))}"
        for title, names in (("unknown", set(state) - set(expected)), ("missing", set(expected) - set(state)))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path}: not written, since the state is not that of {config.name}; {'; '.join(problems)}. "
            "Merge adapters into the weights, or export them alone."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{path}: not written: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)} for "
                f"{config.name}."
            )
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.layout is not torch.strided:
            raise WeightsError(
                f"{path}: not written: {name} is no plain tensor of numbers; gather the whole state first."
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise WeightsError(
                f"{path}: not written: {name} is {tensor.dtype}, expected {expected[name].dtype} or the like."
            )


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory, which safetensors refuses (tied weights)."""
    plain: dict[str, Tensor] = {}
    addresses = set[int]()
    for name, tensor in state.items():
        values = tensor.detach().cpu().contiguous()
        # Views of one storage overlap only when they begin at the same number: the model's are whole tensors or chunks.
        plain[name] = values.clone() if values.data_ptr() in addresses else values
        addresses.add(values.data_ptr())
    return plain


def config_in(stored: Stored) -> ModelConfig:
    """The architecture in the metadata. Raises WeightsError when it is damaged or newer than this Diptych."""
    path = stored.path
    try:
        metadata = json.loads(stored.metadata["diptych"])
        version, config = metadata["layout"], metadata["config"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its metadata is damaged ({error}).") from error
    if version != VERSION:
        raise WeightsError(f"{path}: written in version {version}, this Diptych reads {VERSION}; update Diptych.")
    try:
        return model_config_from_dict(config)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
