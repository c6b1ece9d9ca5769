"""Linear probe: logistic regression on frozen image features, its regularisation chosen on held-out training pictures.

The protocol of CLIP (2021, section 3.2): multinomial logistic regression fitted by L-BFGS, the strength of its L2 penalty swept
over powers of ten on a split of the training set and refined between the best, then fitted on all of it. Objective as
scikit-learn's: C times the sum of losses plus half the squared weights; the bias is free. The model is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diptych.evaluate import EVALUATORS
from diptych.evaluate._cache import Labelled
from diptych.evaluate._encode import Encoder, Progress, Records
from diptych.evaluate._probes import probe_sets, scored
from diptych.evaluate._result import Result


@dataclass(frozen=True)
class Options:
    """How the probe is fitted."""

    train: Any = None
    """The labelled source that the probe is fitted on; the evaluated source is the test set."""
    batch_size: int = 64
    """Images encoded at a time."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 inside the tower; the regression is fp32."""
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    """Values of C that are tried on held-out training pictures; the best one's neighbourhood is refined."""
    held_out: float = 0.2
    """Share of the training pictures that C is chosen on."""
    most_steps: int = 1000
    """L-BFGS iterations at most."""
    keep_features: bool = True
    """Keep the features in the cache folder."""


class Classifier(NamedTuple):
    """``weight`` [classes, D] and ``bias`` [classes]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class ProbeResult(Result):
    """Scores, the chosen ``strength`` C, and held-out accuracy of each C that was tried."""

    strength: float = 0.0
    tried: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def entry(self, name: str = "") -> dict[str, Any]:
        """As ``results.json`` lists it, with the sweep."""
        return super().entry(name) | {"strength": self.strength, "sweep": [list(item) for item in self.tried]}


@EVALUATORS.register("linear_probe")
def run(
    model: Any,
    source: Records,
    tokenizer: Any,
    transform: Any,
    device: Any,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> ProbeResult:
    """Fit on ``options["train"]``, score on ``source``; both labelled, with the same classes.

    Metrics: ``top1``, ``top5`` (from five classes on), ``mean_per_class``. Raises ConfigError without a training source,
    SourceError where labels are missing or the test set has classes that training has not.
    """
    chosen = replace(Options(), **options)
    encoder = Encoder(model, tokenizer, transform, device, chosen.batch_size, chosen.workers, chosen.precision)
    train, test = probe_sets(encoder, source, chosen.train, chosen.keep_features, progress)
    classes = int(train.labels.max()) + 1
    tried, strength = choose_strength(train, chosen)
    scores = _scores(test.features, fit(train, strength, chosen.most_steps))
    return ProbeResult(
        **scored(str(getattr(source, "name", "probe")), scores, test.labels, classes, len(train.labels)),
        strength=strength,
        tried=tuple(tried),
    )


def choose_strength(train: Labelled, options: Options) -> tuple[list[tuple[float, float]], float]:
    """Held-out accuracy of each C, and the best C: first over the powers of ten, then between them. Ties: the smaller C."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    kept = order[: max(1, round(len(order) * (1 - options.held_out)))]
    rest = order[len(kept) :]
    if not len(rest) or len(train.labels[kept].unique()) < 2:
        return [], sorted(options.strengths)[len(options.strengths) // 2]
    part = Labelled(train.features[kept], train.labels[kept])
    tried: dict[float, float] = {}

    def measure(strengths: Sequence[float]) -> float:
        start = None
        for strength in sorted(set(strengths) - set(tried)):
            start = fit(part, strength, options.most_steps, start, int(train.labels.max()) + 1)
            answers = _scores(train.features[rest], start).argmax(dim=1)
            tried[strength] = float((answers == train.labels[rest]).double().mean())
        return min(tried, key=lambda strength: (-tried[strength], strength))

    best = measure(options.strengths)
    best = measure([best / 10**0.5, best * 10**0.5])
    best = measure([best / 10**0.25, best * 10**0.25])
    return sorted(tried.items()), best


def fit(
    data: Labelled, strength: float, most_steps: int = 1000, start: Classifier | None = None, classes: int = 0
) -> Classifier:
    """Multinomial logistic regression: minimise C * sum of cross-entropies + |weight|^2 / 2, from ``start`` or zero."""
    features, labels = data.features, data.labels
    classes = classes or int(labels.max()) + 1
    begin = start or Classifier(features.new_zeros(classes, features.shape[1]), features.new_zeros(classes))
    weight, bias = (part.clone().requires_grad_() for part in begin)
    # Divided by C and the number of pictures, the objective has the size of one loss, whatever C is.
    penalty = 1 / (2 * strength * len(labels))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=most_steps, history_size=10, line_search_fn="strong_wolfe",
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


def _scores(features: Tensor, classifier: Classifier) -> Tensor:
    return features @ classifier.weight.T + classifier.bias
