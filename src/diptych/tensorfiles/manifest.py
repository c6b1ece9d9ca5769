"""The manifest of a checkpoint folder: which tensor lies in which parts in which file, a digest per file, and plain values.

    {"sha256": digest of the rest, "manifest": {
        "version": 1,
        "files":   {"rank_00000.safetensors": {"bytes": 123, "sha256": "..."}},
        "tensors": {"weights/model.logit_scale": {"dtype": "float32", "shape": [], "parts": [[file, offsets, sizes]]}},
        "state":   the checkpoint's tree, each tensor of it as {"$tensor": name}}}

It takes the place of the pickle that torch.distributed.checkpoint writes, so that nothing of a folder is ever unpickled, and is
read as a stranger's file: names of files have one form, which leads nowhere else, and parts must tile their tensor and fit into
their file, so that no size in it can make a reader allocate more than the folder holds. Text and checks; it reads no tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

MANIFEST = "diptych_manifest.json"
VERSION = 1
LARGEST = 1 << 30  # bytes of a manifest; one part takes about a hundred
MOST_DIMENSIONS = 16
DEEPEST = 64  # levels of a checkpoint's tree; a run's has ten
FILE_NAME = re.compile(r"rank_[0-9]{5,9}\.safetensors")
DIGEST = re.compile(r"[0-9a-f]{64}")
REFERENCE = "$tensor"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class Part(NamedTuple):
    """A block of a tensor: the file that holds it, where it begins in the tensor, and its shape."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class FileDigest(NamedTuple):
    """Length of a file in bytes, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, its whole shape, and the parts that tile it (none where it has no elements)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint folder; ``state`` is its tree, in which ``{"$tensor": name}`` stands for a tensor."""

    files: Mapping[str, FileDigest]
    tensors: Mapping[str, Entry]
    state: Mapping[str, Any] = field(default_factory=dict)


def written(manifest: Manifest) -> bytes:
    """The manifest as the text of its file. Raises TypeError for a plain value that JSON does not have."""
    values = {
        "version": VERSION,
        "files": {name: {"bytes": item.bytes, "sha256": item.sha256} for name, item in manifest.files.items()},
        "tensors": {
            name: {
                "dtype": str(entry.dtype).removeprefix("torch."),
                "shape": list(entry.shape),
                "parts": [[part.file, list(part.offsets), list(part.sizes)] for part in entry.parts],
            }
            for name, entry in manifest.tensors.items()
        },
        "state": manifest.state,
    }
    text = _canonical(values)
    return f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}",\n"manifest": {text}}}\n'.encode()


def parsed(text: bytes) -> Manifest:
    """The manifest of a file's text. Raises ValueError, with a short reason, for whatever is wrong with it."""
    try:
        outer = json.loads(text)
        values, digest = outer["manifest"], outer["sha256"]
        canonical = _canonical(values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is no manifest ({type(error).__name__})") from error
    if digest != hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest():
        raise ValueError(f"the bytes of {MANIFEST} have changed since it was written")
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise ValueError(f"{MANIFEST} is of another version than {VERSION}")
    files = {name: _file(name, item) for name, item in _mapping(values, "files").items()}
    tensors = {name: _entry(name, item, files) for name, item in _mapping(values, "tensors").items()}
    _check_lengths(tensors, files)
    state = _mapping(values, "state")
    unknown = sorted(str(name)[:80] for name in _references(state) if name not in tensors)
    if unknown:
        raise ValueError(f"{MANIFEST} names a tensor that it does not list: {unknown[0]}")
    return Manifest(files, tensors, state)


def _canonical(values: object) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{MANIFEST} has no {key}")
    return value


def _file(name: str, item: object) -> FileDigest:
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{MANIFEST} names a file that is none of a checkpoint's: {name[:80]!r}")
    size, digest = (item.get("bytes"), item.get("sha256")) if isinstance(item, dict) else (None, None)
    if size is None or not _is_count(size) or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"{MANIFEST} says neither length nor digest of {name}")
    return FileDigest(int(size), digest)


def _entry(name: str, item: object, files: Mapping[str, FileDigest]) -> Entry:
    if not isinstance(item, dict) or item.get("dtype") not in tuple(DTYPES):
        raise ValueError(f"{MANIFEST} gives {name[:80]!r} no type that is known")
    shape, listed = _counts(item.get("shape")), item.get("parts")
    if shape is None or math.prod(max(1, size) for size in shape) >= 1 << 60 or not isinstance(listed, list):
        raise ValueError(f"{MANIFEST} gives {name[:80]!r} no shape and parts")
    parts = []
    for part in listed:
        file, offsets, sizes = part if isinstance(part, list) and len(part) == 3 else (None, None, None)
        first, extent = _counts(offsets), _counts(sizes)
        if not isinstance(file, str) or file not in files or first is None or extent is None:
            raise ValueError(f"{MANIFEST} lists a part of {name[:80]!r} that is none")
        parts.append(Part(file, first, extent))
    entry = Entry(DTYPES[item["dtype"]], shape, tuple(parts))
    if not tiles(entry):
        raise ValueError(f"the parts of {name[:80]!r} in {MANIFEST} are not the whole tensor")
    return entry


def tiles(entry: Entry) -> bool:
    """Whether the parts are a grid that covers the tensor, each element once; layouts give no other arrangement."""
    if math.prod(entry.shape) == 0:
        return not entry.parts
    rank = len(entry.shape)
    if any(len(part.offsets) != rank or len(part.sizes) != rank for part in entry.parts):
        return False
    ends = []
    for axis, length in enumerate(entry.shape):
        begins = sorted({part.offsets[axis] for part in entry.parts})
        if not begins or begins[0] != 0:
            return False
        ends.append(dict(zip(begins, [*begins[1:], length], strict=True)))
    cells = {part.offsets for part in entry.parts}
    exact = all(
        ends[axis][begin] == begin + size > begin
        for part in entry.parts
        for axis, (begin, size) in enumerate(zip(part.offsets, part.sizes, strict=True))
    )
    return exact and len(cells) == len(entry.parts) == math.prod(len(axis) for axis in ends)


def _check_lengths(tensors: Mapping[str, Entry], files: Mapping[str, FileDigest]) -> None:
    """Raise ValueError where the parts of a file are more bytes than it has."""
    needed = dict.fromkeys(files, 0)
    for entry in tensors.values():
        for part in entry.parts:
            needed[part.file] += math.prod(part.sizes) * entry.dtype.itemsize
    for name, size in needed.items():
        if size > files[name].bytes:
            raise ValueError(f"{MANIFEST} lists more in {name} than its {files[name].bytes:,} bytes")


def _references(tree: object) -> Iterable[object]:
    """The names of tensors in a tree of plain values."""
    waiting: list[tuple[object, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"{MANIFEST} is nested more than {DEEPEST} deep")
        if isinstance(node, dict):
            if REFERENCE in node:
                yield node[REFERENCE] if isinstance(node[REFERENCE], str) and len(node) == 1 else ""
            waiting += ((item, depth + 1) for item in node.values())
        elif isinstance(node, list):
            waiting += ((item, depth + 1) for item in node)


def _counts(values: object) -> tuple[int, ...] | None:
    """A list of counts as a tuple, None for anything else."""
    if not isinstance(values, list) or len(values) > MOST_DIMENSIONS or not all(map(_is_count, values)):
        return None
    return tuple(values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
