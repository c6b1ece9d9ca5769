"""Paddle's state dicts: numpy arrays in a plain pickle, read without Paddle and without numpy's own unpickling.

Arrays are created last, each from bytes whose number was checked against its shape. Nothing else can be created.
"""

from __future__ import annotations

import math
import mmap
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles._pickle_handlers import CONTAINERS, Name, contained, first_line, raising_weights_error, refuse
from diptych.tensorfiles._safe_unpickler import PickleHandlers, run


class _Dtype:
    """A plain number's dtype; objects would smuggle pickles, records let their state be forged."""

    __slots__ = ("dtype",)

    def __init__(self, text: object) -> None:
        dtype = np.dtype(text) if isinstance(text, str) else None
        if dtype is None or dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {str(text)[:40]!r}")
        self.dtype = dtype

    def set_state(self, state: object) -> None:
        """The byte order, of which numpy's state is the second entry."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an odd state of a dtype")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """The dtype, shape, order and bytes of an array to create; they are set once."""

    __slots__ = ("data", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.data: bytes | None = None

    def fill(self, shape: object, dtype: object, order: Literal["C", "F"], data: object) -> _Array:
        """Set them. Raises pickle.UnpicklingError unless they fit together and this is the first time."""
        data = data.encode("latin1") if isinstance(data, str) else data
        if self.data is not None or not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array that is not filled with bytes, once")
        if (
            not isinstance(shape, tuple)
            or len(shape) > 32
            or not all(type(side) is int and side >= 0 for side in shape)
        ):
            raise pickle.UnpicklingError("an array of an odd shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {list(shape)} in {len(data)} bytes")
        self.shape, self.dtype, self.order, self.data = shape, dtype.dtype, order, bytes(data)
        return self

    def to_numpy(self) -> np.ndarray:
        """The array, in the machine's byte order and contiguous."""
        if self.data is None:
            raise pickle.UnpicklingError("an array without its numbers")
        flat = np.frombuffer(self.data, dtype=self.dtype)
        return np.array(flat.reshape(self.shape, order=self.order), dtype=self.dtype.newbyteorder("="), order="C")


_KNOWN = {
    ("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype"),
    *((core, name) for core in ("builtins", "__builtin__") for name in ("tuple", "list", "dict")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}  # fmt: skip


class _PaddleNames(PickleHandlers):
    """numpy's arrays, and nothing else that can be created."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, module: str, name: str) -> Name:
        if (module, name) not in _KNOWN:
            raise refuse(self.path, module, name)
        return Name(name)

    def call(self, what: object, arguments: tuple[object, ...]) -> object:
        name = what.name if isinstance(what, Name) else ""
        first = arguments[0] if arguments else ()
        if name == "_reconstruct" and isinstance(first, Name) and first.name == "ndarray":
            return _Array()
        if name == "_frombuffer" and len(arguments) == 4:
            data, dtype, shape, order = arguments
            return _Array().fill(shape, dtype, "F" if order == "F" else "C", data)
        if name == "dtype" and arguments:
            return _Dtype(first)
        # How protocol 2 writes bytes; only this codec, since others may do work.
        if name == "encode" and isinstance(first, str) and arguments[1:] in ((), ("latin1",), ("latin-1",)):
            return first.encode("latin1")
        if name in CONTAINERS and len(arguments) < 2:
            return contained(name, first)
        return super().call(what, arguments)

    def build(self, instance: object, state: object) -> None:
        if isinstance(instance, _Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, data = state
            instance.fill(shape, dtype, "F" if fortran else "C", data)
        elif isinstance(instance, _Dtype):
            instance.set_state(state)
        else:
            super().build(instance, state)

    def persistent(self, pid: object) -> object:
        raise WeightsError(f"{self.path}: not a .pdparams file (it has persistent ids).")


NAMES_KEY = "StructuredToParameterName@@"
SLICES_KEY = "UnpackBigParamInfor@@"


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a Paddle state dict. Raises WeightsError for anything else, and before running anything."""
    with raising_weights_error(path, "not a whole .pdparams file"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            state = run(cast(IO[bytes], data), _PaddleNames(path))
        if not isinstance(state, dict):
            raise WeightsError(f"{path}: a pickle of {type(state).__name__}, not a Paddle state dict.")
        arrays = {key: _array(value, key, path) for key, value in state.items() if key not in (NAMES_KEY, SLICES_KEY)}
        joined = _join_slices(arrays, state.get(SLICES_KEY, {}), path)
        return {str(name): _tensor(array, name, path) for name, array in joined.items()}


def _array(value: object, name: object, path: Path) -> np.ndarray:
    # A tensor saved on its own, or inside another object, is the pair (name, array).
    array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(array, _Array):
        raise WeightsError(f"{path}: {str(name)[:80]!r} is no array of numbers but {type(array).__name__}.")
    return array.to_numpy()


def _join_slices(
    arrays: dict[object, np.ndarray], plans: Mapping[str, Mapping[str, object]], path: Path
) -> dict[object, np.ndarray]:
    """Arrays over a gigabyte come in one-dimensional slices when the pickle's protocol is 2 or 3."""
    try:
        for name, plan in plans.items():
            parts = [arrays.pop(key) for key in cast("list[str]", plan["slices"])]
            arrays[name] = np.concatenate(parts).reshape(cast("tuple[int, ...]", plan["OriginShape"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: the slices of a large tensor do not fit together ({first_line(error)})."
        ) from error
    return arrays


def _tensor(array: np.ndarray, name: object, path: Path) -> Tensor:
    if array.dtype == np.uint16:  # Paddle writes bfloat16 as the bits
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise WeightsError(f"{path}: {name!r} is an array of {array.dtype}, which torch does not know.") from error
