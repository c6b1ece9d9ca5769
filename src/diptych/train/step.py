"""One optimiser step over one or several micro-batches, equal to one step over all of them at once.

With one batch: forward, backward, step. With several, features are cached (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup"): every micro-batch is encoded without gradient, the loss compares all
of them once, and each micro-batch is encoded again with the gradient of its features pulled through. The loss is
computed once, so the scale's gradient is the true one. Batch-norm statistics are updated in the second pass only, and
are per micro-batch, as in any accumulation. No device or loss is named here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.devices import Device
from diptych.objectives import Objective, tensors_of
from diptych.types import Batch, Terms

SCALE_LIMIT = math.log(100.0)  # CLIP's cap on the logarithm of the logit scale


@dataclass(frozen=True)
class StepResult:
    """``loss`` and ``metrics`` are scalars still on the device; ``gradient_norm`` is before clipping, None without it."""

    loss: Tensor
    parts: dict[str, Tensor]
    metrics: dict[str, Tensor]
    gradient_norm: Tensor | None


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; from pinned memory the copy overlaps with computing."""
    tensors = {
        name: item.to(device, non_blocking=True) for name, item in batch._asdict().items() if isinstance(item, Tensor)
    }
    return batch._replace(**tensors)  # type: ignore[arg-type]


class Step:
    """Everything between a batch and moved parameters.

    ``wrapped`` is the objective as ``distributed.wrap`` returned it; ``precision`` is fp32, bf16 or fp16;
    ``clip_norm`` 0 does not clip.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: Device,
        precision: str,
        clip_norm: float = 0.0,
    ) -> None:
        self.wrapped, self.optimizer, self.device, self.precision = wrapped, optimizer, device, precision
        self.objective: Objective = getattr(wrapped, "module", wrapped)  # type: ignore[arg-type]
        self.clip_norm = clip_norm
        self.scaler = device.scaler(precision)
        self._parameters = [item for item in wrapped.parameters() if item.requires_grad]

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Take one step over the micro-batches, which are on the CPU or on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        moved = [move(batch, self.device.torch_device) for batch in batches]
        terms = self._plain(moved[0]) if len(moved) == 1 else self._cached(moved)
        self.scaler.unscale_(self.optimizer)
        norm = None
        if self.clip_norm > 0:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm).detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.objective.model.logit_scale.clamp_(0.0, SCALE_LIMIT)
        parts = {name: part.detach() for name, part in terms.losses.items()}
        return StepResult(total(terms).detach(), parts, terms.metrics, norm)

    def gradient_norm(self) -> Tensor:
        """The global norm of the last step's gradients, for who wants to see it: reading them all costs a few percent."""
        return torch.nn.utils.get_total_norm([item.grad for item in self._parameters if item.grad is not None])

    def _plain(self, batch: Batch) -> Terms:
        with self.device.autocast(self.precision):
            terms = self.wrapped(batch)
        self.scaler.scale(total(terms)).backward()
        return terms

    def _cached(self, batches: Sequence[Batch]) -> Terms:
        whole = joined(batches)
        with torch.no_grad(), self.device.autocast(self.precision), _frozen_statistics(self.objective):
            pieces = [self.objective.encode(batch) for batch in batches]
        features = [item.requires_grad_() for item in map(torch.cat, zip(*map(tensors_of, pieces), strict=True))]
        with self.device.autocast(self.precision):
            terms = self.objective.compare(_refilled(pieces[0], features), whole)
        held = [*features, *self.objective.compared_parameters()]
        found = torch.autograd.grad(total(terms), held, allow_unused=True)
        pulls = [torch.zeros_like(item) if one is None else one for item, one in zip(held, found, strict=True)]
        self._pull(batches, pulls[: len(features)], pulls[len(features) :])
        return terms

    def _pull(self, batches: Sequence[Batch], features: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        start = 0
        for number, batch in enumerate(batches):
            rows = len(batch.keys)
            last = number == len(batches) - 1
            own = [item[start : start + rows] for item in features]
            start += rows
            # Gradients cross processes once, with the last micro-batch; only that one carries the compared parameters.
            with contextlib.nullcontext() if last else self._without_sync(), self.device.autocast(self.precision):
                terms = self.wrapped(
                    batch, pull=[*own, *(parameters if last else [torch.zeros_like(p) for p in parameters])]
                )
                self.scaler.scale(total(terms)).backward()

    def _without_sync(self) -> contextlib.AbstractContextManager[Any]:
        no_sync = getattr(self.wrapped, "no_sync", None)
        return no_sync() if no_sync is not None else contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def total(terms: Terms) -> Tensor:
    """The scalar that is minimised: all parts, summed."""
    return torch.stack([part.reshape(()) for part in terms.losses.values()]).sum()


def joined(batches: Sequence[Batch]) -> Batch:
    """The micro-batches as one batch for ``compare``: labels, groups and keys; pixels and tokens stay apart."""

    def along(name: str, dim: int) -> Any:
        items = [getattr(batch, name) for batch in batches]
        return None if items[0] is None else torch.cat(items, dim=dim)

    first = batches[0]
    keys = tuple(key for batch in batches for key in batch.keys)
    lengths = torch.cat([batch.lengths for batch in batches], dim=1)
    return first._replace(
        images=first.images[:, :0], tokens=first.tokens[:, :0], lengths=lengths, keys=keys, labels=along("labels", 0),
        groups=along("groups", 0), indices=along("indices", 0), seeds=along("seeds", 0),
    )  # fmt: skip


def _refilled(features: Any, tensors: Sequence[Tensor]) -> Any:
    fresh = iter(tensors)
    return type(features)(*(next(fresh) if isinstance(item, Tensor) else item for item in features))


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [item for item in module.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    kept = [
        (item, item.momentum, None if item.num_batches_tracked is None else item.num_batches_tracked.clone())
        for item in norms
    ]
    for item in norms:
        item.momentum = 0.0
    try:
        yield
    finally:
        for item, momentum, seen in kept:
            item.momentum = momentum
            if seen is not None and item.num_batches_tracked is not None:
                item.num_batches_tracked.copy_(seen)
