"""``--micro-batch auto``: the largest micro-batch that fits, the same on every process, known before the first step.

On an accelerator by trying: a forward and backward pass of each size, with memory held back for what a step holds beside it. On a
CPU, where the system would rather end the process than refuse memory, and for shards, whose passes are collectives, by counting
(``dry_run``) against what is free. Captions are taken to be as long as the model reads. A resumed run keeps its number: any
gives the same step, but not the same last bits.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import torch

from diptych import log
from diptych.devices import PURE, Device
from diptych.distributed import mesh, process_group
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.models import restored_statistics
from diptych.objectives import Objective, differentiable
from diptych.train.config import TrainConfig, saved_values
from diptych.train.dry_run import dry_run, trial_batch
from diptych.train.loss_memory import loss_memory
from diptych.train.sizes import human, parse_memory
from diptych.train.transfer import move

SHARE_OF_FREE = 0.8  # of a CPU's memory: loader processes, the page cache and other programs need some
HELD_BACK = 0.05  # of an accelerator's memory: an allocator's pieces do not fit together
BESIDE = {"fp32": 3.0, "pure_bf16": 3.5, "pure_bf16, none": 1.0}
"""Bytes of gradients and moments of each byte of an fp32 parameter that is trained, by precision and --master-weights.

With fp32 copies also the bf16 weights, beside the parameters that are there and become the copies; without them 2 bytes of the
weight, 2 of its gradient and 4 of moments are 4 more than there are. What is encoded is counted as with bf16, which is more.
"""


def with_micro_batch(
    config: TrainConfig, objective: Objective, device: Device, precision: str, world: World
) -> TrainConfig:
    """The config with a number for ``auto``, and no budget. A collective. Raises ConfigError where not even one pair fits."""
    if config.micro_batch != "auto":
        if config.memory_budget:
            raise ConfigError("--memory-budget goes with --micro-batch auto; add it.")
        return config
    size = config.data.batch_size
    before = saved_values(config.output.resume, config.output.output)[0].get("micro_batch", 0)
    if isinstance(before, int) and before and size % before == 0:
        log.info(f"--micro-batch auto: {before} of {size} pairs, as before")
        return dataclasses.replace(config, micro_batch=before, memory_budget="")
    finder = _Finder(config, objective, device, precision, world)
    number = min(process_group.all_gather_object(finder.largest()))
    if not number:
        raise ConfigError(
            f"--micro-batch auto: not even a single pair fits ({finder.explained(1)}); add --grad-checkpointing, lower "
            "--batch-size, or take a smaller model."
        )
    log.info(f"--micro-batch auto: {number} of {size} pairs at a time ({finder.explained(number)})")
    return dataclasses.replace(config, micro_batch=number, memory_budget="")


class _Finder:
    """The search on one process."""

    def __init__(self, config: TrainConfig, objective: Objective, device: Device, precision: str, world: World) -> None:
        self.config, self.objective, self.device, self.precision = config, objective, device, precision
        self.degrees = mesh.degrees_of(config.parallel, world)
        self.counts = bool(config.memory_budget) or device.name == "cpu" or config.parallel.sharding != "none"
        self.counts = self.counts or self.degrees.tensor > 1
        self.counted = functools.cache(self._counted)
        self.free = self._free() if self.counts else 0

    def largest(self) -> int:
        """The largest divisor of the batch that fits, 0 for none."""
        size = self.config.data.batch_size
        sizes = [number for number in range(1, size + 1) if size % number == 0]
        return largest(sizes, self._counts_fit if self.counts else self._trial_fits)

    def explained(self, number: int) -> str:
        """What was found out, in a clause."""
        if not self.counts:
            return f"tried on {self.device.torch_device}"
        return f"counted: {human(self.counted(number))} more, {human(max(0, self.free))} to use"

    def _counts_fit(self, number: int) -> bool:
        return self.counted(number) <= self.free

    def _counted(self, number: int) -> int:
        """Bytes that a step takes beside the parameters that are there already, with micro-batches of ``number`` pairs."""
        batch = trial_batch(self.objective.model.config, self.objective.wants, number)
        autocast = functools.partial(self.device.autocast, self.precision)
        try:
            footprint = dry_run(self.objective, batch, autocast, elsewhere=self.device.name != "cpu")
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ConfigError(
                f"--micro-batch auto: what --objective {self.config.objective.objective} holds cannot be counted before the run; "
                "give a number."
            ) from error
        return self._beside() + footprint.activations

    def _beside(self) -> int:
        """Bytes of a step beside activations: gradients and moments, the whole batch, features and logits."""
        config, model = self.config, self.objective.model
        pairs = config.data.batch_size * config.accum_freq
        image = len(self.objective.wants.images) * 3 * model.config.vision.image_size**2
        loss = loss_memory(config.objective.objective, pairs, self.degrees.data, model.config.embed_dim)
        stored = self.precision if self.precision in PURE else "fp32"
        if config.parallel.master_weights == "none":
            stored += ", none"
        state = int(BESIDE.get(stored, BESIDE["fp32"]) * self._trained())
        return state // self.degrees.shards + pairs * image + loss.total

    def _trained(self) -> int:
        """Bytes of the parameters that are trained."""
        return sum(item.numel() * item.element_size() for item in self.objective.parameters() if item.requires_grad)

    def _free(self) -> int:
        """Bytes that this process may take in addition to what it has. Raises ConfigError where the device does not say."""
        memory = self.device.memory()
        if self.config.memory_budget:
            taken = memory.get("allocated", memory.get("resident", 0))
            return parse_memory(self.config.memory_budget, "--memory-budget") - taken
        free = memory.get("free")
        if free is None:
            raise ConfigError(
                f"--micro-batch auto: {self.device.name} does not say how much memory is free; give --memory-budget, such as "
                "8GB, or a number."
            )
        if self.device.name != "cpu":
            return int(free * (1 - HELD_BACK))
        return int(free * SHARE_OF_FREE / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def _trial_fits(self, number: int) -> bool:
        """Whether a forward and backward pass of so many pairs runs, beside everything else that a step holds."""
        torch_device, objective = self.device.torch_device, self.objective.to(self.device.torch_device).train()
        batch = trial_batch(objective.model.config, objective.wants, number)
        states = torch.get_rng_state(), self.device.random_state()
        held = None
        try:
            rest = self._beside() + int(HELD_BACK * self.device.memory().get("total", 0))
            held = torch.empty(max(0, rest - self._trained()), dtype=torch.uint8, device=torch_device)
            batch = move(batch._replace(images=torch.zeros(batch.images.shape, dtype=torch.uint8)), torch_device)
            with restored_statistics(objective):
                with self.device.autocast(self.precision):
                    features, _ = objective("features", batch)
                outputs = [item for item in features if differentiable(item) and item.requires_grad]
                torch.autograd.backward(outputs, [torch.zeros_like(item) for item in outputs])
            self.device.synchronize()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            del held
            objective.zero_grad(set_to_none=True)
            torch.set_rng_state(states[0])
            self.device.set_random_state(states[1])
            getattr(self.device.module, "empty_cache", lambda: None)()
        return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, or the system, refused memory."""
    refused = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return refused or any(
        message in str(error) for message in ("can't allocate memory", "not enough memory", "out of memory")
    )


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of ascending sizes that fits, 0 for none; whatever is smaller than what fits is taken to fit."""
    if fits(sizes[-1]):
        return sizes[-1]
    low, high = -1, len(sizes) - 1  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else 0
