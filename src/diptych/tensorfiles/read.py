"""Files to named tensors, safely: whatever the suffix says, the first bytes decide how a file is read.

safetensors are mapped; torch files go through ``weights_only``; TorchScript and Paddle through
``_pickled_arrays`` and ``_pickled_modules``; a sharded index is followed, and so is the manifest of a checkpoint
folder of ours. A checkpoint's state dicts are all handed on, by the
keys that lead to them: which is the model, and under which prefix, is for ``weights``, which knows names.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles._pickle_handlers import raising_weights_error, refuse_odd_keys
from diptych.tensorfiles._pickled_arrays import read_pdparams
from diptych.tensorfiles._pickled_checkpoints import read_checkpoint
from diptych.tensorfiles._pickled_modules import is_torchscript, read_torchscript
from diptych.tensorfiles._state_dicts import plain, state_dicts
from diptych.tensorfiles.checkpoint_folder import CheckpointFolder
from diptych.tensorfiles.manifest import MANIFEST

Kind = Literal["safetensors", "torch", "torchscript", "paddle"]
ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Stored:
    """The tensors of a file by name. ``path`` is the file or index; ``notes`` a checkpoint's plain values, such as its epoch.

    ``groups`` has all state dicts of a checkpoint, by the keys that lead to them, of which ``tensors`` is the largest; ``root``
    the checkpoint's own entries; ``passed_over`` the classes of objects in it that are no data.
    """

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int | float | str] = field(default_factory=dict)
    groups: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    root: Mapping[str, object] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()


def read(path: Path) -> Stored:
    """The tensors of a weight file or sharded index. Raises WeightsError, of one line, for whatever is wrong with it."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error
    _refuse_pages(path, head)
    if path.name == MANIFEST:
        return _checkpoint_folder(path)
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".safetensors" or _is_safetensors(head):
        return _safetensors(path)
    if head.startswith(ZIP):
        return _torchscript(path) if is_torchscript(path) else _torch(path, mapped=True)
    if path.suffix == ".pdparams":
        return Stored(path, "paddle", read_pdparams(path))
    if head[:1] != b"\x80":
        raise WeightsError(
            f"{path}: neither safetensors nor a torch, TorchScript or Paddle file (its first bytes are {head[:8]!r})."
        )
    return _torch(path, mapped=False)


def _refuse_pages(path: Path, head: bytes) -> None:
    """Things that are often saved under a weight file's name."""
    text = head.lstrip().lower()
    if not head:
        raise WeightsError(f"{path}: the file is empty.")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: a Git LFS pointer, not the weights; run git lfs pull, or download the file itself."
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        raise WeightsError(f"{path}: a web page saved under a weight file's name; download the file itself.")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def _safetensors(path: Path) -> Stored:
    with raising_weights_error(path, "not a whole safetensors file"), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return Stored(path, "safetensors", tensors, dict(file.metadata() or {}))


def _torchscript(path: Path) -> Stored:
    return Stored(path, "torchscript", read_torchscript(path))


def _torch(path: Path, mapped: bool) -> Stored:
    """A file of ``torch.save``: nothing but tensors and plain values is unpickled; objects of classes are read past."""
    passed_over: tuple[str, ...] = ()
    with raising_weights_error(path, "not a whole torch file"):
        refuse_odd_keys(path)
        try:
            state: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if not any(word in str(error) for word in ("GLOBAL", "Unsupported", "not allowed", "Can only")):
                raise
            state, passed_over = read_checkpoint(path)
        groups = state_dicts(state)
    for name, tensor in ((name, tensor) for group in groups.values() for name, tensor in group.items()):
        # On the meta device there are no numbers; sparse and quantized ones are no model's.
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{path}: {name} is no plain tensor of numbers ({tensor.layout}, on {tensor.device}).")
    if not groups:
        raise WeightsError(f"{path}: a torch file without named tensors (it holds {type(state).__name__}).")
    root = {str(key): value for key, value in (plain(state) or {}).items()}
    notes = {key: value for key, value in root.items() if isinstance(value, int | float | str)}
    return Stored(path, "torch", max(groups.values(), key=len), {}, notes, groups, root, passed_over)


def _checkpoint_folder(path: Path) -> Stored:
    """A checkpoint folder of Diptych's, by its manifest: its weights, whole, and no optimizer state. Digests are compared."""
    folder = CheckpointFolder(path.parent)
    folder.check()
    state = folder.tree(lambda name: folder.whole(name) if name.startswith("weights/") else None)
    groups = state_dicts(state)
    if not groups:
        raise WeightsError(f"{path.parent}: a checkpoint without weights.")
    return Stored(path, "safetensors", max(groups.values(), key=len), groups=groups, root=state)


def _sharded(path: Path) -> Stored:
    """The files that an index of Hugging Face's lists, together."""
    wanted: dict[str, list[str]] = {}
    with raising_weights_error(path, "not an index of shards"):
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            if not isinstance(file, str) or file == path.name or len(file) > 255:
                raise WeightsError(f"{path}: not an index of shards ({str(file)[:80]!r} is no shard).")
            wanted.setdefault(file, []).append(name)
    if not wanted:
        raise WeightsError(f"{path}: an index that lists no shard.")
    tensors: dict[str, Tensor] = {}
    kind: Kind = "safetensors"
    for file, names in sorted(wanted.items()):
        if Path(file).name != file:
            raise WeightsError(f"{path}: names a shard outside of its folder: {file!r}; refused.")
        if not (path.parent / file).is_file():
            raise WeightsError(f"{path}: the shard {file} is not beside it; download it too.")
        shard = read(path.parent / file)
        kind, absent = shard.kind, [name for name in names if name not in shard.tensors]
        if absent:
            raise WeightsError(f"{path}: {absent[0]} is not in {file}, where the index says it is.")
        tensors.update({name: shard.tensors[name] for name in names})
    return Stored(path, kind, tensors)
