"""A moving average of the weights (EMA) beside the trained ones: moved once a step, evaluated, saved, resumed.

    a <- d a + (1 - d) w        d = --ema, with --ema-warmup min(--ema, (1 + n) / (10 + n)) in update n

(Polyak and Juditsky 1992; the growing d is TensorFlow's ``ExponentialMovingAverage``.) Averaged are the trained parameters of
the objective, so that a validation loss has heads that belong to the averaged towers, and the running statistics of batch
normalization, with the same d: statistics of the last weights would not fit averaged ones. Everything else (locked weights,
queues, counters) is that of the run. Decides nothing about when to evaluate or save.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diptych import log
from diptych.distributed import process_group
from diptych.distributed.layout import Layout, local_of
from diptych.errors import ConfigError
from diptych.models import running_statistics

AVERAGE_FILE = "model_ema.safetensors"
SUFFIX = "-ema"
"""After the name of a result that averaged weights gave."""


def check_average(decay: float, warmup: bool) -> None:
    """Raise ConfigError for a decay that would never move the average, and for a warm-up of no average."""
    if decay == 1:
        raise ConfigError("--ema 1: the average would stay at the first weights; give less, such as 0.999.")
    if warmup and not decay:
        raise ConfigError("--ema-warmup is for an average of the weights; add --ema, such as 0.999.")


def create_average(layout: Layout, decay: float, warmup: bool) -> WeightAverage | None:
    """The average that the options ask for, begun at the weights as they are; None for a decay of 0. Raises ConfigError."""
    check_average(decay, warmup)
    return WeightAverage(layout, decay, warmup) if decay else None


class WeightAverage:
    """The moving average of a layout's trained state, laid out as that state is: sharded parameters have sharded averages."""

    def __init__(self, layout: Layout, decay: float, warmup: bool = False) -> None:
        self.layout, self.decay, self.warmup, self._calls = layout, decay, warmup, 0
        self._left_out: Tensor | None = None  # updates that a device did not make
        self._live = {**dict(layout.trainable()), **running_statistics(layout.objective)}
        self._averages = {name: item.detach().clone() for name, item in self._live.items()}

    @property
    def updates(self) -> int:
        """How many updates were made; reads the device where updates are gated."""
        return self._calls - (0 if self._left_out is None else int(self._left_out))

    @property
    def factor(self) -> float:
        """How much of the average the coming update leaves, in [0, 1)."""
        growing = (1 + self.updates) / (10 + self.updates)
        return min(self.decay, growing) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, taken: Tensor | None = None) -> None:
        """Move the average towards the weights; once after each step that was taken, or that may have been.

        ``taken``: a bool scalar on the device, where it says whether the step was taken.
        """
        # a + (1 - d) (w - a): a weight that does not move stays equal to its average to the last bit.
        if taken is None:
            weight = 1.0 - self.factor
            for name, average in self._averages.items():
                average.lerp_(self._live[name].detach(), weight)
        else:
            self._update_where(taken)
        self._calls += 1

    def _update_where(self, taken: Tensor) -> None:
        if self._left_out is None:
            self._left_out = torch.zeros((), dtype=torch.int64, device=taken.device)
        count = self._calls - self._left_out
        weights: dict[torch.dtype, Tensor] = {}
        for name, average in self._averages.items():
            kind = average.dtype
            if kind not in weights:
                weight = torch.full((), 1.0 - self.decay, dtype=kind, device=taken.device)
                if self.warmup:  # 1 - (1 + n) / (10 + n)
                    weight = torch.maximum(weight, 9.0 / (10 + count).to(kind))
                weights[kind] = torch.where(taken, weight, 0.0)
            # By this process's part: a weight of 0 changes no bit of it.
            local_of(average).lerp_(local_of(self._live[name].detach()), weights[kind])
        self._left_out += (~taken).to(torch.int64)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in the weights' place, and the weights come back. A collective."""
        self._equalize()
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._averages.items():
            live = self._live[name].detach()
            weights = live.clone()
            live.copy_(average)
            average.copy_(weights)
        self.layout.round_weights()

    def _equalize(self) -> None:
        """Every process takes the first one's statistics: they are of its own pairs, and evaluation shares its work."""
        trained = dict(self.layout.trainable())
        process_group.broadcast(
            [item for name, item in self._averages.items() if name not in trained], self.layout.group
        )

    def state(self, whole: bool = True) -> dict[str, Any]:
        """What a checkpoint holds: ``averages`` by name, ``updates`` their number. Whole is a collective; else as laid out."""
        averages = self.layout.whole(self._averages) if whole else dict(self._averages)
        return {"averages": averages, "updates": self.updates}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take back what ``state`` gave, under any layout; None begins at the weights as they are now, which is said."""
        if state is None:
            log.info("--ema: the checkpoint has no average; it begins at the weights of the checkpoint")
            for name, average in self._averages.items():
                average.copy_(self._live[name].detach())
            return
        for name, value in self.layout.laid_out(state["averages"], self._averages).items():
            self._averages[name].copy_(value)
        self._calls, self._left_out = int(state["updates"]), None

    def whole(self) -> dict[str, Tensor]:
        """Every average by the objective's names, whole. A collective."""
        return self.layout.whole(self._averages)
