"""Zero-shot classification: each image of a labeled source is compared with prompts of every class.

The classifier is ``_classifier``'s: the normalized mean of each class's prompts; the scale of the model does not change an order
and is left out. Answers stay in the result, so that two models can be compared on the same images. Nothing is trained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.errors import ConfigError, SourceError
from diptych.evaluate._accuracy import accuracy, classification
from diptych.evaluate._base import EVALUATORS, Evaluator
from diptych.evaluate._class_names import class_names
from diptych.evaluate._classifier import build_classifier
from diptych.evaluate._decode import Records
from diptych.evaluate._encode import Encoder, Progress, counting
from diptych.evaluate._gallery import image_cell, text_cell
from diptych.evaluate._labeled import LabeledImages
from diptych.evaluate._prompts import load_templates
from diptych.evaluate._readable import BadImages, labels_of
from diptych.evaluate._result import Result
from diptych.evaluate._scores import best_columns, top_k
from diptych.evaluate._token_wise import TokenRule, token_encoder

DEFAULT_TEMPLATES = "openai80"
MISTAKES = 12  # rows of the drawings


@dataclass(frozen=True)
class ZeroshotOptions:
    """How images are classified by texts."""

    templates: str = ""
    """Prompts: openai80 (prompt80), openai7, prompt8, prompt6, simple, cc, or a text file; empty: templates.txt, or openai80."""
    labels: str = ""
    """Class names: imagenet, or a text file, one per line in the folders' order; empty: labels.txt, or the folders' names."""
    token_maps: str = ""
    """Score by tokens, as FILIP: the folder of a filip run, or its token_maps.safetensors. Empty: by pooled features."""
    token_rule: TokenRule = "masked"
    """Words of --token-maps: real tokens alone, or with padding and norms as the DeCLIP benchmark's code has them."""
    clean_names: bool = False
    """Words of class names as files spell them: AnnualCrop is "annual crop", 001.Black_footed_Albatross without its number."""


class Confusion(NamedTuple):
    """How many ``times`` images of the class ``true`` were classified as ``predicted``."""

    true: int
    predicted: int
    times: int


@dataclass(frozen=True)
class ZeroshotResult(Result):
    """Scores and answers.

    ``per_class`` are top-1 fractions by class, NaN where the source has no image of a class; ``indices`` are the records that
    were scored, ``labels`` int64 [n] their classes, ``answers`` int64 [n, 5] the best classes of each, ``scores`` [n, 5] their
    cosines.
    """

    classes: tuple[str, ...] = ()
    per_class: tuple[float, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)
    indices: tuple[int, ...] = field(default=(), repr=False, compare=False)
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
        counts = Counter((true, predicted) for true, predicted in pairs if true != predicted)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [Confusion(true, predicted, count) for (true, predicted), count in ordered[:most]]

    def entry(self, name: str = "") -> dict[str, Any]:
        """The plain mapping that ``results.json`` lists, with the accuracy of each class and the worst confusions."""
        scores = zip(self.classes, self.per_class, strict=True)
        return super().entry(name) | {
            "per_class": [[label, round(score, 6)] for label, score in scores if not math.isnan(score)],
            "confusions": [[self.classes[t], self.classes[p], count] for t, p, count in self.worst_confusions()],
        }


@EVALUATORS.register("zeroshot")
class Zeroshot(Evaluator[Records, ZeroshotOptions, ZeroshotResult]):
    """Classifies images by the texts of their classes."""

    Options = ZeroshotOptions
    data = "labeled"
    training_name = "zeroshot"

    def run(
        self, encoder: Encoder, source: Records, options: ZeroshotOptions, progress: Progress | None = None
    ) -> ZeroshotResult:
        """Classify a source whose records carry ``label``; texts come from the options, the source, then the defaults.

        Metrics: ``top1``, ``top5`` (absent below five classes) and ``mean_per_class`` (each class counts alike). Two classes of
        equal names get equal scores: the first wins. Raises ConfigError for templates or names that do not fit, SourceError for a
        source without labels.
        """
        if options.token_rule != ZeroshotOptions.token_rule and not options.token_maps:
            raise ConfigError(f"--token-rule {options.token_rule} goes with --token-maps; add it.")
        beside = source if isinstance(source, LabeledImages) else None
        templates = load_templates(options.templates or (beside and beside.templates) or DEFAULT_TEMPLATES)
        classes = source.classes
        bad = BadImages(source, encoder)
        indices, labels, known = labels_of(source, bad)
        record_names = _complete(known, int(labels.max()) + 1, source.name)
        given = options.labels or (beside and beside.labels) or None
        names = class_names(classes or record_names, given, source.name, clean=options.clean_names)
        if int(labels.max()) >= len(names):
            raise ConfigError(
                f"{source.name}: label {int(labels.max())} has no name; {len(names)} class names were given."
            )
        if len(names) < 2:
            raise ConfigError(
                f"{source.name}: everything here is of one class, {names[0]!r}, so there is nothing to classify; class folders "
                "may lie deeper: give the folder that holds them."
            )
        advance = counting(progress, len(labels) + len(names) * len(templates))
        with encoder.evaluating():
            if options.token_maps:
                scorer = token_encoder(encoder, options.token_maps, names, templates, options.token_rule)
                advance(len(names) * len(templates))
            else:
                scorer, vectors = encoder, build_classifier(encoder, names, templates, advance)
            images, rows = bad.encoded(lambda unreadable: scorer.images(source, indices, advance, unreadable))
        lost = bad.finish(len(source) - len(rows), len(source))
        labels, indices = labels[rows], [indices[row] for row in rows.tolist()]
        best = best_columns(images, 5) if options.token_maps else top_k(images, vectors, 5)
        scores, answers = (item.cpu() for item in best)
        return ZeroshotResult(
            name=source.name,
            count={"images": len(labels), "classes": len(names), "templates": len(templates), **lost},
            **classification(answers, labels, len(names))._asdict(),
            classes=names,
            per_class=accuracy(answers, labels, len(names))[1],
            templates=templates,
            indices=tuple(indices),
            labels=labels,
            answers=answers,
            scores=scores,
        )

    def images(self, result: ZeroshotResult, source: Records, title: str | None = None) -> list[dict[str, Any]]:
        """The most frequent confusions, each with the image that was classified wrongly with the highest score.

        Nothing where every image was classified right. Ranks are known as far as the five answers of the result go.
        """
        name = result.name if title is None else title
        rows = [_confusion_row(result, source, item) for item in result.worst_confusions(MISTAKES)]
        return [{"title": "Most frequent confusions" + (f" · {name}" if name else ""), "rows": rows}] if rows else []

    def predictions(self, result: ZeroshotResult, source: Records) -> Iterator[dict[str, Any]]:
        """Of each image: its key, class, and the five best answers with their cosines."""
        for index, (label, answers) in enumerate(zip(result.labels.tolist(), result.answers.tolist(), strict=True)):
            yield {
                "image": source.record(result.indices[index]).key, "label": label, "label_name": result.classes[label],
                "prediction": answers[0], "prediction_name": result.classes[answers[0]],
                "best": answers, "scores": [round(score, 6) for score in result.scores[index].tolist()],
            }  # fmt: skip


def _confusion_row(result: ZeroshotResult, source: Records, confusion: Confusion) -> dict[str, Any]:
    true, predicted, count = confusion
    alike = ((result.labels == true) & (result.answers[:, 0] == predicted)).nonzero()[:, 0]
    index = int(alike[result.scores[alike, 0].argmax()])
    answers = result.answers[index].tolist()
    hits = [
        {**text_cell(result.classes[answer]), "correct": answer == true, "score": round(score, 4)}
        for answer, score in zip(answers, result.scores[index].tolist(), strict=True)
    ]
    times = "once" if count == 1 else f"{count} times"
    text = f"{result.classes[true]}, classified as {result.classes[predicted]} {times}"
    row = {
        "query": image_cell(source, index, text),
        "rank": answers.index(true) + 1 if true in answers else 0,
        "hits": hits,
    }
    return row if true in answers else row | {"answer": text_cell(result.classes[true])}


def _complete(names: Mapping[int, Mapping[str, str]], count: int, source: str) -> list[str] | None:
    """The names of all classes in their order, if records name every class. Raises SourceError for two names of one class."""
    for label, given in names.items():
        if len(given) > 1:
            (first, _), (second, key), *_ = given.items()
            raise SourceError(
                f"{source}: the class {label} is named {first!r}, and {second!r} in {key}; give --labels."
            )
    return [next(iter(names[label])) for label in range(count)] if len(names) == count else None
