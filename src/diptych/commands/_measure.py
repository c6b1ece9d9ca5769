"""What ``diptych evaluate`` does: open the data once, measure weights on it, compare two, keep what was found.

Knows no score; the evaluate room measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych import log
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from diptych.commands.evaluate import Options
    from diptych.evaluate import Result


@dataclass(frozen=True)
class Task:
    """One evaluator on one source."""

    evaluator: str
    source: Any
    options: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A task and what came of it."""

    task: Task
    result: Result

    def entry(self) -> dict[str, Any]:
        """As ``results.json`` lists it; the evaluator is named, since several may look at one source."""
        found = self.result.entry()
        kind = {"linear_probe": " · linear probe", "knn": " · nearest neighbours"}.get(self.task.evaluator, "")
        return {**found, "name": found["name"] + kind, "evaluator": self.task.evaluator}


def tasks(options: Options) -> list[Task]:
    """What the options ask for, with sources opened. Raises SourceError and ConfigError."""
    from diptych.data import VALIDATION_SPLITS, open_source, open_split
    from diptych.evaluate import class_folder

    found = []
    if options.val_data:
        pairs = open_split(options.val_data, options.val_split, VALIDATION_SPLITS, options.source, "--val-split")
        found.append(
            Task("retrieval", pairs, {"protocol": options.protocol, "captions_per_image": options.captions_per_image})
        )
    if options.imagenet_val:
        folder = class_folder(options.imagenet_val)
        pictures = open_source(folder.pictures, options=options.source)
        texts = {
            "templates": options.templates or folder.templates or "openai80",
            "labels": options.labels or folder.labels,
        }
        found.append(Task("zeroshot", pictures, texts))
        if options.probe_train:
            train = open_source(class_folder(options.probe_train).pictures, options=options.source)
            found += [Task("linear_probe", pictures, {"train": train})]
            found += [Task("knn", pictures, {"train": train, "k": options.knn_k})]
    return found


def measure(options: Options, pretrained: str, wanted: Sequence[Task]) -> list[Measured]:
    """Load weights once and run every task."""
    from diptych import weights
    from diptych.devices import get_device
    from diptych.evaluate import EVALUATORS

    device = get_device(options.device)
    device.prepare_process()
    model = weights.load(pretrained, model=options.model).to(device.torch_device)
    look = weights.transforms(model.config)[1].transform
    tokenizer = weights.tokenizer_of(model.config, pretrained)
    precision = device.default_precision() if options.precision == "auto" else options.precision
    shared: dict[str, Any] = {"batch_size": options.batch_size, "workers": options.workers, "precision": precision}
    found = []
    for task in wanted:
        with log.progress(f"{task.evaluator} on {task.source.name}", 1) as tell:
            result = EVALUATORS.get(task.evaluator)(
                model, task.source, tokenizer, look, device,
                progress=lambda done, total, tell=tell: tell(done, total=total), **shared, **task.options,
            )  # fmt: skip
        found.append(Measured(task, result))
    return found


def compared(one: Measured, two: Measured) -> dict[str, Any]:
    """The second weights' scores, and for each the difference, its interval and p-value."""
    from diptych.evaluate import paired

    differences = {}
    for metric, outcome in one.result.outcomes.items():
        found = paired(outcome, two.result.outcomes[metric])
        differences[metric] = {
            "difference": found.value, "low": found.low, "high": found.high, "p": found.p,
        }  # fmt: skip
    return {"metrics": dict(two.result.metrics), "differences": differences}


def keep(output: str, entries: list[dict[str, Any]], measured: Sequence[Measured]) -> Path:
    """Write results, predictions, mistakes as pictures and the report into a folder; return the report's path.

    Raises ConfigError when the folder holds results of its own already.
    """
    from diptych.evaluate import gallery, mistakes
    from diptych.files import write_text
    from diptych.report import write_report

    folder = Path(output)
    if (folder / "results.json").exists():
        raise ConfigError(f"{folder} already holds results; choose another --output.")
    pictures = []
    for one in measured:
        draw: Any = {"retrieval": gallery, "zeroshot": mistakes}.get(one.task.evaluator)
        if draw is not None:
            pictures += draw(one.result, one.task.source, title=one.result.name)
    lines = [line for one in measured if one.task.evaluator == "zeroshot" for line in _predictions(one)]
    if lines:
        write_text(folder / "predictions.jsonl", "".join(lines), "predictions")
    write_text(folder / "gallery.json", json.dumps(pictures), "gallery")
    write_text(folder / "results.json", json.dumps(entries, indent=1) + "\n", "results")
    return write_report(folder)


def _predictions(one: Measured) -> list[str]:
    """One line per picture: its key, class, and the five best answers with their cosines."""
    result: Any = one.result
    lines = []
    for place, index in enumerate(result.indices):
        label, answers = int(result.labels[place]), result.answers[place].tolist()
        row = {
            "image": one.task.source.record(index).key, "label": label, "label_name": result.classes[label],
            "prediction": answers[0], "prediction_name": result.classes[answers[0]],
            "best": answers, "scores": [round(score, 6) for score in result.scores[place].tolist()],
        }  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines
