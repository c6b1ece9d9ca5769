"""OpenAI's TorchScript archives: a zip whose ``data.pkl`` is a tree of modules.

The code in the archive is never run, nor even parsed; classes become empty shells that only hold their attributes, and tensors
are mapped from the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles._pickle_handlers import Name, contained, first_line, raising_weights_error, refuse, zip_entry
from diptych.tensorfiles._safe_unpickler import PickleHandlers, run

Names = TypeVar("Names", bound=PickleHandlers)

LARGEST_PICKLE = 1 << 26  # bytes of a module tree; a real one has a few hundred kilobytes


class _Shell:
    """Stands for a module or any class of the archive: holds its attributes and can do nothing."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}


STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = tuple(f"build_{kind}list" for kind in ("int", "tensor", "double", "bool"))
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("collections", "OrderedDict"),
    *(("torch.jit._pickle", name) for name in ("restore_type_tag", *_LISTS)),
}  # fmt: skip


class _ArchiveNames(PickleHandlers):
    """The module tree of a TorchScript archive."""

    def __init__(self, path: Path, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self.path, self.storage = path, storage

    def find(self, module: str, name: str) -> object:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Shell
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in _ALLOWED:
            raise refuse(self.path, module, name)
        return Name(name)

    def call(self, what: object, arguments: tuple[object, ...]) -> object:
        if what is _Shell:
            return _Shell()
        name = what.name if isinstance(what, Name) else ""
        if name == "_rebuild_tensor_v2" and len(arguments) >= 4:
            return strided(*arguments[:4])
        if name in ("_rebuild_parameter", "restore_type_tag") and arguments:
            return arguments[0]
        if name in (*_LISTS, "OrderedDict") and len(arguments) < 2:
            return contained("list" if name in _LISTS else name, arguments[0] if arguments else ())
        return super().call(what, arguments)

    def build(self, instance: object, state: object) -> None:
        if isinstance(instance, _Shell) and isinstance(state, dict):
            instance.attributes.update({str(key): value for key, value in state.items()})
        elif not isinstance(instance, _Shell):
            super().build(instance, state)

    def persistent(self, pid: object) -> Tensor:
        if not isinstance(pid, tuple) or len(pid) != 5:
            raise pickle.UnpicklingError("an odd persistent id")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise pickle.UnpicklingError("a storage of unknown kind")
        return self.storage(str(key), dtype, count)


def strided(flat: object, offset: object, size: object, stride: object) -> Tensor:
    lengths, steps, (first,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if not isinstance(flat, Tensor) or len(lengths) != len(steps):
        raise pickle.UnpicklingError("a tensor of an odd shape")
    reach = first + sum((length - 1) * step for length, step in zip(lengths, steps, strict=True)) + 1
    # Also no more numbers than there are: with strides of 0 a few bytes would fill any memory that copies them.
    if (0 not in lengths and reach > flat.numel()) or math.prod(lengths) > flat.numel() or first > flat.numel():
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return flat.as_strided(lengths, steps, flat.storage_offset() + first)  # as_strided counts from the storage


def _sizes(values: object) -> tuple[int, ...]:
    """The values, when they are a tuple of numbers that are not negative. Raises pickle.UnpicklingError."""
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise pickle.UnpicklingError("a tensor of an odd shape")
    return values


def is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive: code and constants beside the data. Raises WeightsError for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise WeightsError(f"{path}: not a whole zip archive ({first_line(error)}).") from error


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive, by module path, mapped from the file. Its code is not run."""
    with raising_weights_error(path, "not a whole TorchScript archive"):
        return dict(_walk(read_archive(path, _ArchiveNames)[0]))


def read_archive(
    path: Path, handlers: Callable[[Path, Callable[[str, torch.dtype, int], Tensor]], Names]
) -> tuple[object, Names]:
    """The tree in a zip of torch, TorchScript or not, its tensors mapped from the file, and the handlers that built it.

    ``handlers(path, storage)`` says what names in the pickle stand for. Call it within ``raising_weights_error``.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl").removesuffix(
            "data.pkl"
        )
        mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        assert isinstance(mapped, torch.UntypedStorage)  # torch's stubs allow the older class
        storages: dict[tuple[str, torch.dtype], Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if (key, dtype) not in storages:  # tensors share it
                storages[key, dtype] = storage_of(archive, mapped, f"{root}data/{key}", dtype)
            if count > storages[key, dtype].numel():
                raise pickle.UnpicklingError(f"{key} is shorter than its tensor")
            return storages[key, dtype][:count]

        names = handlers(path, storage)
        return run(io.BytesIO(zip_entry(archive, root + "data.pkl", LARGEST_PICKLE)), names), names


def storage_of(archive: zipfile.ZipFile, mapped: torch.UntypedStorage, name: str, dtype: torch.dtype) -> Tensor:
    """A storage of the archive as a flat tensor: a view of the mapped file where it is stored plainly, else a copy."""
    info = archive.getinfo(name)
    handle = archive.fp
    assert handle is not None  # the archive is open
    handle.seek(info.header_offset + 26)
    head = handle.read(4)
    start = info.header_offset + 30 + int.from_bytes(head[:2], "little") + int.from_bytes(head[2:], "little")
    count = info.file_size // dtype.itemsize
    if info.compress_type == zipfile.ZIP_STORED and start % dtype.itemsize == 0:
        return torch.empty(0, dtype=dtype).set_(mapped, start // dtype.itemsize, (count,), (1,))  # type: ignore[call-overload, no-any-return]
    return torch.frombuffer(bytearray(zip_entry(archive, name)), dtype=dtype, count=count)


def _walk(tree: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree of shells by path; each shell once, so that loops and shared branches end."""
    waiting: list[tuple[str, object]] = [("", tree)]
    seen = set[int]()
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
