"""What one process computes of a micro-batch, counted on the real towers without memory: bytes, and sums of a tensor group.

For a tensor group the towers get the layers that one of its processes has, and what would be summed is written down where the
real layers sum. No process group is needed, and no device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.devices import PRECISIONS, PURE, get_device
from diptych.distributed.tensor_parallel import ROWS, check_degree, split_parameters
from diptych.errors import ConfigError
from diptych.models import create_model, model_config
from diptych.objectives import OBJECTIVES, Objective, create_objective
from diptych.plan.collectives import Sums
from diptych.plan.request import Request
from diptych.train.dry_run import Footprint, dry_run, trial_batch

Record = Callable[[Tensor], None]


def build(request: Request) -> Objective:
    """The objective on the meta device, in training mode, as the request trains it. Raises ConfigError where it needs more."""
    entry = OBJECTIVES.get(request.objective.objective)
    config = model_config(request.model).with_needs(entry.model_needs(request.objective))
    model = create_model(config, device="meta")
    try:
        objective = create_objective(request.objective, model)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"--objective {request.objective.objective} cannot be planned: {error}") from error
    model.lock(image=request.lock_image, text=request.lock_text)
    model.checkpoint_activations(request.grad_checkpointing)
    if request.precision in PURE:
        model.cast_towers(PRECISIONS[PURE[request.precision]])
    return objective.to("meta").train()


@dataclass(frozen=True)
class Counted:
    """A micro-batch of one process: its memory, and what its tensor group sums."""

    footprint: Footprint
    sums: Sums


class Towers:
    """The towers of a request as one of ``tensor`` processes has them. Raises ConfigError where heads do not divide."""

    def __init__(self, request: Request, tensor: int) -> None:
        self.request, self._sums = request, list[int]()
        self.objective = build(request)
        if tensor > 1:
            for name in ("image", "text"):
                tower = getattr(self.objective.model, name)
                check_degree(tower, tensor, name)
                _divide(tower, tensor, self._record)
        self.of_pairs = functools.cache(self._count)

    def _record(self, tensor: Tensor) -> None:
        self._sums.append(tensor.numel() * tensor.element_size())

    def _count(self, pairs: int) -> Counted:
        """One forward and backward pass of so many pairs."""
        request, model = self.request, self.objective.model
        batch = trial_batch(model.config, self.objective.wants, pairs, request.caption_tokens)
        autocast = functools.partial(get_device("cpu").autocast, request.precision)
        forward: list[tuple[int, int]] = []
        self._sums.clear()
        try:
            footprint = dry_run(
                self.objective,
                batch,
                autocast,
                elsewhere=not request.on_cpu,
                between=lambda: forward.append((len(self._sums), sum(self._sums))),
            )
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise ConfigError(
                f"--objective {request.objective.objective} cannot be planned: what it holds depends on the values of tensors "
                f"({str(error).splitlines()[0][:80]}); plan --objective clip, and leave memory for its heads."
            ) from error
        return Counted(footprint, Sums(forward[0], (len(self._sums), sum(self._sums))))


def _divide(tower: nn.Module, degree: int, record: Record) -> None:
    """Give a tower's layers the size of one process of ``degree``, in place."""
    modules = dict(tower.named_modules())
    for name, axis in split_parameters(tower).items():
        layer_name, _, parameter = name.rpartition(".")
        owner_name, _, part = layer_name.rpartition(".")
        layer, owner = modules[layer_name], modules[owner_name]
        whole = getattr(layer, parameter)
        shape = [size // degree if dimension == axis else size for dimension, size in enumerate(whole.shape)]
        setattr(layer, parameter, nn.Parameter(whole.new_empty(shape), requires_grad=whole.requires_grad))
        if part in ROWS:
            layer.__class__, layer.record = _Row, record  # type: ignore[assignment]
        elif part == "mlp_in":
            layer.__class__, layer.record = _Column, record  # type: ignore[assignment]
        else:
            owner.enter = functools.partial(_entered, record)  # type: ignore[assignment]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, record: Record) -> Tensor:
        context.record = record
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.record(gradient)
        return gradient.contiguous().clone(), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, record: Record) -> Tensor:
        record(x)
        return x.contiguous().clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _entered(record: Record, x: Tensor) -> Tensor:
    return _Enter.apply(x, record)  # type: ignore[no-any-return]


class _Column(nn.Linear):
    record: Any

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_entered(self.record, x), self.weight, self.bias)


class _Row(nn.Linear):
    record: Any

    def forward(self, x: Tensor) -> Tensor:
        whole = _Leave.apply(F.linear(x, self.weight), self.record)
        return whole if self.bias is None else whole + self.bias.to(whole.dtype)  # type: ignore[no-any-return]
