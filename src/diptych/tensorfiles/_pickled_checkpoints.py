"""Torch files that hold more than tensors and plain values: a trainer's options, a whole module, somebody's dictionary class.

``torch.load(weights_only=True)`` refuses these. Here tensors are built as it builds them, and every object of another class is an
``Inert``: read past, never imported, never run. Both of torch's formats, the zip and the older chain of pickles.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from diptych.tensorfiles._inert import Inert, find_stand_in, give_state, make
from diptych.tensorfiles._pickle_handlers import CONTAINERS, Name, contained, raising_weights_error
from diptych.tensorfiles._pickled_modules import STORAGES, read_archive, strided
from diptych.tensorfiles._safe_unpickler import PickleHandlers, run

REBUILD = ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter", "_rebuild_parameter_with_state")


class _CheckpointNames(PickleHandlers):
    """Tensors, plain containers, and stand-ins for the rest."""

    def __init__(self, path: Path, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self.path, self.storage = path, storage
        self.passed_over: set[str] = set()

    def find(self, module: str, name: str) -> object:
        if module.partition(".")[0] == "torch" and name in STORAGES:  # of any accelerator: the location says which
            return STORAGES[name]
        if module == "torch._utils" and name in REBUILD:
            return Name(name)
        if module == "collections" and name == "OrderedDict":
            return Name(name)
        return find_stand_in(self.path, module, name, self.passed_over)

    def call(self, what: object, arguments: tuple[object, ...]) -> object:
        if isinstance(what, Inert):
            return make(what, arguments)
        name = what.name if isinstance(what, Name) else ""
        if name.startswith("_rebuild_tensor") and len(arguments) >= 4:
            return strided(*arguments[:4])
        if name.startswith("_rebuild_parameter") and arguments:
            return arguments[0]
        if name in CONTAINERS and len(arguments) < 2:
            return contained(name, arguments[0] if arguments else ())
        return super().call(what, arguments)

    def build(self, instance: object, state: object) -> None:
        if isinstance(instance, Inert):
            give_state(instance, state)
        elif not isinstance(instance, dict | Tensor):  # the attributes of an OrderedDict, such as _metadata
            super().build(instance, state)

    def persistent(self, pid: object) -> object:
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":  # a class with its source, in old files
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError("an odd persistent id")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a storage of unknown kind")
        return self.storage(str(key), dtype, count)


def read_checkpoint(path: Path) -> tuple[object, tuple[str, ...]]:
    """The tree of a torch file with stand-ins for foreign objects, and the classes of those, sorted.

    Raises WeightsError for damage, and for a name that no checkpoint needs.
    """
    with raising_weights_error(path, "not a whole torch file"):
        tree, passed_over = _from_zip(path) if zipfile.is_zipfile(path) else _from_chain(path)
    return tree, tuple(sorted(passed_over))


def _from_zip(path: Path) -> tuple[object, set[str]]:
    tree, names = read_archive(path, _CheckpointNames)
    return tree, names.passed_over


def _from_chain(path: Path) -> tuple[object, set[str]]:
    """A number, a version, the machine, the data, the keys of storages; then each storage's length and numbers."""
    left = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise pickle.UnpicklingError("more numbers than the file has bytes")
            storages[key] = torch.empty(count, dtype=dtype)
        if storages[key].dtype != dtype or storages[key].numel() < count:
            raise pickle.UnpicklingError("a storage that is described twice")
        return storages[key][:count]

    names = _CheckpointNames(path, storage)
    with path.open("rb") as file:
        for _ in range(3):
            run(file, names)
        tree, keys = run(file, names), run(file, names)
        for key in keys if isinstance(keys, list) else ():
            _fill(storages.get(str(key)), file)
    return tree, names.passed_over


def _fill(storage: Tensor | None, file: IO[bytes]) -> None:
    count = int.from_bytes(file.read(8), "little")
    if storage is None or count != storage.numel():
        raise pickle.UnpicklingError("a storage of another length")
    data = file.read(count * storage.dtype.itemsize)
    if len(data) != count * storage.dtype.itemsize:
        raise pickle.UnpicklingError("an end before the numbers")
    if count:
        storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
