"""What of a model's training state each process holds, to the byte: parameters, gradients, moments, under any degrees.

Counted from the parameters of the real objective, on the meta device, in the type that they are stored in: fp32, or bf16 of which
the optimizer may move fp32 copies. A parameter is split first over the tensor group, then over shards by rows, as
``distributed.sharded`` does it. Activations are not state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from diptych.distributed.mesh import Degrees
from diptych.distributed.tensor_parallel import split_parameters
from diptych.objectives import Objective
from diptych.train.muon import hidden_matrices

FP32 = 4  # bytes
OUTER = ("model.image", "model.text", "")
"""Units of sharding that hold what is in no block."""

MOMENTS = {"adamw": 2, "lamb": 2, "sgd": 1}
"""How many tensors of a parameter's size an optimizer holds; Muon has one for hidden matrices, AdamW's two for the rest."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its ``unit`` of sharding, the dimension along which a tensor group splits it (None: whole).

    ``size`` bytes of an element as it is stored, ``master`` of its copy that the optimizer moves, 0 where there is none.
    """

    name: str
    shape: tuple[int, ...]
    trained: bool
    unit: str
    split: int | None
    hidden: bool
    size: int = FP32
    master: int = 0

    @property
    def moved(self) -> int:
        """Bytes of an element of what the optimizer moves, of its gradient then, and of each moment."""
        return self.master or self.size

    @property
    def whole(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    def of_group(self, tensor: int) -> tuple[int, ...]:
        """The shape that each of ``tensor`` processes has before sharding."""
        if self.split is None:
            return self.shape
        return tuple(size // tensor if axis == self.split else size for axis, size in enumerate(self.shape))

    def padded(self, degrees: Degrees) -> int:
        """Elements of this parameter in what a process brings to a gather: rows are filled up to the same number on all."""
        shape = self.of_group(degrees.tensor)
        if degrees.shards == 1 or self.whole == 1:
            return math.prod(shape)
        return -(-shape[0] // degrees.shards) * math.prod(shape[1:])

    def local(self, degrees: Degrees, shard: int = 0) -> int:
        """Elements that process number ``shard`` of its shards holds; the first one holds the most."""
        shape = self.of_group(degrees.tensor)
        if degrees.shards == 1 or self.whole == 1:
            return math.prod(shape)
        rows = -(-shape[0] // degrees.shards)
        return min(rows, max(0, shape[0] - shard * rows)) * math.prod(shape[1:])


def parameters_of(objective: Objective, masters: bool = True) -> list[Parameter]:
    """Every parameter of an objective, heads included, in its own order; ``masters``: fp32 copies of what is stored in less."""
    model = objective.model
    units = unit_names(objective)
    splits: dict[str, int] = {}
    for tower, prefix in ((model.image, "model.image."), (model.text, "model.text.")):
        splits |= {prefix + name: axis for name, axis in split_parameters(tower).items()}
    hidden = hidden_matrices(model)
    return [
        Parameter(
            name, tuple(item.shape), item.requires_grad, _unit(name, units), splits.get(name), id(item) in hidden,
            item.element_size(), FP32 if masters and item.requires_grad and item.element_size() < FP32 else 0,
        )
        for name, item in objective.named_parameters()
    ]  # fmt: skip


def unit_names(objective: Objective) -> list[str]:
    """The names of the modules that are units of sharding, the inner ones first: blocks, towers, the objective itself ("")."""
    names = {id(module): name for name, module in objective.named_modules()}
    towers: Sequence[nn.Module] = (objective.model.image, objective.model.text)
    blocks = [names[id(block)] for tower in (objective.model.image, objective.model.text) for block in tower.blocks()]
    return [*blocks, *(names[id(tower)] for tower in towers), ""]


def _unit(name: str, units: Iterable[str]) -> str:
    return next(unit for unit in units if not unit or name.startswith(f"{unit}."))


@dataclass(frozen=True)
class State:
    """Bytes that stay on a process from step to step; ``masters``: fp32 copies of parameters that are stored in less."""

    parameters: int
    gradients: int
    moments: int
    masters: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.parameters + self.gradients + self.moments + self.masters


def state_of(parameters: Sequence[Parameter], degrees: Degrees, optimizer: str, shard: int = 0) -> State:
    """The state of process ``shard`` of its shards, after the first step; 0 has the most.

    Gradients are those that are there when the optimizer steps, of copies in their type; ``stage1`` holds the whole ones of the
    weights until then (see ``memory``).
    """
    local = {item.name: item.local(degrees, shard) for item in parameters}
    trained = [item for item in parameters if item.trained]
    stored = sum(item.size * local[item.name] for item in parameters)
    gradients = sum(item.moved * local[item.name] for item in trained)
    moments = sum(_moments(item, local[item.name], optimizer) for item in trained)
    return State(stored, gradients, moments, sum(item.master * local[item.name] for item in trained))


def _moments(parameter: Parameter, local: int, optimizer: str) -> int:
    """Bytes of an optimizer's state for a parameter: moments, and the count of steps where it has one."""
    own = 1 if optimizer == "muon" and parameter.hidden else MOMENTS.get(optimizer, 2)
    return own * parameter.moved * local + (FP32 if own == 2 else 0)


def checkpoint_bytes(parameters: Sequence[Parameter], buffers: int, optimizer: str) -> int:
    """Bytes of tensors in a checkpoint, which is whole under every layout: weights, buffers, moments. Names come on top.

    Of a weight with a copy, the copy is in it and the weight is not.
    """
    weights = sum(item.moved * item.whole for item in parameters)
    return weights + buffers + state_of(parameters, Degrees(), optimizer).moments


@dataclass(frozen=True)
class Unit:
    """One unit of sharding: bytes that a process brings to its gather, of all parameters and of the trained ones."""

    name: str
    part: int
    trained: int

    @property
    def block(self) -> bool:
        """Whether it is a block of a tower, not a tower or the objective with what is in no block."""
        return self.name not in OUTER


def units_of(parameters: Sequence[Parameter], degrees: Degrees) -> list[Unit]:
    """The units that have anything to gather; parameters of one element stay whole everywhere."""
    units: dict[str, list[Parameter]] = {}
    for item in parameters:
        if item.whole > 1:
            units.setdefault(item.unit, []).append(item)
    return [
        Unit(
            name,
            sum(item.size * item.padded(degrees) for item in items),
            sum(item.size * item.padded(degrees) for item in items if item.trained),
        )
        for name, items in units.items()
    ]
