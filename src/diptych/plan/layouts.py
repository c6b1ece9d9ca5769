"""Which layouts there are, which fit, and which one to take; refusals say what would fit.

The order is that of what is sent: replicas, shards of gradients and moments, shards of everything, each within a machine before
across all, then split layers. Taken is the first whose memory leaves room for 16 pairs at a time, or all that a process has;
else the one with the largest micro-batch. A rule of thumb, not a search for the fastest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from diptych.distributed.mesh import Degrees, ParallelOptions, degrees_of
from diptych.distributed.parallel import stored_weights
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.plan.activations import Towers
from diptych.plan.collectives import Collective, StepShape, collectives_of
from diptych.plan.memory import Memory, Work, memory_of
from diptych.plan.request import Request, check, pairs_each
from diptych.plan.state import parameters_of
from diptych.train.loss_memory import loss_memory
from diptych.train.micro_batch import largest
from diptych.train.sizes import at_least, human

ENOUGH = 16
MOST_DEVICES = 1024
STAGES = ("none", "stage1", "stage2", "stage3")


@dataclass(frozen=True)
class Choice:
    """A layout that fits: the options of it, pairs of a process, how many of them at a time, its memory and what it sends."""

    sharding: str
    degrees: Degrees
    pairs: int
    micro_batch: int
    memory: Memory
    collectives: tuple[Collective, ...]

    @property
    def micro_batches(self) -> int:
        """How many a step has on each process."""
        return self.pairs // self.micro_batch

    @property
    def sent(self) -> int:
        """Bytes that each process sends in a step."""
        return sum(item.sent for item in self.collectives)


def candidates(request: Request) -> Iterator[tuple[str, Degrees]]:
    """The layouts that the request leaves open and that divide its devices, in order. Raises ConfigError for a wrong one."""
    stages = STAGES if request.sharding == "auto" else (request.sharding,)
    for tensor in [request.tensor] if request.tensor else _powers(request.node):
        for stage in stages:
            for shards in _shards(request, tensor, stage):
                options = ParallelOptions(
                    sharding=stage,  # type: ignore[arg-type]
                    sharding_parallel_degree=shards,
                    tensor_parallel_degree=tensor,
                )
                try:
                    degrees = degrees_of(options, World(0, request.devices))
                except ConfigError:
                    if stage == request.sharding or (request.tensor and stage == "none"):
                        raise
                    continue
                yield stage, degrees


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _shards(request: Request, tensor: int, stage: str) -> list[int]:
    """Degrees of sharding to try: what was asked for, else those of one machine and then of all."""
    if stage == "none" or request.shards:
        return [request.shards if stage != "none" else 0]
    node, data = request.node // tensor, request.devices // tensor
    return [node, 0] if 1 < node < data else [0]


class Planner:
    """The layouts of one request; towers are counted once for each degree of tensor parallelism."""

    def __init__(self, request: Request) -> None:
        check(request)
        self.request = request
        self.towers = functools.cache(lambda tensor: Towers(request, tensor))
        whole = self.towers(1).objective
        self.parameters = parameters_of(whole, request.master_weights == "fp32")
        self.buffers = {name: item for name, item in whole.named_buffers() if name not in whole.equal_buffers}

    def options(self) -> list[Choice]:
        """The layouts that fit, in order; of those with split layers only as many as are needed. Raises ConfigError for none."""
        fitting: list[Choice] = []
        refused: list[ConfigError] = []
        tensor = tried = 0
        for sharding, degrees in candidates(self.request):
            if degrees.tensor != tensor and any(self.enough(item) for item in fitting):
                break
            tensor, tried = degrees.tensor, tried + 1
            try:
                choice = self.fitted(sharding, degrees)
            except ConfigError as error:  # heads or a batch that do not divide
                refused.append(error)
                continue
            if choice is not None:
                fitting.append(choice)
        if not fitting:
            raise refused[0] if len(refused) == tried else self.refusal()
        return fitting

    def enough(self, choice: Choice) -> bool:
        """Whether the devices are kept busy by so many pairs at a time."""
        return choice.micro_batch >= min(ENOUGH, choice.pairs)

    def chosen(self, fitting: list[Choice]) -> Choice:
        """The one to take, of those that fit."""
        first = next((item for item in fitting if self.enough(item)), None)
        return first or max(fitting, key=lambda item: item.micro_batch)

    def fitted(self, sharding: str, degrees: Degrees) -> Choice | None:
        """A layout with its largest micro-batch that fits, None where not even a single pair does. Raises ConfigError."""
        self._check_stored(sharding)
        pairs = pairs_each(self.request, degrees.data)
        sizes = self._micro_batches(pairs)
        size = largest(sizes, lambda number: self._total(sharding, degrees, number) <= self.request.usable)
        return self._choice(sharding, degrees, size) if size else None

    def _check_stored(self, sharding: str) -> None:
        """Raise ConfigError where weights cannot be stored as the precision says."""
        options = ParallelOptions(sharding=sharding, master_weights=self.request.master_weights)  # type: ignore[arg-type]
        stored_weights(self.towers(1).objective, options, self.request.precision)

    def _micro_batches(self, pairs: int) -> list[int]:
        """Divisors of a process's pairs, ascending; or the one that was asked for."""
        asked = self.request.micro_batch
        if asked and pairs % asked:
            raise ConfigError(
                f"--micro-batch {asked}: each process has {pairs} pairs, no multiple of it; expected a divisor of {pairs}."
            )
        return [asked] if asked else [size for size in range(1, pairs + 1) if pairs % size == 0]

    def _total(self, sharding: str, degrees: Degrees, micro_batch: int) -> int:
        return self.memory(sharding, degrees, micro_batch).total

    def memory(self, sharding: str, degrees: Degrees, micro_batch: int) -> Memory:
        """The memory of a process under a layout, with so many pairs at a time."""
        pairs = pairs_each(self.request, degrees.data)
        towers = self.towers(degrees.tensor)
        footprint = towers.of_pairs(micro_batch).footprint
        width = towers.objective.model.config.embed_dim
        loss = loss_memory(self.request.objective.objective, pairs, degrees.data, width)
        work = Work(footprint.batch // micro_batch * pairs, footprint.activations, loss, micro_batch < pairs)
        return memory_of(self.parameters, degrees, sharding, self.request.optimizer, work)

    def _choice(self, sharding: str, degrees: Degrees, micro_batch: int) -> Choice:
        pairs = pairs_each(self.request, degrees.data)
        memory = self.memory(sharding, degrees, micro_batch)
        step = self.step_shape(sharding, degrees.tensor, pairs, micro_batch)
        exchanged = collectives_of(self.parameters, degrees, step, self.request.objective.objective)
        return Choice(sharding, degrees, pairs, micro_batch, memory, tuple(exchanged))

    def step_shape(self, sharding: str, tensor: int, pairs: int, micro_batch: int) -> StepShape:
        """What the collectives of a step depend on."""
        towers = self.towers(tensor)
        counted = towers.of_pairs(micro_batch)
        floats = sum(item.numel() for item in self.buffers.values() if item.is_floating_point())
        statistics = [item for name, item in self.buffers.items() if "running_" in name]
        return StepShape(
            sharding, pairs // micro_batch, pairs, towers.objective.model.config.embed_dim, counted.sums,
            counted.footprint.ready, floats, sum(item.numel() for item in self.buffers.values()) - floats,
            sum(item.numel() for item in statistics), self.request.optimizer,
        )  # fmt: skip

    # --- nothing fits ---------------------------------------------------------------------------------------------------------

    def refusal(self) -> ConfigError:
        """Why nothing fits, and what would."""
        request = self.request
        least, sharding, degrees = self._least()
        named = describe(sharding, degrees)
        would = [f"--memory {at_least(least / (1 - request.reserve))}"]
        if not request.grad_checkpointing:
            recomputing = Planner(dataclasses.replace(request, grad_checkpointing=True))
            if recomputing._least()[0] <= request.usable:
                would.insert(0, "--grad-checkpointing")
        devices = self._more_devices()
        if devices:
            would.append(f"--devices {devices}")
        return ConfigError(
            f"nothing fits into {human(request.memory)} less {request.reserve:.0%} that is left free: {human(least)} is the "
            f"least, {named}, one pair at a time; what would fit: {' or '.join(would)}."
        )

    def _least(self) -> tuple[int, str, Degrees]:
        """The least memory of any layout that divides, with as few pairs at a time as there may be."""
        totals = []
        for sharding, degrees in candidates(self.request):
            try:
                self._check_stored(sharding)
                size = self._micro_batches(pairs_each(self.request, degrees.data))[0]
                totals.append((self._total(sharding, degrees, size), sharding, degrees))
            except ConfigError:
                continue
        if not totals:
            raise ConfigError(f"--devices {self.request.devices}: no layout divides them.")
        return min(totals)

    def _more_devices(self) -> int:
        """The fewest devices, by doubling, with which the same layouts fit; 0 where not even the most do."""
        devices = 2 * self.request.devices
        while devices <= min(MOST_DEVICES, self.request.batch_size):
            with contextlib.suppress(ConfigError):  # of a batch that so many cannot share
                planner = Planner(dataclasses.replace(self.request, devices=devices))
                planner.towers = self.towers  # the same towers
                if planner._least()[0] <= self.request.usable:
                    return devices
            devices *= 2
        return 0


def describe(sharding: str, degrees: Degrees) -> str:
    """A layout in words: "stage3 over 8 of 64 devices, layers split over 2"."""
    world = degrees.data * degrees.tensor
    if sharding == "none":
        state = f"{degrees.data} replicas" if degrees.data > 1 else "one copy"
    elif degrees.replicas > 1:
        state = f"{degrees.replicas} replicas of {sharding} over {degrees.shards}"
    else:
        state = f"{sharding} over {degrees.shards}"
    split = f", layers split over {degrees.tensor}" if degrees.tensor > 1 else ""
    return f"{state}{split} ({world} device{'s' if world > 1 else ''})"
