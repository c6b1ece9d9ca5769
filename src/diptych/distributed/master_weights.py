"""fp32 copies of weights that are stored in half precision: the optimizer moves the copies, the weights are their rounding.

    gradient of the weight, half -> gradient of the copy, fp32 -> clipped -> optimizer -> copy, fp32 -> rounded into the weight

(Micikevicius et al. 2018, "Mixed Precision Training", section 3.1.) An update of a thousandth of a weight would be lost in
bfloat16, whose steps are a 128th to a 256th of it. Copies are laid out like the weights: of a sharded weight, sharded.
Checkpoints and files of weights hold the copies, so they look like those of any run. Not autocast, which casts fp32
weights in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.distributed._full_state import is_sharded, like, local


class StoredWeights(NamedTuple):
    """How a layout stores the towers' weights: ``dtype`` (None: as they are), and whether there are fp32 ``masters`` of them."""

    dtype: torch.dtype | None = None
    masters: bool = True

    def cast(self, objective: Any) -> dict[str, Tensor]:
        """Cast the towers of an objective in place; the exact values of what is trained, by the objective's names."""
        if self.dtype is None:
            return {}
        model = objective.model
        towers = {"model.image.": model.image, "model.text.": model.text}
        exact = {
            prefix + name: item.detach().clone()
            for prefix, tower in towers.items()
            for name, item in tower.castable().items()
            if item.requires_grad and self.masters
        }
        model.cast_towers(self.dtype)
        return exact


class MasterWeights:
    """The copies of a layout's trained weights, none where weights are stored in full.

    ``weights``: the laid-out parameters by name; ``exact``: whole values of those that get a copy, equal on every process.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], exact: Mapping[str, Tensor]) -> None:
        self._weights = {name: weights[name] for name in exact}
        self._copies = {name: nn.Parameter(_laid_out(value, weights[name])) for name, value in exact.items()}

    def of(self, name: str, weight: Tensor) -> Tensor:
        """The copy of the weight of that name; the weight itself where there is none."""
        return self._copies.get(name, weight)

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and copies."""
        return iter(self._copies.items())

    def take_gradients(self) -> None:
        """Move the weights' gradients to the copies, in fp32, once they are complete; one tensor at a time."""
        for name, copy in self._copies.items():
            weight = self._weights[name]
            copy.grad = None if weight.grad is None else weight.grad.to(copy.dtype)
            weight.grad = None

    @torch.no_grad()
    def round(self) -> None:
        """Make each weight the rounding of its copy, on every process its own part."""
        if self._copies:
            weights = [local(self._weights[name].detach()) for name in self._copies]
            torch._foreach_copy_(weights, [local(item.detach()) for item in self._copies.values()])

    @torch.no_grad()
    def load(self, values: Mapping[str, Any]) -> None:
        """Take the copies out of values by name that are laid out like the weights, and round the weights to them."""
        for name, copy in self._copies.items():
            copy.copy_(values[name])
        self.round()


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """A whole value like the weight; in memory of its own, since a part would hold on to the whole."""
    return like(value, weight.detach()).clone() if is_sharded(weight) else value
