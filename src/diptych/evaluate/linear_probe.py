"""Linear probe: logistic regression on frozen image features, its regularization chosen on held-out training images.

The protocol of CLIP (Radford et al. 2021, section 3.2): multinomial logistic regression fitted by L-BFGS, the strength of its
L2 penalty swept over powers of ten on a split of the training set and refined between the best, then fitted on all of it.
Objective as scikit-learn's: C times the sum of losses plus half the squared weights; the bias is free. The model is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diptych.evaluate._base import EVALUATORS, Evaluator
from diptych.evaluate._cache import Labeled
from diptych.evaluate._encode import Encoder, Progress
from diptych.evaluate._labeled import ProbeData
from diptych.evaluate._probes import probe_features, probe_result
from diptych.evaluate._result import Result

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)  # of C; the best one's neighborhood is refined
HELD_OUT = 0.2  # share of the training images that C is chosen on
MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeOptions:
    """The protocol leaves nothing to choose."""


class Classifier(NamedTuple):
    """``weight`` [classes, D] and ``bias`` [classes]."""

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of features [N, D]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class ProbeResult(Result):
    """Scores, the chosen ``strength`` C, and held-out accuracy of each C that was tried."""

    strength: float = 0.0
    sweep: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def entry(self, name: str = "") -> dict[str, Any]:
        """As ``results.json`` lists it, with the sweep."""
        return super().entry(name) | {"strength": self.strength, "sweep": [list(item) for item in self.sweep]}


@EVALUATORS.register("linear_probe")
class LinearProbe(Evaluator[ProbeData, ProbeOptions, ProbeResult]):
    """Fits a linear classifier on the training set and scores it on the test set."""

    Options = ProbeOptions
    data = "probe"
    title = "linear probe"

    def run(
        self, encoder: Encoder, source: ProbeData, options: ProbeOptions, progress: Progress | None = None
    ) -> ProbeResult:
        """Metrics: ``top1``, ``top5`` (from five classes on), ``mean_per_class``. Raises SourceError for sets that do not fit."""
        train, test = probe_features(encoder, source, progress)
        sweep, strength = choose_strength(train)
        scores = fit(train, strength).scores(test.features)
        return ProbeResult(**probe_result(source, scores, train, test), strength=strength, sweep=tuple(sweep))


def choose_strength(
    train: Labeled, strengths: Sequence[float] = STRENGTHS, held_out: float = HELD_OUT
) -> tuple[list[tuple[float, float]], float]:
    """Held-out accuracy of each C, and the best C: first over the powers of ten, then between them. Ties: the smaller C."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    fitted = order[: max(1, round(len(order) * (1 - held_out)))]
    rest = order[len(fitted) :]
    if not len(rest) or len(train.labels[fitted].unique()) < 2:
        return [], sorted(strengths)[len(strengths) // 2]
    part = Labeled(train.features[fitted], train.labels[fitted])
    accuracy: dict[float, float] = {}

    def measure(strengths: Sequence[float]) -> float:
        start = None
        for strength in sorted(set(strengths) - set(accuracy)):
            start = fit(part, strength, start=start, classes=int(train.labels.max()) + 1)
            answers = start.scores(train.features[rest]).argmax(dim=1)
            accuracy[strength] = float((answers == train.labels[rest]).double().mean())
        return min(accuracy, key=lambda strength: (-accuracy[strength], strength))

    best = measure(strengths)
    best = measure([best / 10**0.5, best * 10**0.5])
    best = measure([best / 10**0.25, best * 10**0.25])
    return sorted(accuracy.items()), best


def fit(
    data: Labeled,
    strength: float,
    most_iterations: int = MOST_ITERATIONS,
    start: Classifier | None = None,
    classes: int = 0,
) -> Classifier:
    """Multinomial logistic regression: minimize C * sum of cross-entropies + |weight|^2 / 2, from ``start`` or zero."""
    features, labels = data.features, data.labels
    classes = classes or int(labels.max()) + 1
    begin = start or Classifier(features.new_zeros(classes, features.shape[1]), features.new_zeros(classes))
    weight, bias = (part.clone().requires_grad_() for part in begin)
    # Divided by C and the number of images, the objective has the size of a mean loss, whatever C is.
    penalty = 1 / (2 * strength * len(labels))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=most_iterations, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-7, tolerance_change=1e-10,
    )  # fmt: skip

    def objective() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return Classifier(weight.detach(), bias.detach())
