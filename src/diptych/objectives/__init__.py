"""What is optimised: one loss per file, each cut in two at the same place.

    encode(batch)            -> features      per pair; may run in micro-batches
    compare(features, batch) -> Terms         sees the whole batch; does the gathers

This one cut gives feature-cached accumulation that equals the full batch, tiled losses, teacher reuse, and evaluation
without a loss. An objective is the root module that is wrapped and trained: it holds the model and its own heads.
Objectives know no data source and no optimiser; what they need from the data they say in ``wants``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diptych.models import TwoTower
from diptych.registry import Registry
from diptych.types import Batch, Terms, Wants

OBJECTIVES: Registry[type[Objective]] = Registry(__name__, "objective")


@dataclass(frozen=True)
class ObjectiveOptions:
    """The choice of an objective; each objective's own Config adds its options here."""

    objective: str = "clip"
    """What is optimised: the name of an objective, or module:Class."""


class Objective(nn.Module):
    """The contract. A subclass gives ``Config``, ``wants``, ``encode`` and ``compare``.

    ``Features``, the NamedTuple that ``encode`` returns, holds tensors whose first dimension is B, and None.
    """

    Config: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions
    wants: ClassVar[Wants] = Wants()

    def __init__(self, config: Any, model: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def encode(self, batch: Batch) -> Any:
        """Features of the batch's pairs, pair by pair: no pair may look at another."""
        raise NotImplementedError

    def compare(self, features: Any, batch: Batch) -> Terms:
        """Terms of the whole batch, over all processes."""
        raise NotImplementedError

    def forward(self, batch: Batch, pull: Sequence[Tensor] | None = None) -> Terms:
        """The terms of a batch; or, with ``pull``, a scalar whose gradient is that of cached features (see train.step).

        ``pull`` holds the gradient of each feature tensor, then of each of ``compared_parameters()``.
        """
        features = self.encode(batch)
        if pull is None:
            return self.compare(features, batch)
        return Terms({"pull": _pulled([*tensors_of(features), *self.compared_parameters()], pull)}, {})

    def compared_parameters(self) -> list[nn.Parameter]:
        """Parameters that ``compare`` uses, as opposed to ``encode``: scale, bias, heads that see the whole batch."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        return [parameter for parameter in (scale, bias) if parameter is not None]


def _pulled(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    # d/dx of sum(x * g) is g: calling backward on this sum hands every tensor its cached gradient.
    return torch.stack([(tensor * gradient).sum() for tensor, gradient in zip(tensors, gradients, strict=False)]).sum()


def tensors_of(features: NamedTuple) -> list[Tensor]:
    """The tensors of a features tuple, in order, without the Nones."""
    return [item for item in features if isinstance(item, Tensor)]


def create_objective(options: ObjectiveOptions, model: TwoTower) -> Objective:
    """Build the objective that ``options`` names and configures. Raises ConfigError for an unknown name."""
    return OBJECTIVES.get(options.objective)(options, model)
