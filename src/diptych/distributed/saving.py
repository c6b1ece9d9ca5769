"""When a checkpoint is written, by whom, and what follows when it cannot be: at once, or while training goes on.

    --checkpoint-kind file      the state is gathered, and the first process writes one file
    --checkpoint-kind folder    every process writes its own part into a folder

With ``--async-save`` the state is copied into the host's memory before ``save`` returns, and written by a thread, over a process
group of its own; one checkpoint at most is pending. All processes agree on how a checkpoint ended: it is whole, the run stops
with one line, or it goes on with one line (``--on-save-error warn``). What is in a checkpoint is for ``train`` to say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from diptych import log
from diptych.distributed import checkpoint
from diptych.distributed.process_group import Group, World, all_gather_object
from diptych.errors import DistributedError, OutputError

if TYPE_CHECKING:
    from diptych.distributed.checkpoint_folder import PartOfTensor

SLOW_DISK = 1800.0  # seconds at least that processes wait for each other's files, which may take minutes
Kind = Literal["file", "folder"]


@dataclass(frozen=True)
class SaveOptions:
    """``kind`` of checkpoints; whether they are written while training goes on; whether a failure stops; how many stay."""

    kind: Kind = "file"
    asynchronous: bool = False
    on_error: Literal["stop", "warn"] = "stop"
    keep: int = 0  # all


class SaveFailedError(OutputError):
    """A checkpoint could not be written: the same on every process."""

    on_every_rank = True


class _Pending(threading.Thread):
    """The thread that writes the checkpoint of a step; ``failure`` is set when it could not."""

    def __init__(self, step: int, work: Callable[[], None]) -> None:
        super().__init__(name=f"checkpoint of step {step}", daemon=True)
        self.step, self.work = step, work
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Write it."""
        self.failure = _failure_of(self.work)


class CheckpointWriter:
    """Writes the checkpoints of a run into its folder ``checkpoints``.

    ``timeout``: seconds that processes wait for each other in it, half an hour at least. Its methods but ``failed`` and ``close``
    are collectives.
    """

    def __init__(self, folder: Path, world: World, options: SaveOptions, timeout: float = SLOW_DISK) -> None:
        self.folder, self.world, self.options = folder, world, options
        self.last: int | None = None
        """The step of the last checkpoint of this sitting that is whole."""
        self._pending: _Pending | None = None
        self._copies = Copies()
        self._group: Group = None
        if world.size > 1:
            # Of its own: on the default group a thread's collectives would mix with those of training.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(timeout, SLOW_DISK)))

    @property
    def whole(self) -> bool:
        """Whether tensors must be whole; else each process gives what it holds."""
        return self.options.kind == "file"

    @property
    def failed(self) -> bool:
        """Whether the pending checkpoint has failed on this process: ``settle`` will say so, and need not be waited for."""
        return self._pending is not None and self._pending.failure is not None

    def save(self, step: int, tree: Mapping[str, Any], wait: bool = False) -> None:
        """Write a checkpoint after the one before is settled; with ``wait``, at once in any case.

        ``tree`` holds plain values and tensors, whole or sharded as ``whole`` says. Raises SaveFailedError.
        """
        self.settle()
        asynchronous = self.options.asynchronous and not wait
        work = self._work(step, tree, asynchronous)
        if not asynchronous:
            self._agree(step, _failure_of(work))
            return
        self._pending = _Pending(step, work)
        self._pending.start()

    def settle(self) -> None:
        """Wait for the pending checkpoint, if there is one. Raises SaveFailedError."""
        pending = self._pending
        if pending is None:
            return
        pending.join()  # an interrupt in here leaves it pending, for close
        self._pending = None
        self._agree(pending.step, pending.failure)

    def close(self) -> None:
        """At the end of a run that failed: wait for this process's part of the pending checkpoint, and say if that failed too."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.join()
        if pending.failure is not None:
            log.warn(f"the checkpoint of step {pending.step} was not written either: {_line(pending.failure)}")
        else:
            self.last = pending.step

    def _work(self, step: int, tree: Mapping[str, Any], copied: bool) -> Callable[[], None]:
        """What is left to do once the state is this checkpoint's: nothing of it changes any more."""
        main, folder, keep = self.world.main, self.folder, self.options.keep
        if self.options.kind == "file":
            if not main:
                return lambda: None
            state = self._copies.of_tree(tree) if copied else tree
            self._copies.wait()
            return lambda: _write_file(folder, step, state, keep)
        from diptych.distributed import checkpoint_folder

        plain, tensors = checkpoint_folder.separated(tree)
        parts = checkpoint_folder.own_parts(tensors, main)
        if copied:
            parts = self._copies.of_parts(parts)
            self._copies.wait()
        return lambda: _write_folder(folder, step, plain, parts, keep=keep, main=main, group=self._group)

    def _agree(self, step: int, failure: BaseException | None) -> None:
        """All processes learn how a checkpoint ended. Raises SaveFailedError, or the failure itself where it is no disk's."""
        reports = all_gather_object(
            None if failure is None else (_line(failure), isinstance(failure, OutputError)), self._group
        )
        lines = [report for report in reports if report is not None]
        if not lines:
            self.last = step
            return
        if failure is not None and not isinstance(failure, OutputError):
            raise failure
        faults = [line for line, of_the_disk in lines if not of_the_disk]
        if faults:
            raise DistributedError(f"another process could not write its part of the checkpoint: {faults[0]}")
        if self.options.on_error == "stop":
            raise SaveFailedError(lines[0][0])
        log.warn(f"{lines[0][0]} The run goes on without it (--on-save-error warn).")


def _write_file(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    checkpoint.save(folder, step, state, keep)


def _write_folder(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    parts: Mapping[str, PartOfTensor],
    *,
    keep: int,
    main: bool,
    group: Group,
) -> None:
    from diptych.distributed import checkpoint_folder

    if main:
        checkpoint.remove_unfinished(folder)
    path = checkpoint.folder_of(folder, step)
    checkpoint_folder.write(path, state, parts, group)
    if main:
        checkpoint.remove(path.with_suffix(".pt"))  # of the same step, by a sitting that wrote files
        checkpoint.rotate(folder, step, keep)


def _failure_of(work: Callable[[], None]) -> BaseException | None:
    """What work ends with; an interrupt is no failure of it."""
    try:
        work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the processes must agree first
        return error
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Copies:
    """Copies of tensors in the host's memory, which the next checkpoint uses again: new memory would cost more than the copy.

    Those from an accelerator go into page-locked memory, one after the other without a wait between them: call ``wait`` after.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._device: torch.device | None = None  # from which copies are on their way

    def of_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A copy that later changes of the tensor do not reach; whole after ``wait``."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
            copy = self._copies[name] = fresh if tensor.is_cpu else _locked(fresh)
        if not tensor.is_cpu:
            self._device = tensor.device
        return copy.copy_(tensor.detach(), non_blocking=True)

    def wait(self) -> None:
        """Wait once, until every copy is whole."""
        device, self._device = self._device, None
        if device is not None:
            torch.accelerator.current_stream(device).synchronize()

    def of_parts(self, parts: Mapping[str, PartOfTensor]) -> dict[str, PartOfTensor]:
        """Copies of a process's parts."""
        return {
            name: type(part)(self.of_tensor(name, part.local), part.offsets, part.shape) for name, part in parts.items()
        }

    def of_tree(self, tree: Any, name: str = "") -> Any:
        """A tree of which every tensor is copied, and every dictionary and list is another."""
        if isinstance(tree, Tensor):
            return self.of_tensor(name, tree)
        if isinstance(tree, Mapping):
            return {key: self.of_tree(item, f"{name}/{key}") for key, item in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self.of_tree(item, f"{name}/{number}") for number, item in enumerate(tree))
        return tree


def _locked(tensor: Tensor) -> Tensor:
    """The same in page-locked memory, where the machine has such."""
    try:
        return tensor.pin_memory()
    except (RuntimeError, NotImplementedError):
        return tensor
