"""Zero-shot classification: name each picture of a labelled source by comparing it with prompts of every class.

The classifier is ``_classifier``'s: the normalised mean of each class's prompts; the scale of the model does not change an
order and is left out. Answers are kept, so that two models can be compared on the same pictures. Nothing is trained here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.errors import ConfigError, SourceError
from diptych.evaluate import EVALUATORS
from diptych.evaluate._accuracy import accuracy, classification
from diptych.evaluate._classifier import build_classifier
from diptych.evaluate._encode import Encoder, Progress, Records, evaluating, steps
from diptych.evaluate._prompts import class_names, load_templates
from diptych.evaluate._result import Result
from diptych.evaluate._scores import top_k


@dataclass(frozen=True)
class Options:
    """How classification is measured."""

    templates: str | Path | Sequence[str] = "openai80"
    """A prompt set (openai80, openai7, prompt8, prompt6, simple, cc), a text file with one per line, or templates."""
    labels: str | Path | Sequence[str] | None = None
    """A shipped list (imagenet), a text file with one class name per line, or names; None takes the source's own."""
    batch_size: int = 64
    """Images encoded at a time."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    limit: int = 0
    """Only so many pictures, spread evenly over the source; 0 means all."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 inside the towers; scores are always fp32."""
    shared: bool = False
    """The processes of the group encode a part each; all of them must ask for the same."""
    keep_classifier: bool = True
    """Keep the class vectors in the cache folder, for the next evaluation of the same weights."""


class Confusion(NamedTuple):
    """How often pictures of ``true`` were called ``said``, both class numbers: ``times``."""

    true: int
    said: int
    times: int


@dataclass(frozen=True)
class ZeroshotResult(Result):
    """Scores and answers.

    ``per_class`` are top-1 fractions by class, NaN where a class has no picture here; ``indices`` the records that were
    classified, ``labels`` int64 [n] their classes, ``answers`` int64 [n, 5] the best classes of each, ``scores`` [n, 5]
    their cosines.
    """

    classes: tuple[str, ...] = ()
    per_class: tuple[float, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)
    indices: tuple[int, ...] = field(default=(), repr=False)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), repr=False, compare=False)
    answers: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64), repr=False, compare=False)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0), repr=False, compare=False)

    def confusion(self) -> Tensor:
        """The confusion matrix, int64 [classes, classes]: row the true class, column the answer."""
        count = len(self.classes)
        return torch.bincount(self.labels * count + self.answers[:, 0], minlength=count**2).view(count, count)

    def worst_confusions(self, most: int = 20) -> list[Confusion]:
        """The most frequent mistakes, most frequent first; of equal ones the lower classes first."""
        pairs = zip(self.labels.tolist(), self.answers[:, 0].tolist(), strict=True)
        found = Counter((true, said) for true, said in pairs if true != said)
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [Confusion(true, said, count) for (true, said), count in ordered[:most]]

    def entry(self, name: str = "") -> dict[str, Any]:
        """The plain mapping that ``results.json`` lists, with the accuracy of each class and the worst confusions."""
        seen = [(one, score) for one, score in zip(self.classes, self.per_class, strict=True) if not math.isnan(score)]
        return super().entry(name) | {
            "per_class": [[one, round(score, 6)] for one, score in seen],
            "confusions": [[self.classes[t], self.classes[s], n] for t, s, n in self.worst_confusions()],
        }


@EVALUATORS.register("zeroshot")
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
    indices, labels, told = _labelled(source, source_name, chosen.limit)
    names = class_names(getattr(source, "classes", None) or told, chosen.labels, source_name)
    if int(labels.max()) >= len(names):
        raise ConfigError(f"{source_name}: label {int(labels.max())} has no name; {len(names)} class names were given.")
    encoder = Encoder(
        model, tokenizer, transform, device, chosen.batch_size, chosen.workers, chosen.precision, chosen.shared
    )
    step = steps(progress, len(indices) + len(names) * len(templates))
    with evaluating(model):
        vectors = build_classifier(encoder, names, templates, step, chosen.keep_classifier)
        images = encoder.images(source, indices, step)
    scores, answers = (found.cpu() for found in top_k(images, vectors, 5))
    return ZeroshotResult(
        name=source_name,
        count={"images": len(indices), "classes": len(names), "templates": len(templates)},
        **classification(answers, labels, len(names)),
        classes=names,
        per_class=accuracy(answers, labels, len(names))[1],
        templates=templates,
        indices=tuple(indices),
        labels=labels,
        answers=answers,
        scores=scores,
    )


def _labelled(source: Records, name: str, limit: int) -> tuple[list[int], Tensor, list[str] | None]:
    """The records to classify, their labels int64 [n], and the class names that records tell ("label_name"), if all do."""
    total = len(source)
    # Class folders are sorted: the first n records would be of the first classes only.
    count = min(limit, total) if limit else total
    indices = [place * total // count for place in range(count)] if count else []
    labels: list[int] = []
    told: dict[int, str] = {}
    for index in indices:
        record = source.record(index)
        if record.label is None:
            raise SourceError(f"{name}: classification needs a label for each picture; {record.key} has none.")
        labels.append(record.label)
        if isinstance(record.extra.get("label_name"), str):
            told[record.label] = record.extra["label_name"]
    if not labels:
        raise SourceError(f"{name}: holds no picture with a label to classify.")
    if min(labels) < 0:
        raise SourceError(f"{name}: the label {min(labels)} is negative; labels count from 0.")
    complete = sorted(told) == list(range(max(labels) + 1))
    return indices, torch.tensor(labels), [told[label] for label in sorted(told)] if complete else None
