"""Checkpoints: written whole or not at all, and read without running code.

One file per step, ``step_00001200.pt``, holding nested dictionaries of tensors and plain values; ``torch.load`` with
``weights_only`` reads it, so no pickle is executed. Not sharded: the state of all ranks is gathered first.
"""

from __future__ import annotations

import contextlib
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
from diptych.errors import WeightsError
from diptych.files import replacing

_NAME = re.compile(r"step_(\d+)\.pt")


def path_of(folder: Path, step: int) -> Path:
    """The file of a step's checkpoint."""
    return folder / f"step_{step:08d}.pt"


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int = 0) -> Path:
    """Write a checkpoint beside the others and, with ``keep`` > 0, drop all but the newest ``keep``.

    Raises OutputError when the disk refuses; every earlier checkpoint stays whole.
    """
    path = path_of(folder, step)
    for left in folder.glob(".step_*.tmp"):  # by a process that was killed while it wrote: one process writes at a time
        with contextlib.suppress(OSError):
            left.unlink()
    with replacing(path, "checkpoint") as beside:
        try:
            with beside.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:
            # torch's own writer turns the system's refusal into a RuntimeError; find what the system said.
            raise _system_refusal(error, beside) from error
    if keep > 0:
        for old in [item for item in steps(folder) if item != step][: -(keep - 1) or None]:
            with contextlib.suppress(OSError):
                path_of(folder, old).unlink()
    return path


def set_aside(folder: Path, after: int) -> list[Path]:
    """Give checkpoints of later steps another name, which rotation and ``newest`` pass over; return the new names.

    A run that goes back to an earlier step begins a branch: what the other one holds stays, and is not resumed by chance.
    """
    moved = []
    for step in steps(folder):
        if step > after:
            aside = folder / f"aside_{path_of(folder, step).name}"
            path_of(folder, step).replace(aside)
            moved.append(aside)
    return moved


def protect(folder: Path, step: int) -> Path:
    """Give a checkpoint a second name that rotation leaves alone, ``finite_step_00001200.pt``; return it."""
    second = folder / f"finite_{path_of(folder, step).name}"
    with replacing(second, "checkpoint") as beside:
        beside.unlink(missing_ok=True)
        try:
            os.link(path_of(folder, step), beside)
        except OSError:  # a file system without links
            shutil.copyfile(path_of(folder, step), beside)
    return second


def _system_refusal(error: BaseException, path: Path) -> OSError:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return OSError(None, f"{str(error).splitlines()[0]} (is the disk full?)", str(path))


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in the folder, ascending."""
    matches = (_NAME.fullmatch(file.name) for file in folder.glob("step_*.pt"))
    return sorted(int(match.group(1)) for match in matches if match)


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

    The checksums that torch writes are compared, so that flipped bytes are noticed.
    """
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, *BROKEN_ZIP) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a whole checkpoint ({reason[:160]}){_before(path)}") from error
    if isinstance(state, dict) and parts and not set(parts) & set(state):
        raise WeightsError(
            f"{path}: not a checkpoint of a run of ours; if it holds another program's weights, start from them with "
            f"--pretrained {path}"
        )
    if not isinstance(state, dict) or not set(parts) <= set(state):
        lacking = sorted(set(parts) - set(state)) if isinstance(state, dict) else sorted(parts)
        raise WeightsError(f"{path}: not a checkpoint of a run, {', '.join(lacking)} is missing{_before(path)}")
    return state


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
