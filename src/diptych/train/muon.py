"""Muon for the hidden matrices, AdamW for the rest, as a single optimizer (Jordan et al. 2024).

Muon replaces the momentum of a matrix by the nearest orthogonal one, through five steps of a Newton-Schulz iteration; that
means something for matrices that map activations to activations. Its author leaves embeddings, vectors, kernels and heads to
AdamW, and so does this. Both algorithms are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from diptych.errors import ConfigError
from diptych.models import TwoTower

HIDDEN = "hidden"
"""Key of a group of parameters: whether they are Muon's."""

AdjustRate = Literal["match_rms_adamw", "original"]


def hidden_matrices(model: TwoTower) -> set[int]:
    """The ids of the matrices inside the blocks of both towers: attention and MLPs; none of them in a ResNet."""
    blocks = [block for tower in (model.image, model.text) for block in tower.blocks()]
    return {id(item) for block in blocks for item in block.parameters() if item.ndim == 2}


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon over the groups whose ``hidden`` is true, and its AdamW over the others.

    The groups and the state of both are those of this object, so that rates are set, gradients unscaled, and state saved and
    read as of any optimizer.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], momentum: float, adjust: AdjustRate, adamw: dict[str, Any]
    ) -> None:
        hidden, others = ([group for group in groups if group[HIDDEN] == wanted] for wanted in (True, False))
        if not hidden:
            raise ConfigError(
                "--optimizer muon: no hidden matrix is trained, which is all that Muon moves; choose another optimizer."
            )
        super().__init__([{"params": [nn.Parameter(torch.zeros(()))]}], {})  # replaced below
        muon = torch.optim.Muon(hidden, momentum=momentum, nesterov=True, adjust_lr_fn=adjust)
        self.parts: list[torch.optim.Optimizer] = [muon]
        if others:
            self.parts.append(torch.optim.AdamW(others, **adamw))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """A step of both; the value of ``closure``, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
