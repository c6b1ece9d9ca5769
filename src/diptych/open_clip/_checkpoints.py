"""Weights into models of this package: any format that Diptych reads, under open_clip's names, checked, resized, loaded.

Nothing is ever unpickled by Python's own unpickler, so ``weights_only`` changes nothing: False is as safe as True.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych import log
from diptych.open_clip._absent import refuse
from diptych.open_clip._errors import MissingError, ModelError
from diptych.open_clip._text import causal_mask
from diptych.open_clip.convert import convert_state_dict
from diptych.open_clip.model import (
    NO_PARAMETERS,
    TEXT_PARTS,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from diptych.tensorfiles.read import read
from diptych.weights import open_clip_state

POSITIONS = "positional_embedding"
PREFERRED = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip


def load_state_dict(
    checkpoint_path: str | Path, device: str | torch.device = "cpu", weights_only: bool = True
) -> dict[str, Tensor]:
    """The tensors of a file by their own names, without ``module.`` before them; of a checkpoint, its ``state_dict``."""
    del weights_only  # see the top of this file
    stored = read(Path(checkpoint_path).expanduser())
    tensors = dict(stored.groups.get("state_dict") or stored.tensors)
    if tensors and next(iter(tensors)).startswith("module."):
        tensors = {name.removeprefix("module."): item for name, item in tensors.items()}
    if stored.kind == "torchscript":
        tensors = {name: item for name, item in tensors.items() if name not in NO_PARAMETERS}
    return {name: item.to(device, copy=True) for name, item in tensors.items()}  # not mapped: see load_tensors


def load_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    strict: bool = True,
    weights_only: bool = True,
    device: str | torch.device = "cpu",
) -> Any:
    """Load weights of any format into ``model``; positions are resized to its sizes. Gives torch's incompatible keys.

    Raises ModelError when names are missing or left over (unless ``strict`` is False) or shapes differ.
    """
    del weights_only, device  # tensors are mapped, and copied to where the model is
    if Path(checkpoint_path).suffix in (".npz", ".npy"):
        refuse("load_big_vision_weights")
    return load_tensors(model, open_clip_state(checkpoint_path).tensors, str(checkpoint_path), strict)


def load_tensors(model: nn.Module, tensors: dict[str, Any], where: str, strict: bool = True) -> Any:
    """As ``load_checkpoint``, of tensors that are read already."""
    tensors = _fitted(model, convert_state_dict(model, dict(tensors)))
    own = model.state_dict()
    resize_pos_embed(tensors, model)
    if all(
        own[name].shape[1:] == tensors[name].shape[1:] for name in own if name in tensors and name.endswith(POSITIONS)
    ):
        resize_text_pos_embed(tensors, model)
    odd = [name for name, item in tensors.items() if name in own and own[name].shape != item.shape]
    missing, left_over = (
        sorted(first - second) for first, second in ((set(own), set(tensors)), (set(tensors), set(own)))
    )
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    problems = {"missing": missing, "left over": left_over} if strict else {}
    problems["of another shape"] = [f"{name} {list(tensors[name].shape)}, not {list(own[name].shape)}" for name in odd]
    if any(problems.values()):
        parts = "; ".join(f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in problems.items() if names)
        raise ModelError(f"{where}: the tensors do not fit the model; {parts}.")
    # A model on the meta device takes the tensors themselves, in its own number format. Copies, for what was read is mapped: a
    # program that saves its model to the file that it came from would write over the weights that it reads.
    assign = any(item.is_meta for item in own.values())
    if assign:
        tensors = {name: item.to(own[name].dtype, copy=True) if name in own else item for name, item in tensors.items()}
    return model.load_state_dict(tensors, strict=False, assign=assign)


def _fitted(model: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """With the names of the model's class, and scale and bias in its shapes."""
    if hasattr(model, "text"):
        tensors = convert_to_custom_text_state_dict(tensors)
    elif any(name.startswith("text.") for name in tensors):
        under = tuple(f"text.{part}" for part in TEXT_PARTS)
        tensors = {
            name.removeprefix("text.") if name.startswith(under) else name: item for name, item in tensors.items()
        }
    for name in ("logit_scale", "logit_bias"):
        own: Any = getattr(model, name, None)
        if own is not None and name in tensors and tensors[name].ndim != own.ndim:
            tensors[name] = tensors[name].reshape(own.shape)
        elif own is not None and name == "logit_bias" and name not in tensors:
            log.warn("the weights have no logit_bias; it begins at 0.")
            tensors[name] = torch.zeros(own.shape)
    return tensors


def materialized(model: nn.Module) -> nn.Module:
    """The model with its masks, which no file holds, in main memory after it was built on the meta device."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta and name == "attn_mask":
                module.register_buffer(name, causal_mask(buffer.shape[0]), persistent=False)
            elif buffer.is_meta and name == "num_batches_tracked":
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    left = [name for name, item in (*model.named_parameters(), *model.named_buffers()) if item.is_meta]
    assert not left, f"without values: {left[:4]}"
    return model


def load_tower(tower: nn.Module, path: str | Path, prefix: str) -> None:
    """Load the weights of one tower from a file whose names may begin with ``prefix``. Raises ModelError unless all fit."""
    tensors = load_state_dict(path)
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
    own = tower.state_dict()
    wrong = sorted({*own} ^ {*tensors}) + [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    if wrong:
        raise ModelError(
            f"{path}: not the weights of this tower; {len(wrong)} names or shapes differ: {', '.join(wrong[:4])}."
        )
    tower.load_state_dict(tensors)


def weight_file_in(folder: Path) -> Path:
    """The weight file of a folder: the names that open_clip writes first, then safetensors. Raises MissingError."""
    files = sorted(path for ending in (".safetensors", ".bin", ".pth") for path in folder.glob(f"*{ending}"))
    named = [path for path in files if path.name in PREFERRED]
    if named:
        return min(named, key=lambda path: PREFERRED.index(path.name))
    safe = [path for path in files if path.suffix == ".safetensors"] or files
    if not safe:
        raise MissingError(
            f"{folder}: there are no weights (*.safetensors, *.bin, *.pth); load_weights=False takes none."
        )
    if len(safe) > 1:
        log.warn(f"{folder}: {len(safe)} weight files; {safe[0].name} is taken.")
    return safe[0]
