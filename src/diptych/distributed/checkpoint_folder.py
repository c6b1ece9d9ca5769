"""Checkpoints that every process writes its own part of, on torch.distributed.checkpoint (DCP), as a folder.

DCP plans who writes what and who reads what, in any pair of layouts; its storage is replaced by ours: a file of safetensors per
process, and a manifest of JSON with a digest of each file (``diptych.tensorfiles.manifest``) in place of the pickle
``.metadata``. Replacing it was chosen over reading it safely: a folder then holds no pickle at all, for nobody's reader.

A folder is written under another name and renamed when every process is done, so that one that has its name is whole. The
planner is ours too: it plans ``PartOfTensor``, which a copy in the host's memory can stand for while training goes on. Reading is
``stored_tensors``'; when a checkpoint is written, and what follows from a failure, ``saving``'s.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from diptych.distributed.process_group import Group, rank, size
from diptych.errors import OutputError
from diptych.files import flush_to_disk
from diptych.tensorfiles.checkpoint_folder import digest_of, key_of
from diptych.tensorfiles.manifest import MANIFEST, REFERENCE, Entry, FileDigest, Manifest, Part, written

# DCP's line on what is meant here: a checkpoint of one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class PartOfTensor:
    """``local``, on any device, is the block at ``offsets`` of a tensor of this ``shape``."""

    local: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def separated(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's tree as plain values, with ``{"$tensor": name}`` for each tensor, and the tensors by these names.

    Raises ValueError for keys that are no texts or have a slash.
    """
    tensors: dict[str, Tensor] = {}

    def plain(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, Tensor):
            name = "/".join(path)
            if name in tensors:
                raise ValueError(f"two tensors of a checkpoint would be {name}")
            tensors[name] = node.detach()
            return {REFERENCE: name}
        if isinstance(node, Mapping):
            if not all(isinstance(key, str) and "/" not in key and key != REFERENCE for key in node):
                raise ValueError(f"a checkpoint's names are texts without a slash; {'/'.join(path)} has others")
            return {key: plain(item, (*path, key)) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [plain(item, (*path, str(number))) for number, item in enumerate(node)]
        return node

    return {key: plain(item, (key,)) for key, item in tree.items()}, tensors


def own_parts(tensors: Mapping[str, Tensor], main: bool) -> dict[str, PartOfTensor]:
    """What this process writes of some tensors: its shards; whole tensors are the ``main`` process's."""
    parts = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if not hasattr(tensor, "device_mesh"):
            if main:
                parts[name] = PartOfTensor(tensor, (0,) * len(shape), shape)
            continue
        sharded: Any = tensor
        if any(
            placement.is_replicate() and sharded.device_mesh.get_local_rank(axis)
            for axis, placement in enumerate(sharded.placements)
        ):
            continue  # the first of the replicas writes it
        chunk = sharded.__create_chunk_list__()[0]
        if math.prod(chunk.sizes) or (main and not math.prod(shape)):
            parts[name] = PartOfTensor(sharded.to_local(), tuple(chunk.offsets), shape)
    return parts


class _Planner(dcp.DefaultSavePlanner):  # type: ignore[misc]
    """Plans the parts that it is given; one that several processes have is written by the lowest rank, as in a single file."""

    def __init__(self, parts: Mapping[str, PartOfTensor]) -> None:
        self.parts = parts
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def create_local_plan(self) -> SavePlan:
        """One item for each part of this process."""
        items = []
        for name, part in self.parts.items():
            chunk = ChunkStorageMetadata(torch.Size(part.offsets), part.local.shape)
            data = TensorWriteData(chunk, TensorProperties(part.local.dtype), torch.Size(part.shape))
            items.append(WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The tensor of a part."""
        return self.parts[index.fqn].local


class _Writer(dcp.StorageWriter):  # type: ignore[misc]
    """Writes one file of this process beside the folder's name; the first process adds the manifest and renames."""

    def __init__(self, path: Path, state: Mapping[str, Any], number: int) -> None:
        self.path, self.state, self.number = path, state, number
        self.beside = path.with_name(f".{path.name}.tmp")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is carried from one checkpoint to the next."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The path is given to the writer itself."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder; the others write only after the plan, which comes from the first process."""
        if is_coordinator:
            shutil.rmtree(self.beside, ignore_errors=True)
            self.beside.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As it is."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and flush this process's file; each result carries its name and digest."""
        results: list[WriteResult] = []
        if plan.items:
            name = f"rank_{self.number:05d}.safetensors"
            values, addresses = {}, set[int]()
            for item in plan.items:
                resolved: Any = planner.resolve_data(item)
                value, key = resolved.cpu().contiguous(), key_of(item.index.fqn, item.index.offset or ())
                # Tied tensors would be refused: safetensors writes no bytes twice.
                values[key] = value.clone() if value.data_ptr() in addresses else value
                addresses.add(value.data_ptr())
            try:
                save_file(values, self.beside / name)
            except SafetensorError as error:
                raise OSError(None, str(error), str(self.beside / name)) from error
            flush_to_disk(self.beside / name)
            stored = (name, digest_of(self.beside / name))
            results = [WriteResult(item.index, item.tensor_storage_size() or 0, stored) for item in plan.items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first process, when all are done: the manifest, then the folder's name."""
        files: dict[str, FileDigest] = {}
        tensors: dict[str, Any] = metadata.state_dict_metadata
        parts: dict[str, list[Part]] = {name: [] for name in tensors}
        sizes = {
            (name, tuple(chunk.offsets)): tuple(chunk.sizes)
            for name, entry in tensors.items()
            for chunk in entry.chunks
        }
        for result in (item for items in results for item in items):
            file, digest = result.storage_data
            files[file] = digest
            offsets, name = tuple(result.index.offset or ()), result.index.fqn
            if math.prod(sizes[name, offsets]):
                parts[name].append(Part(file, offsets, sizes[name, offsets]))
        entries = {
            name: Entry(entry.properties.dtype, tuple(entry.size), tuple(parts[name]))
            for name, entry in tensors.items()
        }
        text = written(Manifest(files, entries, self.state))
        with (self.beside / MANIFEST).open("wb") as file:
            file.write(text)
        flush_to_disk(self.beside / MANIFEST)
        flush_to_disk(self.beside)
        replace_folder(self.beside, self.path)


def replace_folder(beside: Path, path: Path) -> None:
    """Give a whole folder its name. One of that name before is there until the very last: two renames, then it is removed."""
    old = path.with_name(f".{path.name}.replaced.tmp")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    beside.rename(path)
    flush_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write(path: Path, state: Mapping[str, Any], parts: Mapping[str, PartOfTensor], group: Group = None) -> None:
    """Write a checkpoint folder of plain ``state`` and every process's ``parts``. A collective over ``group``.

    Raises OutputError, the same on every process, when the disk of one refuses; nothing is left of the folder then.
    """
    writer = _Writer(path, state, rank(group))
    try:
        # The planner has the parts: DCP logs a line for every entry of its own argument.
        dcp.save({}, storage_writer=writer, planner=_Planner(parts), process_group=group, no_dist=size(group) == 1)
    except dcp.api.CheckpointException as error:
        if rank(group) == 0:
            shutil.rmtree(writer.beside, ignore_errors=True)
        number, cause = next(iter((number, failure[0]) for number, failure in sorted(error.failures.items())))
        if not isinstance(cause, OSError):
            raise cause from error
        who = f" (rank {number})" if size(group) > 1 else ""
        raise OutputError(
            f"the checkpoint {path} could not be written: {cause.strerror or cause}{who}. The ones before are whole. "
            "Free some space or choose another folder."
        ) from error
