"""One optimizer step over one or several micro-batches, equal to one step over all of them at once.

With one batch: forward, backward, step. With several, features are cached (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup"): every micro-batch is encoded without gradient, the loss compares all
of them once, and each micro-batch is encoded again with the cached gradients of its features. The loss is computed once, so the
scale's gradient is the true one. Batch-norm statistics of towers are updated in the second pass only, and are per micro-batch,
as in any accumulation. A step with a loss or gradient that is not finite is not taken: the host decides that where reading is
free, else the device (``gate``), with the same result. No device, loss or parallel scheme is
named here: what depends on the layout is asked of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych import log
from diptych.devices import Device
from diptych.distributed import process_group
from diptych.distributed.layout import Layout
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.models import Statistics, put_back, restored_statistics, statistics_of
from diptych.objectives import Objective, differentiable, pairs_of
from diptych.train.average import WeightAverage, create_average
from diptych.train.gate import Gate, GatedOptimizer, can_gate
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.transfer import Transfer
from diptych.types import Batch, Pairs, Terms

LOWEST_SCALE = 2.0**-14  # of fp16 gradients; below it the loss itself no longer fits


@dataclass(frozen=True)
class StepResult:
    """``loss``, ``losses`` and ``metrics`` of this process, scalars still on the device; their means over processes are those
    of the global batch. ``gradient_norm`` is before clipping. ``finite`` is False where the step was not taken, on every
    process, because a loss or gradient was not finite: a bool scalar on the device where the step is gated there (``gate``), so
    that asking for its truth waits.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    gradient_norm: Tensor
    finite: bool | Tensor = True


def create_step(
    objective: Objective,
    options: OptimizerOptions,
    device: Device,
    precision: str = "fp32",
    world: World | None = None,
    *,
    parallel: ParallelOptions | None = None,
) -> Step:
    """The step of an objective in training mode, laid out over ``world`` (None: this process alone), with its optimizer.

    Raises ConfigError for options that cannot be, or do not fit what is trained.
    """
    if options.scale_range:
        # Before the layout, on the objective: further scales of its own move in the same range.
        setattr(objective, "scale_range", options.scale_range)  # noqa: B010 - of this run, where the class has a default
    layout = parallelize(objective, device, world or World(), parallel, precision)
    layout.train()
    optimizer = create_optimizer(layout.trainable(), objective.model, options, device)
    step = Step(layout, optimizer, device, precision, options.grad_clip_norm)
    step.average = create_average(layout, options.ema, options.ema_warmup)
    return step


class Step:
    """Everything between a batch and moved parameters.

    ``layout`` holds the objective as ``distributed.parallel.parallelize`` laid it out; ``precision`` is fp32, bf16, fp16 or
    pure_bf16, as the layout has it too; ``clip_norm`` 0 does not clip. ``average``: a moving average of the
    weights, None for none.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: torch.optim.Optimizer,
        device: Device,
        precision: str,
        clip_norm: float = 0.0,
    ) -> None:
        self.layout, self.optimizer, self.device, self.precision = layout, optimizer, device, precision
        self.clip_norm = clip_norm
        self.average: WeightAverage | None = None
        self.scaler = device.scaler(precision)
        self.transfer = Transfer(device)
        self.gate: Gate | None = None
        self._gated = GatedOptimizer(optimizer)
        if device.asynchronous and can_gate(optimizer):
            self.gate = Gate(device.torch_device)
        elif device.asynchronous:
            log.info(
                f"on {device.torch_device} this optimizer counts its steps on the host: each step waits once to learn whether it "
                "is finite"
            )

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Take one step over the micro-batches, which are on the CPU or on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        moved = [self.transfer(self.layout.objective.on_host(batch)) for batch in batches]
        statistics = statistics_of(self.layout.objective)
        terms, features = self._whole(moved[0]) if len(moved) == 1 else self._cached(moved)
        self.layout.complete_gradients()
        self.scaler.unscale_(self.optimizer if self.gate is None else self._gated)  # type: ignore[arg-type]
        loss, norm = total(terms).detach(), self.layout.gradient_norm().detach()
        finite: bool | Tensor
        if self.gate is None:
            finite = self._finite(loss, norm)
            self._take(finite, norm, statistics, (features, pairs_of(moved)))
        else:
            finite = self._finite_there(loss, norm)
            self._take_there(finite, norm, statistics, (features, pairs_of(moved)))
        losses = {name: item.detach() for name, item in terms.losses.items()}
        metrics = {name: item.detach() for name, item in terms.metrics.items()}
        return StepResult(loss, losses, metrics, norm, finite)

    # --- decided by the host ----------------------------------------------------------------------------------------------

    def _finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the step can be taken: every process gives the same answer.

        In fp16 gradients may overflow, which the scaler answers with a lower scale; that is no fault until the scale is used up.
        """
        usable = bool(self._numbers(loss, norm).isfinite()) and self.scaler.get_scale() >= LOWEST_SCALE
        return not process_group.any_rank(not usable, self.device.torch_device)

    def _numbers(self, loss: Tensor, norm: Tensor) -> Tensor:
        """A number that is finite where the loss is, and without a scaler the gradients are too."""
        numbers = loss.float()
        return (
            numbers if self.scaler.is_enabled() else numbers + norm.to(loss.device).float() * 0
        )  # 0 x inf is not a number

    def _take(self, finite: bool, norm: Tensor, statistics: Statistics, after: tuple[Any, Pairs]) -> None:
        if not finite:
            put_back(statistics)
            self.scaler.update()  # so that it takes the gradients of the next step
            return
        if self.clip_norm > 0:
            self.layout.clip_gradients(self.clip_norm, norm)
        if self._moved_parameters():
            self.layout.after_step(*after)
            if self.average is not None:
                self.average.update()

    def _moved_parameters(self) -> bool:
        """Step, unless a gradient overflowed in fp16; whether the step was taken."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    # --- the same, decided by the device: nothing is read -------------------------------------------------------------------

    def _finite_there(self, loss: Tensor, norm: Tensor) -> Tensor:
        usable = self._numbers(loss, norm).isfinite()
        if self.scaler.is_enabled():
            usable = usable & (self.scaler.scale(torch.ones_like(loss, dtype=torch.float32)) >= LOWEST_SCALE)
        return process_group.every_rank(usable)

    def _take_there(self, finite: Tensor, norm: Tensor, statistics: Statistics, after: tuple[Any, Pairs]) -> None:
        assert self.gate is not None
        usable = self.gate.usable(finite)
        put_back(statistics, unless=usable)
        if self.clip_norm > 0:  # gradients of a step that is not taken stay as they are, for the report on it
            self.layout.clip_gradients(self.clip_norm, torch.where(usable, norm, 0.0))
        self._gated.usable = usable
        self.scaler.step(self._gated)  # type: ignore[arg-type]
        self.scaler.update()
        taken = self._gated.taken
        assert taken is not None
        self.layout.after_step(*after, taken)
        if self.average is not None:
            self.average.update(taken)

    def _whole(self, batch: Batch) -> tuple[Terms, Any]:
        with self.device.autocast(self.precision):
            terms, features = self.layout.terms(batch)
        self.scaler.scale(total(terms)).backward()
        return terms, features

    def _cached(self, batches: Sequence[Batch]) -> tuple[Terms, Any]:
        pieces, frozen = self._first_pass(batches)
        features = _joined(pieces)
        # Gradients cross processes once, in the backward pass of the last micro-batch.
        with self.layout.accumulating():
            with self.device.autocast(self.precision):
                terms = self.layout.compare(features, pairs_of(batches))
            self.scaler.scale(total(terms)).backward()
        start = 0
        for number, (batch, piece) in enumerate(zip(batches, pieces, strict=True)):
            gradients = _gradients(features, piece, start)
            start += len(batch.keys)
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.layout.accumulating():
                with self.device.autocast(self.precision):
                    scalar = self.layout.cached(batch, frozen[number], gradients)
                scalar.backward()  # type: ignore[no-untyped-call]
        return terms, type(features)(*(None if item is None else item.detach() for item in features))

    def _first_pass(self, batches: Sequence[Batch]) -> tuple[list[Any], list[Any]]:
        """The features of every micro-batch without gradient, and what was computed of frozen companions."""
        with (
            torch.no_grad(),
            self.layout.accumulating(),
            self.device.autocast(self.precision),
            restored_statistics(self.layout.objective),
        ):
            pairs = [self.layout.features(batch) for batch in batches]
        return [features for features, _ in pairs], [frozen for _, frozen in pairs]

    def state(self, whole: bool = True) -> dict[str, Any]:
        """What a checkpoint holds beside the weights. Whole, which is a collective; or as it is laid out over processes."""
        state = {"optimizer": self.layout.optimizer_state(self.optimizer, whole), "scaler": self.scaler.state_dict()}
        return state if self.average is None else {**state, "average": self.average.state(whole)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave, under any layout; the weights are restored already.

        Raises ConfigError when other parameters are trained.
        """
        self.layout.load_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.restore(state.get("average"))
        elif "average" in state:
            log.info("--ema 0: the average of the weights in the checkpoint is left behind")


def total(terms: Terms) -> Tensor:
    """The scalar that is minimized: all losses, summed."""
    return torch.stack([item.reshape(()) for item in terms.losses.values()]).sum()


def _joined(pieces: Sequence[Any]) -> Any:
    """The features of micro-batches as one tuple, every floating-point tensor a leaf that collects its gradient."""
    fields = [None if items[0] is None else _concatenated(items) for items in zip(*pieces, strict=True)]
    return type(pieces[0])(
        *(item.requires_grad_() if item is not None and item.is_floating_point() else item for item in fields)
    )


def _concatenated(items: Sequence[Tensor]) -> Tensor:
    """Tensors [B, ...] along B; other dimensions are padded with zeros to the longest."""
    longest = [max(sizes) for sizes in zip(*(item.shape[1:] for item in items), strict=True)]
    padded = []
    for item in items:
        lacking = [most - size for most, size in zip(longest, item.shape[1:], strict=True)]
        padding = [number for size in reversed(lacking) for number in (0, size)]
        padded.append(F.pad(item, padding) if any(padding) else item)
    return torch.cat(padded)


def _gradients(features: Any, piece: Any, start: int) -> list[Tensor | None]:
    """The gradient of each floating-point tensor of one micro-batch's features, from those of all."""
    gradients: list[Tensor | None] = []
    for whole, own in zip(features, piece, strict=True):
        if not differentiable(own):
            continue
        if whole.grad is None:
            gradients.append(None)
            continue
        rows = whole.grad[start : start + len(own)]
        gradients.append(rows[(slice(None), *(slice(size) for size in own.shape[1:]))])
    return gradients
