"""Reading a checkpoint folder in one process: its tree, its tensors whole or in blocks, its digests.

    checkpoints/step_00001200/diptych_manifest.json
    checkpoints/step_00001200/rank_00000.safetensors      the parts that a process held

Files are safetensors and JSON, so that nothing can run. Who held which part when it was written does not matter. Writing,
and reading into tensors that are laid out over processes, is ``diptych.distributed``'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles.manifest import LARGEST, MANIFEST, REFERENCE, Entry, FileDigest, Manifest, Part, parsed


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder has a manifest."""
    return (path / MANIFEST).is_file()


def key_of(name: str, offsets: Sequence[int]) -> str:
    """The name, in its file, of a tensor's part."""
    return f"{name}@{','.join(map(str, offsets))}"


def digest_of(path: Path) -> FileDigest:
    """Length and SHA-256 of a file as it can be read now. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(file.tell(), digest)


class CheckpointFolder:
    """An open checkpoint folder; ``manifest`` says what is in it. Raises WeightsError where that is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles: dict[str, Any] = {}
        file = path / MANIFEST
        try:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"{MANIFEST} has {file.stat().st_size:,} bytes")
            self.manifest: Manifest = parsed(file.read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WeightsError(f"{path}: not a whole checkpoint ({reason[:200]})") from error

    def damage(self, names: Iterable[str]) -> str:
        """What is wrong with some of its files, in a few words; "" where length and digest of each are as written."""
        for name in names:
            expected = self.manifest.files[name]
            try:
                size = (self.path / name).stat().st_size
                if size != expected.bytes:
                    return f"{name} has {size:,} bytes of {expected.bytes:,}"
                if digest_of(self.path / name) != expected:
                    return f"the bytes of {name} have changed since it was written"
            except OSError as error:
                return f"{name}: {error.strerror or error}"
        return ""

    def check(self) -> None:
        """Compare length and digest of every file. Raises WeightsError."""
        damage = self.damage(sorted(self.manifest.files))
        if damage:
            raise WeightsError(f"{self.path}: not a whole checkpoint ({damage})")

    def blocks(self, requests: Iterable[tuple[str, Part, Sequence[slice]]]) -> Iterable[Tensor]:
        """Blocks of parts, in the order of the requests: (name, part, a slice per dimension). Raises WeightsError."""
        for name, part, slices in requests:
            try:
                if part.file not in self._handles:
                    self._handles[part.file] = safe_open(self.path / part.file, framework="pt")
                block = self._block(self._handles[part.file], name, part, slices)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{self.path}: {part.file} cannot be read ({str(error)[:160]})") from error
            yield block

    def _block(self, handle: Any, name: str, part: Part, slices: Sequence[slice]) -> Tensor:
        entry, key = self.manifest.tensors[name], key_of(name, part.offsets)
        view = handle.get_slice(key)
        block: Tensor = view[tuple(slices)] if slices else handle.get_tensor(key)
        if tuple(view.get_shape()) != part.sizes or block.dtype != entry.dtype:
            raise WeightsError(f"{self.path}: {name[:80]} in {part.file} is not as {MANIFEST} says")
        return block

    def whole(self, name: str) -> Tensor:
        """One tensor, whole. Raises WeightsError."""
        entry: Entry = self.manifest.tensors[name]
        requests = [(name, part, [slice(0, size) for size in part.sizes]) for part in entry.parts]
        if len(entry.parts) == 1:
            return next(iter(self.blocks(requests))).clone()
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        for (_, part, _), block in zip(requests, self.blocks(requests), strict=True):
            index = tuple(slice(begin, begin + size) for begin, size in zip(part.offsets, part.sizes, strict=True))
            tensor[index] = block
        return tensor

    def tree(self, tensor: Callable[[str], Any]) -> dict[str, Any]:
        """The checkpoint's tree, with what ``tensor`` gives for the name of each tensor in it."""

        def built(node: Any) -> Any:
            if isinstance(node, dict):
                return (
                    tensor(node[REFERENCE]) if REFERENCE in node else {key: built(item) for key, item in node.items()}
                )
            return [built(item) for item in node] if isinstance(node, list) else node

        return {key: built(item) for key, item in self.manifest.state.items()}
