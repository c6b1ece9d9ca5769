"""Zero-shot classification: name each picture of a labelled source by comparing it with prompts of every class.

The classifier of a class is the normalised mean of its prompts' normalised features (CLIP, 2021, section 3.1); the scale
of the model does not change an order and is left out. Nothing is trained here, and no class list ships with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diptych.errors import ConfigError, SourceError
from diptych.evaluate import evaluators
from diptych.evaluate._encode import Encoder, Progress, Records, evaluating, steps
from diptych.evaluate._prompts import class_names, fill, load_templates
from diptych.evaluate._result import Result
from diptych.evaluate._scores import top_k


@dataclass(frozen=True)
class Options:
    """How classification is measured."""

    templates: str | Path | Sequence[str] = "openai80"
    """A prompt set (openai80, simple), a text file with one template per line, or templates."""
    labels: str | Path | Sequence[str] | None = None
    """A text file with one class name per line in the folders' order, or names; None takes the folders' names."""
    batch_size: int = 64
    """Images, or prompts, encoded at a time."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    limit: int = 0
    """Only so many pictures, spread evenly over the source; 0 means all."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 inside the towers; scores are always fp32."""


@dataclass(frozen=True)
class ZeroshotResult(Result):
    """Scores, and accuracy per class: ``per_class`` fractions by class name, NaN where a class has no picture here."""

    classes: tuple[str, ...] = ()
    per_class: tuple[float, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)


@evaluators.register("zeroshot")
def run(
    model: Any,
    source: Records,
    tokenizer: Any,
    transform: Any,
    device: Any,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> ZeroshotResult:
    """Classify a source whose records carry ``label``; ``options`` are the fields of ``Options``.

    The source's ``classes`` are its folders' names, in the order of the labels. Metrics: ``top1``, ``top5`` (absent below
    five classes) and ``mean_per_class`` (each class counts alike). Two classes of one name cannot be told apart: the first
    wins. Raises ConfigError for templates or names that do not fit, SourceError for a source without labels.
    """
    chosen = replace(Options(), **options)
    source_name = str(getattr(source, "name", "zeroshot"))
    templates = load_templates(chosen.templates)
    indices, labels = _labelled(source, source_name, chosen.limit)
    names = class_names(getattr(source, "classes", None), chosen.labels, source_name)
    if max(labels) >= len(names):
        raise ConfigError(f"{source_name}: label {max(labels)} has no name; {len(names)} class names were given.")
    encoder = Encoder(model, tokenizer, transform, device, chosen.batch_size, chosen.workers, chosen.precision)
    step = steps(progress, len(indices) + len(names) * len(templates))
    with evaluating(model):
        vectors = class_vectors(encoder.texts([fill(t, name) for name in names for t in templates], step), len(names))
        images = encoder.images(source, indices, step)
    answers = top_k(images, vectors, 5)[1].cpu()
    metrics, per_class = accuracy(answers, torch.tensor(labels), len(names))
    return ZeroshotResult(
        name=source_name,
        metrics=metrics,
        chance={name: (5 if name == "top5" else 1) / len(names) for name in metrics},
        count={"images": len(indices), "classes": len(names), "templates": len(templates)},
        classes=names,
        per_class=per_class,
        templates=templates,
    )


def class_vectors(features: Tensor, classes: int) -> Tensor:
    """Return one vector per class [C, D] from prompt features [C * templates, D], those of a class standing together."""
    prompts = functional.normalize(features.float(), dim=-1).unflatten(0, (classes, -1))
    return functional.normalize(prompts.mean(dim=1), dim=-1)


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


def _labelled(source: Records, name: str, limit: int) -> tuple[list[int], list[int]]:
    total = len(source)
    # Class folders are sorted: the first n records would be of the first classes only.
    count = min(limit, total) if limit else total
    indices = [place * total // count for place in range(count)] if count else []
    labels = [source.record(index).label for index in indices]
    if not labels or None in labels:
        raise SourceError(f"{name}: classification needs a label for each picture; give a folder of class folders.")
    return indices, [int(label) for label in labels if label is not None]
