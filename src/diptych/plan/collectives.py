"""What one training step sends between processes: which collectives, how often, and how many bytes go into them.

Formulas of the layouts in ``diptych.distributed``; tests count the same in real steps of several processes. Not the
collectives of the loop around the step (one to ask whether to stop, means at a logged step), nor of validation and saving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from diptych.distributed.mesh import Degrees
from diptych.plan.state import FP32, Parameter, units_of

# DistributedDataParallel's own: a first bucket of 1 MiB, so that the first exchange begins early, then 25 MiB.
BUCKETS = (1 << 20, 25 << 20)


FIRST_TOWER = "model.image"
"""The unit whose forward pass ends before the text tower's begins."""


@dataclass(frozen=True)
class Collective:
    """``count`` collectives of one ``kind`` a step for one ``purpose``, over groups of ``processes``.

    ``given``: bytes of all tensors that a process gives to them: its own part of a gather, the whole of what is scattered or
    summed.
    """

    kind: str
    purpose: str
    processes: int
    count: int
    given: int

    @property
    def sent(self) -> int:
        """Bytes that each process sends, by the ring algorithms, which no algorithm can undercut for large tensors."""
        others = self.processes - 1
        if self.kind == "all-gather":
            return self.given * others
        if self.kind == "reduce-scatter":
            return self.given * others // self.processes
        if self.kind == "all-reduce":
            return 2 * self.given * others // self.processes
        return self.given


@dataclass(frozen=True)
class Sums:
    """What a tensor group sums in one micro-batch: how often and how many bytes, in the forward pass of ``encode`` and in all."""

    forward: tuple[int, int] = (0, 0)
    both: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class StepShape:
    """What the collectives of a step depend on beside the parameters.

    ``sharding`` as the option has it; ``micro_batches`` of each process; ``pairs`` of each data process in all of them;
    ``width`` of the embedding; ``sums`` of a tensor group; ``ready`` the order in which gradients become ready; ``buffers`` and
    ``counters``: elements of floating-point and of whole-number buffers; ``statistics``: of running means and variances;
    ``optimizer``: LAMB needs the norms of whole matrices.
    """

    sharding: str
    micro_batches: int
    pairs: int
    width: int
    sums: Sums = Sums()
    ready: tuple[str, ...] = ()
    buffers: int = 0
    counters: int = 0
    statistics: int = 0
    optimizer: str = "adamw"


def collectives_of(
    parameters: Sequence[Parameter], degrees: Degrees, step: StepShape, objective: str
) -> list[Collective]:
    """Every collective of a step on one process, those that there are none of left out."""
    tensors = _split_layers(degrees, step)
    if degrees.data > 1:
        loss = sigmoid_ring if objective == "siglip" else contrastive_gather
        tensors += loss(degrees.data, step)
        tensors += _gradients(parameters, degrees, step)
    world = degrees.data * degrees.tensor
    if world > 1:
        tensors.append(Collective("all-reduce", "is the step finite", world, 1, 8))
        tensors += _norm(parameters, degrees, step)
        tensors.append(_matrix_norms(parameters, degrees, step))
    return [item for item in tensors if item.count]


def contrastive_gather(processes: int, step: StepShape) -> list[Collective]:
    """CLIP's loss: features of all, and their gradients back, by all-reduce, which every backend has."""
    own = FP32 * step.pairs * step.width
    return [
        Collective("all-gather", "features", processes, 2, 2 * own),
        Collective("all-reduce", "gradients of features", processes, 2, 2 * own * processes),
    ]


def sigmoid_ring(processes: int, step: StepShape) -> list[Collective]:
    """SigLIP's loss: texts travel around the ring of processes, their gradients all the way home."""
    own = FP32 * step.pairs * step.width
    return [
        Collective("send", "texts around the ring", processes, processes - 1, own * (processes - 1)),
        Collective("send", "gradients of texts", processes, processes, own * processes),
    ]


def _split_layers(degrees: Degrees, step: StepShape) -> list[Collective]:
    """The sums of a tensor group: encoding without gradient is half of a pass, and only micro-batches need it."""
    if degrees.tensor == 1:
        return []
    parts = step.micro_batches
    first = step.sums.forward if parts > 1 else (0, 0)
    count, given = (parts * (both + once) for both, once in zip(step.sums.both, first, strict=True))
    return [Collective("all-reduce", "split layers", degrees.tensor, count, given)]


def _gradients(parameters: Sequence[Parameter], degrees: Degrees, step: StepShape) -> list[Collective]:
    if step.sharding != "none":
        return _sharded(parameters, degrees, step)
    trained = {item.name: item for item in parameters if item.trained}
    if degrees.tensor > 1:
        statistics = Collective("broadcast", "batch statistics", degrees.data, 1, FP32 * step.statistics)
        elements = sum(item.local(degrees) for item in trained.values())  # joined, in the type of the largest
        all_at_once = Collective("all-reduce", "gradients", degrees.data, 1, FP32 * elements)
        return [all_at_once, *([statistics] if step.statistics else [])]
    floats = Collective("broadcast", "buffers", degrees.data, int(step.buffers > 0), FP32 * step.buffers)
    counters = Collective("broadcast", "counters of buffers", degrees.data, int(step.counters > 0), 8 * step.counters)
    compared = [name for name in trained if name not in step.ready]  # the loss's own, whose gradients come first
    buckets = len(_buckets([trained[name] for name in (*compared, *step.ready)]))
    given = sum(item.size * item.whole for item in trained.values())
    return [Collective("all-reduce", "gradients", degrees.data, buckets, given), floats, counters]


def _buckets(trained: Sequence[Parameter]) -> list[list[int]]:
    """How DistributedDataParallel groups gradients, each type apart, in the order in which they become ready."""
    types = {FP32: torch.float32, 2: torch.bfloat16}
    tensors = [torch.empty(item.whole, dtype=types[item.size], device="meta") for item in trained]
    groups, _ = dist._compute_bucket_assignment_by_size(tensors, list(BUCKETS))
    return groups  # type: ignore[no-any-return]


def _sharded(parameters: Sequence[Parameter], degrees: Degrees, step: StepShape) -> list[Collective]:
    """FSDP2's: parameters gathered for passes, gradients scattered, replicas of shards averaged, the whole scalars averaged.

    In micro-batches the first pass, without gradient, gathers once where nothing is freed after forward.
    """
    units, parts = units_of(parameters, degrees), step.micro_batches
    trained = [unit for unit in units if unit.trained]
    passes = (1 if parts > 1 else 0) + parts
    scattered = 1 if step.sharding == "stage1" else parts
    gathers, part = passes * len(units), passes * sum(unit.part for unit in units)
    if step.sharding == "stage3":
        forwards = parts * (2 if parts > 1 else 1)
        freed = [unit for unit in units if unit.name]  # the objective itself is not freed after forward
        gathers = forwards * len(units) + parts * len([unit for unit in freed if unit.trained])
        part = forwards * sum(unit.part for unit in units) + parts * sum(unit.part for unit in freed if unit.trained)
        if any(unit.name == FIRST_TOWER and not unit.trained for unit in units) and trained:
            # The backward pass of what follows a locked tower fetches it ahead of a need that there is not.
            gathers += 1
            part += sum(unit.part for unit in units if unit.name == FIRST_TOWER)
    own = scattered * sum(unit.trained for unit in trained)
    scalars = sum(FP32 for item in parameters if item.trained and item.whole == 1)
    results = [
        Collective("all-gather", "parameters", degrees.shards, gathers, part),
        Collective("reduce-scatter", "gradients", degrees.shards, scattered * len(trained), own * degrees.shards),
        Collective("all-reduce", "scale and bias", degrees.data, int(scalars > 0), scalars),
    ]
    if degrees.replicas > 1:
        count = scattered * len(trained)
        results.append(Collective("all-reduce", "gradients of replicas", degrees.replicas, count, own))
    if step.statistics:
        results.append(Collective("broadcast", "batch statistics", degrees.data, 1, FP32 * step.statistics))
    return results


def _norm(parameters: Sequence[Parameter], degrees: Degrees, step: StepShape) -> list[Collective]:
    """The norm of gradients that are in parts: one number for all that lie on the same mesh, summed over each dimension of it."""
    trained = [item for item in parameters if item.trained and item.whole > 1]
    split = int(degrees.tensor > 1 and any(item.split is not None for item in trained))
    if step.sharding == "none":
        return [Collective("all-reduce", "norm of gradients", degrees.tensor, split, FP32 * split)]
    whole = int(bool(trained))
    twice = Collective("all-reduce", "norm of split gradients", degrees.tensor, 2 * split, 2 * FP32 * split)
    return [Collective("all-reduce", "norm of gradients", degrees.shards, whole, FP32 * whole), twice]


def _matrix_norms(parameters: Sequence[Parameter], degrees: Degrees, step: StepShape) -> Collective:
    """LAMB's: two norms of each matrix in parts, each used twice, summed over every dimension of the mesh that divides it."""
    matrices = [item for item in parameters if item.trained and len(item.shape) > 1 and step.optimizer == "lamb"]
    sharded = 1 if step.sharding != "none" else 0
    split = [item for item in matrices if item.split is not None and degrees.tensor > 1]
    count = 4 * (sharded * len(matrices) + len(split))
    return Collective("all-reduce", "norms of matrices", degrees.shards * degrees.tensor, count, FP32 * count)
