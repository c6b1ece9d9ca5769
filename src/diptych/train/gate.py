"""Whether a step is taken, decided on the device: where work is queued, reading the decision would wait for all work before it.

The same steps are taken as where the host decides. A step that is not taken moves neither weights nor moments nor counts: fused
optimizers skip it by torch's ``found_inf``; for the others what a step moves is copied before it and chosen after it, a part of
the parameters at a time. Nothing is read here: what became of a step, the host reads when it needs to know (``nonfinite``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.distributed.layout import local_of
from diptych.models import put_back
from diptych.train.lamb import Lamb

PART = 1 << 24  # elements that an optimizer without ``found_inf`` moves at once: three copies of their state


class Gate:
    """The decisions of a run's steps on a device. Without ``limit`` any number of steps may be left out."""

    def __init__(self, device: torch.device) -> None:
        self._closed = torch.zeros((), dtype=torch.bool, device=device)
        self._left: Tensor | None = None

    def limit(self, skips: int) -> None:
        """So many further steps may be left out; after one more the gate is closed, and no step is taken any more."""
        self._left = torch.full((), skips, dtype=torch.int64, device=self._closed.device)

    def usable(self, finite: Tensor) -> Tensor:
        """Whether the coming step may be taken, a bool scalar, given whether it is ``finite``, a bool scalar."""
        if self._left is not None:
            self._left -= (~finite).to(torch.int64)
            self._closed = self._closed | (self._left < 0)
        return finite & ~self._closed


class GatedOptimizer:
    """What a GradScaler sees in an optimizer's place: by torch's protocol it hands over whether gradients overflowed.

    Set ``usable``, a bool scalar on the device, and let the scaler call ``step``; ``taken`` then says whether weights moved.
    """

    _step_supports_amp_scaling = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.usable: Tensor | None = None
        self.taken: Tensor | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def step(self) -> None:
        """A step of the optimizer, taken where ``usable`` says so and nothing overflowed."""
        assert self.usable is not None
        overflow: Tensor | None = getattr(self, "found_inf", None)
        self.taken = self.usable if overflow is None else self.usable & (overflow == 0)
        for part in _parts(self.optimizer):
            if _skips_by_itself(part):
                _step_or_skip(part, self.taken)
            else:
                _step_and_choose(part, self.taken)


def can_gate(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's steps can be gated: none of its parts counts its steps on the host."""
    counting = [part for part in _parts(optimizer) if isinstance(part, torch.optim.AdamW | Lamb)]
    return all(group.get("fused") or group.get("capturable") for part in counting for group in part.param_groups)


def _parts(optimizer: Any) -> list[torch.optim.Optimizer]:
    return getattr(optimizer, "parts", [optimizer])


def _skips_by_itself(part: torch.optim.Optimizer) -> bool:
    # torch's fused SGD would begin with a momentum of uninitialized memory where its first step is skipped.
    if not isinstance(part, torch.optim.AdamW):
        return False
    return all(group.get("fused") for group in part.param_groups)


def _step_or_skip(part: Any, taken: Tensor) -> None:
    flags = {"grad_scale": None, "found_inf": (~taken).float()}  # as a GradScaler gives them
    vars(part).update(flags)
    try:
        part.step()
    finally:
        for name in flags:
            delattr(part, name)


@torch.no_grad()
def _step_and_choose(part: torch.optim.Optimizer, taken: Tensor) -> None:
    """Step by step over parts of the parameters, so that the copies of what they were stay small."""
    groups = part.param_groups
    every = [group["params"] for group in groups]
    try:
        for group in groups:
            group["params"] = []
        for group, parameters in zip(groups, every, strict=True):
            for some in _split(parameters):
                group["params"] = some
                _move_some(part, some, taken)
            group["params"] = []
    finally:
        for group, parameters in zip(groups, every, strict=True):
            group["params"] = parameters


def _split(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    some: list[nn.Parameter] = []
    for item in parameters:
        if some and sum(each.numel() for each in some) + item.numel() > PART:
            yield some
            some = []
        some.append(item)
    if some:
        yield some


def _move_some(part: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], taken: Tensor) -> None:
    states = [value for item in parameters for value in part.state.get(item, {}).values() if isinstance(value, Tensor)]
    before = _by_kind([local_of(item.detach()) for item in [*parameters, *states]])
    joined = {kind: torch.cat([item.reshape(-1) for item in items]) for kind, items in before.items()}
    part.step()
    for kind, items in before.items():
        after = torch.cat([item.reshape(-1) for item in items])
        chosen = torch.where(taken, after, joined[kind]).split([item.numel() for item in items])
        torch._foreach_copy_(items, [value.view_as(item) for value, item in zip(chosen, items, strict=True)])
    known = {id(value) for value in states}
    for value in [value for item in parameters for value in part.state.get(item, {}).values()]:
        # What the first step makes: zeros are what it would have begun with, for moments and counts alike.
        if isinstance(value, Tensor) and id(value) not in known:
            put_back([(local_of(value), torch.zeros_like(local_of(value)))], unless=taken)


def _by_kind(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for item in tensors:
        kinds.setdefault(item.dtype, []).append(item)
    return kinds
