"""Accuracy of predictions: top-1, top-5 and the mean over classes, with intervals and what chance gives.

Pure functions of tensors, shared by the evaluators that classify images. No model, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.evaluate._intervals import Outcome, class_mean_interval, intervals


class Classification(NamedTuple):
    """The scores of a classification, named as the fields of a ``Result``."""

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    outcomes: Mapping[str, Outcome]


def accuracy(answers: Tensor, labels: Tensor, classes: int) -> tuple[dict[str, float], tuple[float, ...]]:
    """Score the best answers int64 [n, k] (best first) against labels int64 [n]: metrics, and top-1 of each class."""
    correct = answers == labels[:, None]
    count = len(labels)
    first = correct[:, 0]
    metrics = {"top1": int(first.sum()) / count}
    if classes >= 5:
        metrics["top5"] = int(correct[:, :5].any(dim=1).sum()) / count
    total = torch.bincount(labels, minlength=classes).double()
    per_class = torch.bincount(labels[first], minlength=classes).double() / total
    metrics["mean_per_class"] = float(per_class[total > 0].mean())
    return metrics, tuple(per_class.tolist())


def classification(answers: Tensor, labels: Tensor, classes: int) -> Classification:
    """Scores with intervals and chance, from the best answers int64 [n, k] and labels int64 [n]."""
    metrics, _ = accuracy(answers, labels, classes)
    correct = {"top1": answers[:, 0] == labels, "top5": (answers[:, :5] == labels[:, None]).any(dim=1)}
    outcomes = {name: Outcome(rows) for name, rows in correct.items() if name in metrics}
    return Classification(
        metrics,
        {name: (5 if name == "top5" else 1) / classes for name in metrics},
        intervals(outcomes) | _class_mean(correct["top1"], labels),
        outcomes,
    )


def _class_mean(correct: Tensor, labels: Tensor) -> dict[str, tuple[float, float]]:
    """The interval of the mean over classes; none where a class has one image, which cannot vary within its class."""
    counts = torch.bincount(labels)
    return {"mean_per_class": class_mean_interval(correct, labels)} if int(counts[counts > 0].min()) > 1 else {}
