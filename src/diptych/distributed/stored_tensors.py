"""Tensors of a checkpoint folder, read into tensors of any layout: each process reads the blocks that it holds.

torch.distributed.checkpoint plans which blocks these are; the manifest is its metadata, and files of safetensors its storage.
No process waits for another. Whole tensors in one process need none of this: ``diptych.tensorfiles.checkpoint_folder``.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from diptych.errors import WeightsError
from diptych.tensorfiles.checkpoint_folder import CheckpointFolder

# DCP's line on what is meant here: a read in which no process waits for another.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class StoredTensor:
    """A tensor of a checkpoint folder that is not read yet."""

    def __init__(self, folder: CheckpointFolder, name: str) -> None:
        self.folder, self.name = folder, name
        entry = folder.manifest.tensors[name]
        self.dtype, self.shape = entry.dtype, torch.Size(entry.shape)

    def whole(self) -> Tensor:
        """All of it, on the CPU."""
        return self.folder.whole(self.name)


class _Reader(dcp.StorageReader):  # type: ignore[misc]
    """Reads the blocks that a plan names from a folder's files."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is carried from one read to the next."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The folder is given to the reader itself."""
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in DCP's types."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(entry.dtype),
                    torch.Size(entry.shape),
                    [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in entry.parts],
                )
                for name, entry in self.folder.manifest.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As it is."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy each block into its target."""
        tensors = self.folder.manifest.tensors
        requests = []
        for item in plan.items:
            index = item.storage_index
            part = next(part for part in tensors[index.fqn].parts if part.offsets == tuple(index.offset or ()))
            slices = [
                slice(first, first + length) for first, length in zip(item.storage_offsets, item.lengths, strict=True)
            ]
            requests.append((index.fqn, part, slices))
        for item, block in zip(plan.items, self.folder.blocks(requests), strict=True):
            target = planner.resolve_tensor(item).detach()
            target.copy_(block)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def read_into(pairs: Sequence[tuple[StoredTensor, Tensor]]) -> None:
    """Fill tensors, sharded ones with what this process holds of them; no process waits for another.

    Raises WeightsError where a shape is another than the stored one, or a file cannot be read.
    """
    for folder in {id(stored.folder): stored.folder for stored, _ in pairs}.values():
        targets = {}
        for stored, target in pairs:
            if stored.folder is folder:
                if stored.shape != target.shape:
                    raise WeightsError(
                        f"{folder.path}: {stored.name} has shape {list(stored.shape)}, {list(target.shape)} is expected"
                    )
                targets[stored.name] = target
        with _own_errors():
            dcp.load(
                targets, storage_reader=_Reader(folder), no_dist=True, planner=dcp.DefaultLoadPlanner(False, False)
            )


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except dcp.api.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
