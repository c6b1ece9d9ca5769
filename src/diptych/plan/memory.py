"""The memory of one process at the worst moment of a step, part by part, in bytes.

State is exact (``state``), activations are counted on the real towers without memory (``train.dry_run``), what a loss holds is a
formula of its code (``train.loss_memory``). Not counted: what kernels and collective libraries use inside, and what an allocator
rounds up; a share of the device is held back for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from diptych.distributed.mesh import Degrees
from diptych.plan.state import Parameter, state_of, units_of
from diptych.train.loss_memory import LossMemory


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: state, ``gathered`` parameters and gradients of shards in use, the batch and what comes of it.

    ``masters``: fp32 copies of parameters that are stored in less.
    """

    parameters: int
    gradients: int
    moments: int
    gathered: int
    batch: int
    activations: int
    features: int
    logits: int
    in_pieces: bool
    masters: int = 0

    @property
    def total(self) -> int:
        """The worst moment. In micro-batches either the loss is computed or one of them is encoded; else all is there at once."""
        parts = self.rows()
        together = sum(parts.values())
        return together - min(parts["activations"], parts["logits"]) if self.in_pieces else together

    def rows(self) -> dict[str, int]:
        """The parts by name, in bytes."""
        return {name: value for name, value in asdict(self).items() if name != "in_pieces"}


@dataclass(frozen=True)
class Work:
    """Bytes that a step's pairs take: the whole ``batch``, ``activations`` of what is encoded at once, the ``loss``."""

    batch: int
    activations: int
    loss: LossMemory
    in_pieces: bool


def memory_of(parameters: Sequence[Parameter], degrees: Degrees, sharding: str, optimizer: str, work: Work) -> Memory:
    """All of it for the process that has the most."""
    state = state_of(parameters, degrees, optimizer)
    gathered = _gathered(parameters, degrees, sharding) if sharding != "none" else 0
    batch, activations, loss, in_pieces = work.batch, work.activations, work.loss, work.in_pieces
    held = (state.parameters, state.gradients, state.moments, gathered, batch, activations)
    return Memory(*held, loss.features, loss.logits, in_pieces, state.masters)


def _gathered(parameters: Sequence[Parameter], degrees: Degrees, sharding: str) -> int:
    """What FSDP2 holds beside the shards: gathered parameters, the buffers they arrive in, gradients that wait to be scattered.

    stage3 holds the units in use, the next one, and the tower's own; the others hold all parameters from forward to backward.
    stage1 in micro-batches holds all gradients whole too, which is assumed here.
    """
    units = units_of(parameters, degrees)
    sizes = sorted((unit.part * degrees.shards for unit in units), reverse=True)
    trained = sum(unit.trained for unit in units) * degrees.shards
    largest = sizes[0]
    if sharding == "stage3":
        towers = [unit.part * degrees.shards for unit in units if not unit.block]
        in_use = max(towers, default=0) + sum(sizes[1:3])
    else:
        in_use = sum(sizes)
    buffers = 3 * largest  # of a gather, and of gradients before and in their exchange
    return in_use + buffers + (trained if sharding == "stage1" else 0)
