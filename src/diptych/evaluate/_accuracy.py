"""Accuracy of answers: top-1, top-5 and the mean over classes, with intervals and what chance gives.

Pure functions of tensors, shared by the evaluators that name pictures. No model, no files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.evaluate._intervals import Outcome, class_mean_interval, intervals


def accuracy(answers: Tensor, labels: Tensor, classes: int) -> tuple[dict[str, float], tuple[float, ...]]:
    """Score the best answers int64 [n, k] (best first) against labels int64 [n]: metrics, and top-1 of each class."""
    right = answers == labels[:, None]
    count = len(labels)
    first = right[:, 0]
    metrics = {"top1": int(first.sum()) / count}
    if classes >= 5:
        metrics["top5"] = int(right[:, :5].any(dim=1).sum()) / count
    seen = torch.bincount(labels, minlength=classes).double()
    per_class = torch.bincount(labels[first], minlength=classes).double() / seen
    metrics["mean_per_class"] = float(per_class[seen > 0].mean())
    return metrics, tuple(per_class.tolist())


def classification(answers: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """The fields ``metrics``, ``chance``, ``intervals`` and ``outcomes`` of a Result, from the best answers [n, k]."""
    metrics, _ = accuracy(answers, labels, classes)
    right = {"top1": answers[:, 0] == labels, "top5": (answers[:, :5] == labels[:, None]).any(dim=1)}
    outcomes = {name: Outcome(found) for name, found in right.items() if name in metrics}
    return {
        "metrics": metrics,
        "chance": {name: (5 if name == "top5" else 1) / classes for name in metrics},
        "intervals": intervals(outcomes) | _of_the_mean(right["top1"], labels),
        "outcomes": outcomes,
    }


def _of_the_mean(right: Tensor, labels: Tensor) -> dict[str, tuple[float, float]]:
    """The interval of the mean over classes; none where a class has one picture, which cannot vary within its class."""
    counts = torch.bincount(labels)
    return {"mean_per_class": class_mean_interval(right, labels)} if int(counts[counts > 0].min()) > 1 else {}
