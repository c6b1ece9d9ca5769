"""OpenAI's TorchScript archives: a zip whose ``data.pkl`` is a tree of modules.

The code in the archive is never run, nor even parsed; classes become empty shells that only hold their attributes, tensors are
mapped from the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles._pickle_handlers import Name, contained, entry, line, refuse, told
from diptych.tensorfiles._safe_unpickler import PickleHandlers, run

MOST_PICKLE = 1 << 26  # bytes of a module tree; a real one has a few hundred kilobytes


class _Shell:
    """Stands for a module or any class of the archive: holds its attributes and can do nothing."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = tuple(f"build_{kind}list" for kind in ("int", "tensor", "double", "bool"))
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("collections", "OrderedDict"),
    *(("torch.jit._pickle", one) for one in ("restore_type_tag", *_LISTS)),
}  # fmt: skip


class _ArchiveNames(PickleHandlers):
    """The module tree of a TorchScript archive."""

    def __init__(self, path: Path, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self.path, self.storage = path, storage

    def find(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Shell
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _ALLOWED:
            raise refuse(self.path, module, name)
        return Name(name)

    def call(self, what: Any, arguments: tuple[Any, ...]) -> Any:
        if what is _Shell:
            return _Shell()
        name = what.name if isinstance(what, Name) else ""
        if name == "_rebuild_tensor_v2" and len(arguments) >= 4:
            return _strided(*arguments[:4])
        if name in ("_rebuild_parameter", "restore_type_tag") and arguments:
            return arguments[0]
        if name in (*_LISTS, "OrderedDict") and len(arguments) < 2:
            return contained("list" if name in _LISTS else name, arguments[0] if arguments else ())
        return super().call(what, arguments)

    def build(self, made: Any, state: Any) -> None:
        if isinstance(made, _Shell) and isinstance(state, dict):
            made.attributes.update({str(key): value for key, value in state.items()})
        elif not isinstance(made, _Shell):
            super().build(made, state)

    def persistent(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise pickle.UnpicklingError("a storage of unknown kind")
        return self.storage(str(key), dtype, count)


def _strided(flat: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    sides = (*size, *stride, offset) if isinstance(size, tuple) and isinstance(stride, tuple) else ("",)
    if not isinstance(flat, Tensor) or not all(type(one) is int and one >= 0 for one in sides):
        raise pickle.UnpicklingError("a tensor of an odd shape")
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    # Also no more numbers than there are: with strides of 0 a few bytes would fill any memory that copies them.
    if (0 not in size and reach > flat.numel()) or math.prod(size) > flat.numel() or offset > flat.numel():
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return flat.as_strided(size, stride, flat.storage_offset() + offset)  # as_strided counts from the storage


def is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive: code and constants beside the data. Raises WeightsError for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise WeightsError(f"{path}: not a whole zip archive ({line(error)}).") from error


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive, by module path, mapped from the file. Its code is not run."""
    with told(path, "not a whole TorchScript archive"), zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        whole = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        held: dict[tuple[str, torch.dtype], Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if (key, dtype) not in held:  # tensors share it
                held[key, dtype] = _mapped(archive, whole, f"{root}data/{key}", dtype)
            if count > held[key, dtype].numel():
                raise pickle.UnpicklingError(f"{key} is shorter than its tensor")
            return held[key, dtype][:count]

        tree = run(io.BytesIO(entry(archive, root + "data.pkl", MOST_PICKLE)), _ArchiveNames(path, storage))
        return dict(_walk(tree))


def _mapped(archive: zipfile.ZipFile, whole: Any, name: str, dtype: torch.dtype) -> Tensor:
    """A storage of the archive as a flat tensor: a view of the mapped file where it is stored plainly, else a copy."""
    info = archive.getinfo(name)
    handle: Any = archive.fp
    handle.seek(info.header_offset + 26)
    head = handle.read(4)
    start = info.header_offset + 30 + int.from_bytes(head[:2], "little") + int.from_bytes(head[2:], "little")
    count = info.file_size // dtype.itemsize
    if info.compress_type == zipfile.ZIP_STORED and start % dtype.itemsize == 0:
        return torch.empty(0, dtype=dtype).set_(whole, start // dtype.itemsize, (count,), (1,))  # type: ignore[call-overload, no-any-return]
    return torch.frombuffer(bytearray(entry(archive, name)), dtype=dtype, count=count)


def _walk(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree of shells by path; each shell once, so that loops and shared branches end."""
    waiting, seen = [("", tree)], set[int]()
    while waiting:
        prefix, node = waiting.pop()
        if not isinstance(node, _Shell) or id(node) in seen:
            continue
        seen.add(id(node))
        for name, value in node.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            else:
                waiting.append((f"{prefix}{name}.", value))
