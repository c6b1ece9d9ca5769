"""Unpickling without running anything: allow-list readers for the two pickles that torch's own safe loader does not take.

``read_pdparams``     Paddle's state dicts: numpy arrays in a plain pickle. Paddle is not needed.
``read_torchscript``  OpenAI's archives: a zip whose ``data.pkl`` is a tree of modules. The code in the archive is never run,
                      nor even parsed; classes become empty shells that only hold their attributes, tensors are mapped.

A pickle is a program that may import and call; every name outside of the lists below ends in a WeightsError before
anything happens. Plain torch files are read by ``torch.load(weights_only=True)``, not here.
"""

from __future__ import annotations

import codecs
import collections
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.errors import WeightsError


def _refuse(path: Path, module: str, name: str) -> WeightsError:
    return WeightsError(
        f"{path}: asks to import {module}.{name}, which no weight file needs; refused, nothing was run. Do not trust its source."
    )


def _latin(text: str, encoding: str = "latin1") -> bytes:
    """What protocol 2 writes bytes as; only this codec, since others may do work."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return codecs.encode(text, "latin1")


def _reconstruct(kind: type, shape: tuple[int, ...], _: bytes) -> np.ndarray:
    """An empty array whose state follows, as numpy's own function makes it; ``kind`` is ndarray, nothing else."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("an array of another class")
    return np.ndarray.__new__(np.ndarray, shape, dtype=np.int8)


def _frombuffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _dtype(text: Any, align: bool = False, copy: bool = False) -> np.dtype:
    """A plain number's dtype; objects would smuggle pickles, records let their state be forged."""
    kind = np.dtype(text, align=align, copy=copy) if isinstance(text, str) else None
    if kind is None or kind.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of {text!r}")
    return kind


_ARRAYS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    **{("builtins", kind.__name__): kind for kind in (tuple, dict, list, set)},
    **{("__builtin__", kind.__name__): kind for kind in (tuple, dict, list, set)},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise _refuse(self.path, module, name)
        return _ARRAYS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise WeightsError(f"{self.path}: not a .pdparams file (it has persistent ids).")


NAMES_KEY = "StructuredToParameterName@@"
SLICES_KEY = "UnpackBigParamInfor@@"


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a Paddle state dict. Raises WeightsError for anything else, and before running anything."""
    try:
        with path.open("rb") as file:
            found = _ArrayUnpickler(file, path).load()
    except WeightsError:
        raise
    # A damaged pickle may fail in any of these ways; none of them runs code outside of the list above.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, MemoryError,
            OverflowError, OSError, ImportError) as error:  # fmt: skip
        raise WeightsError(f"{path}: not a whole .pdparams file ({_line(error)}).") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: a pickle of {type(found).__name__}, not a Paddle state dict.")
    arrays = _joined_slices({key: value for key, value in found.items() if key != NAMES_KEY}, path)
    return {str(name): _tensor(value, name, path) for name, value in arrays.items()}


def _joined_slices(found: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Arrays over a gigabyte come in one-dimensional slices when the pickle's protocol is 2 or 3."""
    plans = found.pop(SLICES_KEY, {})
    try:
        for name, plan in plans.items():
            parts = [found.pop(key) for key in plan["slices"]]
            found[name] = np.concatenate(parts).reshape(plan["OriginShape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: the slices of a large tensor do not fit together ({_line(error)}).") from error
    return found


def _tensor(value: Any, name: Any, path: Path) -> Tensor:
    # A tensor saved on its own, or inside another object, is the pair (name, array).
    array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise WeightsError(f"{path}: {name!r} is no array of numbers but {type(array).__name__}.")
    if array.dtype == np.uint16:  # Paddle writes bfloat16 as the bits
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError as error:
        raise WeightsError(f"{path}: {name!r} is an array of {array.dtype}, which torch does not know.") from error


class _Shell:
    """Stands for a module or any class of the archive: holds its attributes and can do nothing."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
Rebuilt = Callable[..., Tensor]


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads the module tree of a TorchScript archive."""

    def __init__(self, file: Any, path: Path, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file)
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Shell
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _strided,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "tensor", "double", "bool")},
        }
        if (module, name) not in allowed:
            raise _refuse(self.path, module, name)
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of unknown kind")
        return self.storage(str(key), dtype, int(count))


def _strided(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if offset < 0 or any(step < 0 for step in stride) or (0 not in size and reach > flat.numel()):
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return flat.as_strided(size, stride, flat.storage_offset() + offset)  # as_strided counts from the storage


def is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive: code and constants beside the data. Raises WeightsError for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise WeightsError(f"{path}: not a whole zip archive ({_line(error)}).") from error


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive, by module path, mapped from the file. Its code is not run."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            whole = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)

            def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
                return _mapped(archive, whole, f"{root}data/{key}", dtype, count)

            tree = _ArchiveUnpickler(io.BytesIO(archive.read(root + "data.pkl")), path, storage).load()
    except WeightsError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError,
            StopIteration, OSError, ImportError, OverflowError, NotImplementedError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        raise WeightsError(f"{path}: not a whole TorchScript archive ({_line(error)}).") from error
    return dict(_walk(tree, ""))


def _mapped(archive: zipfile.ZipFile, whole: Any, name: str, dtype: torch.dtype, count: int) -> Tensor:
    """A storage of the archive as a flat tensor: a view of the mapped file where it is stored plainly, else a copy."""
    info, size = archive.getinfo(name), dtype.itemsize * count
    if info.file_size < size:
        raise pickle.UnpicklingError(f"{name} is shorter than its tensor")
    handle: Any = archive.fp
    handle.seek(info.header_offset + 26)
    head = handle.read(4)
    start = info.header_offset + 30 + int.from_bytes(head[:2], "little") + int.from_bytes(head[2:], "little")
    if info.compress_type == zipfile.ZIP_STORED and start % dtype.itemsize == 0:
        return torch.empty(0, dtype=dtype).set_(whole, start // dtype.itemsize, (count,), (1,))  # type: ignore[call-overload, no-any-return]
    return torch.frombuffer(bytearray(archive.read(name)), dtype=dtype)[:count]


def _walk(node: Any, prefix: str, depth: int = 0) -> list[tuple[str, Tensor]]:
    if depth > 32 or not isinstance(node, _Shell):
        return []
    found: list[tuple[str, Tensor]] = []
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        else:
            found += _walk(value, f"{prefix}{name}.", depth + 1)
    return found


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
