"""Files to named tensors, safely: whatever the suffix says, the first bytes decide how a file is read.

safetensors are mapped; torch files go through ``weights_only``; TorchScript and Paddle through
``_pickled_arrays`` and ``_pickled_modules``; a sharded index is followed. Wrappers of training checkpoints (``state_dict``,
``model``) and prefixes of parallel training (``module.``, ``_orig_mod.``) are taken off. What names mean is not known here.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles._pickle_handlers import line, refuse_odd_keys, told
from diptych.tensorfiles._pickled_arrays import read_pdparams
from diptych.tensorfiles._pickled_modules import is_torchscript, read_torchscript

Kind = Literal["safetensors", "torch", "torchscript", "paddle"]
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
ZIP = b"PK\x03\x04"
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Stored:
    """What a file holds. ``path`` is the file or index; ``notes`` a training checkpoint's plain values, such as its epoch."""

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Stored:
    """The tensors of a weight file or sharded index. Raises WeightsError, of one line, for whatever is wrong with it."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error
    _refuse_pages(path, head)
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".safetensors" or _looks_like_safetensors(head):
        return _safetensors(path)
    if head.startswith(ZIP):
        return _torchscript(path) if is_torchscript(path) else _torch(path, mapped=True)
    if path.suffix == ".pdparams":
        return Stored(path, "paddle", unprefixed(read_pdparams(path)))
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
    if text.startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{path}: a web page saved under a weight file's name; download the file itself.")


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def _safetensors(path: Path) -> Stored:
    with told(path, "not a whole safetensors file"), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return Stored(path, "safetensors", unprefixed(tensors), dict(file.metadata() or {}))


def _torchscript(path: Path) -> Stored:
    return Stored(path, "torchscript", unprefixed(read_torchscript(path)))


def _torch(path: Path, mapped: bool) -> Stored:
    """A file of ``torch.save``: nothing but tensors and plain values is unpickled."""
    with told(path, "not a whole torch file"):
        refuse_odd_keys(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if "GLOBAL" in str(error) or "Unsupported" in str(error) or "not allowed" in str(error):
                raise WeightsError(
                    f"{path}: holds more than tensors ({_asked(error)}); refused, nothing was run. Do not trust its source."
                ) from error
            raise
        tensors, notes = _unwrapped(found)
    for name, tensor in tensors.items():
        # On the meta device there are no numbers; sparse and quantised ones are none of ours.
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{path}: {name} is no plain tensor of numbers ({tensor.layout}, on {tensor.device}).")
    if not tensors:
        raise WeightsError(f"{path}: a torch file without named tensors (it holds {type(found).__name__}).")
    return Stored(path, "torch", unprefixed(tensors), {}, notes)


def _unwrapped(found: Any, depth: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The named tensors in a state dict or around one, and the plain values beside them."""
    if not isinstance(found, Mapping) or depth > 4:
        return {}, {}
    for wrapper in WRAPPERS:
        if isinstance(found.get(wrapper), Mapping):
            plain = {str(key): value for key, value in found.items() if isinstance(value, int | float | str)}
            return _unwrapped(found[wrapper], depth + 1)[0], plain
    return {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}, {}


def _sharded(path: Path) -> Stored:
    """The files that an index of Hugging Face's lists, together."""
    wanted: dict[str, list[str]] = {}
    with told(path, "not an index of shards"):
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


def unprefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PickleHandlers without what parallel training and compiling put before all of them."""
    names = dict(tensors)
    while names:
        prefix = next((one for one in PREFIXES if all(name.startswith(one) for name in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _asked(error: BaseException) -> str:
    """The name that was asked for, out of torch's long message."""
    words = str(error).replace("`", " ").split()
    for mark in ("GLOBAL", "global"):
        if mark in words and words.index(mark) + 1 < len(words):
            return f"it asks for {words[words.index(mark) + 1]}"
    return line(error)
