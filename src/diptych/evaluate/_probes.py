"""What probes share: features of a training and a test set that fit together, and the scores of class scores.

Fits nothing and votes on nothing; ``linear_probe`` and ``knn`` do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.errors import ConfigError, SourceError
from diptych.evaluate._accuracy import classification
from diptych.evaluate._cache import Labelled, labelled_features
from diptych.evaluate._encode import Encoder, Progress, Records, evaluating, steps


def probe_sets(
    encoder: Encoder, source: Records, train: Any, keep: bool, progress: Progress | None
) -> tuple[Labelled, Labelled]:
    """Features of the training and the test set. Raises ConfigError or SourceError when they do not fit together."""
    if train is None:
        raise ConfigError("a probe needs a training set beside the test set; give --probe-train.")
    one, two = getattr(train, "classes", None), getattr(source, "classes", None)
    if one and two and tuple(one) != tuple(two):
        odd = sorted(set(one) ^ set(two)) or list(one)
        raise SourceError(f"training and test set have different classes: {', '.join(odd[:5])}; they must be the same.")
    step = steps(progress, len(train) + len(source))
    with evaluating(encoder.model):
        sets = [labelled_features(encoder, part, step, keep) for part in (train, source)]
    known, asked = sets
    unknown = set(asked.labels.tolist()) - set(known.labels.tolist())
    if unknown:
        raise SourceError(f"the test set has the class {min(unknown)}, of which the training set has no picture.")
    return known, asked


def scored(name: str, scores: Tensor, labels: Tensor, classes: int, trained_on: int) -> dict[str, Any]:
    """The fields of a Result from class scores [N, classes]; equal scores by the lower class."""
    answers = scores.sort(dim=1, descending=True, stable=True).indices[:, :5]
    count = {"images": len(labels), "classes": classes, "training images": trained_on}
    return {"name": name, "count": count} | classification(answers, labels, classes)
