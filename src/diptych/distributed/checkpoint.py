"""The checkpoints of a run, files and folders: written whole or not at all, in order, and read without running code.

A file, ``step_00001200.pt``, holds nested dictionaries of tensors and plain values; ``torch.load`` with ``weights_only`` reads
it, so no pickle is executed. The state of all ranks is gathered first, and one process writes. A folder, ``step_00001200``, in
which each process writes its own part, is written and read by ``checkpoint_folder``; listing, rotation, setting aside and
falling back to the one before are the same for both, and are here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from diptych import log
from diptych.distributed.process_group import first_not_none, rank, size
from diptych.errors import WeightsError
from diptych.files import replacing
from diptych.tensorfiles.checkpoint_folder import CheckpointFolder

_NAME = re.compile(r"step_(\d+)(\.pt)?")


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step: the folder where there is one, else the file, which may not be there."""
    path = folder_of(folder, step)
    return path if path.is_dir() else path.with_name(f"{path.name}.pt")


def folder_of(folder: Path, step: int) -> Path:
    """The path of a step's checkpoint that is a folder, whether it is there or not."""
    return folder / f"step_{step:08d}"


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int = 0) -> Path:
    """Write a checkpoint beside the others and, with ``keep`` > 0, drop all but the newest ``keep``.

    Raises OutputError when the disk refuses; every earlier checkpoint stays whole.
    """
    path = folder_of(folder, step).with_suffix(".pt")
    remove_unfinished(folder)
    with replacing(path, "checkpoint") as beside:
        try:
            with beside.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:
            # torch's own writer turns the system's refusal into a RuntimeError; find what the system said.
            raise _system_refusal(error, beside) from error
    if folder_of(folder, step).is_dir():  # of the same step, by a sitting that wrote folders
        remove(folder_of(folder, step))
    rotate(folder, step, keep)
    return path


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left: one checkpoint is written at a time."""
    for left in folder.glob(".step_*.tmp"):
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def rotate(folder: Path, step: int, keep: int) -> None:
    """Drop all but the newest ``keep`` checkpoints, of which that of ``step`` is one; 0 keeps all."""
    if keep > 0:
        for old in [item for item in steps(folder) if item != step][: -(keep - 1) or None]:
            remove(path_of(folder, old))


def remove(path: Path) -> None:
    """Remove a checkpoint; a folder loses its name first, so that none is ever half there. What refuses stays."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            doomed = path.with_name(f".{path.name}.removed.tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink()


def set_aside(folder: Path, after: int) -> list[Path]:
    """Give checkpoints of later steps another name, which rotation and ``newest`` pass over; return the new names.

    A run that goes back to an earlier step begins a branch: what the other one holds stays, and is not resumed by chance.
    """
    moved = []
    for step in steps(folder):
        if step > after:
            path = path_of(folder, step)
            names = (f"aside{number or ''}_{path.name}" for number in itertools.count())  # of more than one branch
            aside = next(folder / name for name in names if not (folder / name).exists())
            path.replace(aside)
            moved.append(aside)
    return moved


def protect(folder: Path, step: int) -> Path:
    """Give a checkpoint a second name that rotation leaves alone, ``finite_step_00001200.pt``; return it."""
    path = path_of(folder, step)
    second = folder / f"finite_{path.name}"
    if path.is_dir():
        beside = folder / f".{second.name}.tmp"
        for stale in (beside, second):
            shutil.rmtree(stale, ignore_errors=True)
        shutil.copytree(path, beside, copy_function=_linked)
        beside.rename(second)
        return second
    with replacing(second, "checkpoint") as beside:
        beside.unlink(missing_ok=True)
        _linked(path, beside)
    return second


def _linked(path: str | Path, second: str | Path) -> None:
    try:
        os.link(path, second)
    except OSError:  # a file system without links
        shutil.copyfile(path, second)


def _system_refusal(error: BaseException, path: Path) -> OSError:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return OSError(None, f"{str(error).splitlines()[0]} (is the disk full?)", str(path))


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in the folder, ascending."""
    paths = (path for path in folder.glob("step_*") if path.suffix == ".pt" or path.is_dir())
    return sorted({int(match.group(1)) for path in paths if (match := _NAME.fullmatch(path.name))})


def newest(folder: Path, parts: Collection[str] = ()) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in a folder and its state, None where there is none; damaged ones are passed over and named.

    Raises WeightsError when all of them are damaged.
    """
    saved = steps(folder)
    first: WeightsError | None = None
    for step in reversed(saved):
        path = path_of(folder, step)
        try:
            state = load(path, parts)
        except WeightsError as error:
            first = first or error
            log.warn(error.line)
        else:
            if first is not None:
                log.warn(f"resuming from {path} instead")
            return path, state
    if first is not None:
        raise WeightsError(f"{folder}: none of the {len(saved)} checkpoints is whole; the newest: {first.line}")
    return None


def load(path: Path, parts: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything in it; ``parts`` it must have. Raises WeightsError.

    Checksums are compared, so that flipped bytes are noticed. Of a folder this is a collective: processes share its files
    and raise the same error; tensors of weights and optimizer are ``StoredTensor``, which layouts read their part of.
    """
    state = _folder_state(path) if path.is_dir() else _file_state(path)
    if isinstance(state, dict) and parts and not set(parts) & set(state):
        raise WeightsError(
            f"{path}: not a checkpoint of a run of ours; if it holds another program's weights, start from them with "
            f"--pretrained {path}"
        )
    if not isinstance(state, dict) or not set(parts) <= set(state):
        lacking = sorted(set(parts) - set(state)) if isinstance(state, dict) else sorted(parts)
        raise WeightsError(f"{path}: not a checkpoint of a run, {', '.join(lacking)} is missing{_before(path)}")
    return state


def _file_state(path: Path) -> Any:
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, *BROKEN_ZIP) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a whole checkpoint ({reason[:160]}){_before(path)}") from error


def _folder_state(path: Path) -> dict[str, Any]:
    line, folder = None, None
    try:
        folder = CheckpointFolder(path)
        names = sorted(folder.manifest.files)[rank() :: size()]  # each process reads its share of the bytes
        line = folder.damage(names) or None
    except WeightsError as error:
        line = error.line.partition(": not a whole checkpoint (")[2].removesuffix(")")
    line = first_not_none(line)
    if line is not None or folder is None:
        raise WeightsError(f"{path}: not a whole checkpoint ({line}){_before(path)}")
    return restored_tree(folder)


def restored_tree(folder: CheckpointFolder) -> dict[str, Any]:
    """A folder's tree: tensors of weights and optimizer to be read by layouts, others, and those of one element, read."""
    from diptych.distributed.stored_tensors import StoredTensor  # half a second of imports that files do not need

    def tensor(name: str) -> Any:
        lazy = name.partition("/")[0] in LAID_OUT and folder.manifest.tensors[name].shape
        return StoredTensor(folder, name) if lazy else folder.whole(name)

    return folder.tree(tensor)


LAID_OUT = ("weights", "step_state")
"""The parts of a checkpoint that layouts divide."""
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error)


def _check_sums(path: Path) -> None:
    """Read every part of the file once and compare its CRC-32. Raises ValueError for one that differs."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its bytes have changed since it was written, in {damaged}")


def _before(path: Path) -> str:
    """What to do about a broken checkpoint."""
    match = _NAME.fullmatch(path.name)
    earlier = [step for step in steps(path.parent) if match and step < int(match.group(1))]
    return (
        f"; the one before it: --resume {path_of(path.parent, earlier[-1])}" if earlier else "; none stands before it."
    )
