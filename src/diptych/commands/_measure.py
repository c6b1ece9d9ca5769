"""What ``diptych evaluate`` does: open the data once, measure weights on it, compare two, write what came of it.

Knows no score and names no evaluator: ``diptych.evaluate`` measures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diptych import log, weights
from diptych.config import Share
from diptych.data import (
    TRAIN_SPLITS,
    VALIDATION_SPLITS,
    Opened,
    SourceOptions,
    check_left_out,
    check_options,
    check_roots,
    open_split,
    with_root,
)
from diptych.devices import PRECISIONS, PURE, get_device
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.evaluate import (
    AnyEvaluator,
    DataKind,
    Encoder,
    ProbeData,
    Records,
    Result,
    check_usable,
    evaluators,
    open_labeled,
    paired,
    use_labeled,
    use_pair,
)
from diptych.files import write_text
from diptych.report import write_report

DATA_FLAGS: dict[DataKind, str] = {"pairs": "--val-data", "labeled": "--imagenet-val", "probe": "--probe-train"}


@dataclass(frozen=True)
class DataOptions:
    """What to measure on."""

    val_data: str = ""
    """Pairs for retrieval: .jsonl, .csv, .tsv, shards, a folder."""
    val_split: str = ""
    """Split of the pairs; empty takes "val", "validation", "dev" or "test", the first there is."""
    val_image_root: str = ""
    """Folder that relative image paths of --val-data start from; empty takes --image-root."""
    imagenet_image_root: str = ""
    """Folder that relative image paths of --imagenet-val and --probe-train start from; empty takes --image-root."""
    bad_samples: Literal["skip", "raise"] = "skip"
    """An image that cannot be read: left out of the scores, counted and named; or the evaluation stops."""
    bad_samples_max: Share = 0.05
    """Share of bad samples above which the evaluation stops."""
    bad_samples_strict: bool = False
    """An image that is damaged and can be decoded all the same is a bad sample too."""
    imagenet_val: str = ""
    """Images to classify: class folders, a .jsonl, .csv or shards with labels, or a folder with images/ and labels.txt."""
    probe_train: str = ""
    """Labeled images for a linear probe and nearest neighbors, which are then tested on --imagenet-val."""


@dataclass(frozen=True)
class EncodeOptions:
    """How images and captions are encoded."""

    batch_size: int = 64
    """Images, or captions, encoded at a time."""
    workers: int = 1
    """Processes that decode images."""
    device: str = "auto"
    """Accelerator: auto, or the name of one."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "pure_bf16"] = "fp32"
    """Arithmetic inside the towers, with pure_bf16 their weights too; scores are always fp32."""
    matmul: Literal["auto", "exact", "fast"] = "auto"
    """fp32 products: exact, fast (a CPU: another library, equal to rounding; a device with TF32: TF32), or what suits a CPU."""


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and on what; ``with_evaluators`` adds a branch for each evaluator."""

    pretrained: str
    """Weights in any checkpoint format: a file, a folder, a run, or a name of the catalog; FILE#ema takes averaged ones."""
    model: str = ""
    """Architecture, where the weights do not say it."""
    against: str = ""
    """Other weights, measured on the same queries: each difference is shown with its interval and p-value."""
    data: DataOptions = field(default_factory=DataOptions)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    json: bool = False
    """One JSON list instead of a table."""
    output: str = ""
    """Folder for results.json, predictions.jsonl and report.html with the worst mistakes as pictures."""
    source: SourceOptions = field(default_factory=SourceOptions)

    def of(self, evaluator: str) -> Any:
        """The options of an evaluator, by its name."""
        return getattr(self, evaluator)


def with_evaluators(options: type[MeasureOptions]) -> type[MeasureOptions]:
    """The options with a branch for each evaluator, named after it, of the type that it declares."""
    branches: list[Any] = [
        (name, entry.Options, field(default_factory=entry.Options)) for name, entry in evaluators().items()
    ]
    tree = dataclasses.make_dataclass("Options", branches, bases=(options,), frozen=True)
    tree.__module__, tree.__doc__ = options.__module__, options.__doc__
    return tree


@dataclass(frozen=True)
class Task:
    """An evaluator with its options and what it measures on."""

    name: str
    evaluator: AnyEvaluator
    options: Any
    source: Records | ProbeData


@dataclass(frozen=True)
class Measured:
    """A task and its result."""

    task: Task
    result: Result

    def entry(self) -> dict[str, Any]:
        """As ``results.json`` lists it, with the evaluator, since several may measure on the same data."""
        entry, title = self.result.entry(), self.task.evaluator.title
        return {**entry, "name": entry["name"] + (f" · {title}" if title else ""), "evaluator": self.task.name}


def tasks(options: MeasureOptions) -> list[Task]:
    """An evaluation for every evaluator whose data was given, with sources opened. Raises SourceError and ConfigError."""
    data = options.data
    if not (data.val_data or data.imagenet_val):
        raise ConfigError("nothing to measure on: give --val-data PAIRS, --imagenet-val FOLDER, or both.")
    if data.probe_train and not data.imagenet_val:
        raise ConfigError("--probe-train is tested on --imagenet-val: give both.")
    check_roots(data)
    sources = _open(data, options.source)
    _say_unused(options, sources)
    return [
        Task(name, evaluator, options.of(name), sources[evaluator.data])
        for name, evaluator in evaluators().items()
        if evaluator.data in sources
    ]


def _say_unused(options: MeasureOptions, sources: Mapping[DataKind, object]) -> None:
    """One line of the log for an evaluator whose options are set and whose data is not given."""
    for name, evaluator in evaluators().items():
        own = options.of(name)
        given = [item.name for item in dataclasses.fields(own) if getattr(own, item.name) != item.default]
        if given and evaluator.data not in sources:
            flags = ", ".join("--" + field_name.replace("_", "-") for field_name in given)
            log.warn(f"{flags}: no effect without {DATA_FLAGS[evaluator.data]}")


def _open(data: DataOptions, options: SourceOptions) -> dict[DataKind, Records | ProbeData]:
    sources: dict[DataKind, Records | ProbeData] = {}
    opened: list[Opened] = []
    if data.val_data:
        rooted = with_root(options, data.val_image_root)
        sources["pairs"] = pairs = open_split(data.val_data, data.val_split, VALIDATION_SPLITS, rooted, "--val-split")
        opened.append(Opened(pairs, rooted, "--val-image-root" if data.val_image_root else "--image-root"))
    if data.imagenet_val:
        rooted = with_root(options, data.imagenet_image_root)
        flag = "--imagenet-image-root" if data.imagenet_image_root else "--image-root"
        sources["labeled"] = labeled = open_labeled(data.imagenet_val, rooted)
        opened.append(Opened(labeled.source, rooted, flag))
        if data.probe_train:
            train = open_labeled(data.probe_train, rooted, preferred=TRAIN_SPLITS)
            sources["probe"] = ProbeData(train, labeled)
            opened.append(Opened(train.source, rooted, flag))
    check_options(opened)
    for source, *_ in opened:
        check_left_out(source, data.bad_samples_max)
    for kind, records in sources.items():  # before weights are loaded
        if isinstance(records, ProbeData):
            check_usable(records.train, "--probe-train", use_labeled)
        elif kind == "pairs":
            check_usable(records, "--val-data", use_pair)
        else:
            check_usable(records, "--imagenet-val", use_labeled)
    return sources


def measure(options: MeasureOptions, pretrained: str, wanted: Sequence[Task]) -> list[Measured]:
    """Load weights once and run every task."""
    chosen, world = options.encode, process_group.world_from_environment()
    device = get_device(chosen.device, world.local_rank if world.size > 1 else None)
    device.prepare_process(chosen.matmul)
    process_group.start(device)
    model = weights.load(pretrained, model=options.model).to(device.torch_device)
    precision = device.default_precision() if chosen.precision == "auto" else chosen.precision
    if precision in PURE:
        model.cast_towers(PRECISIONS[PURE[precision]])
    encoder = Encoder(
        model,
        weights.tokenizer_of(model.config, pretrained),
        weights.eval_transform(model.config),
        device,
        chosen.batch_size,
        chosen.workers,
        precision,
        shared=world.size > 1,
        bad_samples=options.data.bad_samples,
        bad_limit=options.data.bad_samples_max,
        strict=options.data.bad_samples_strict,
    )
    return [_run(task, encoder) for task in wanted]


def _run(task: Task, encoder: Encoder) -> Measured:
    with log.progress(f"{task.name} on {task.source.name}", 1) as report:
        result = task.evaluator().run(encoder, task.source, task.options, lambda done, total: report(done, total=total))
    return Measured(task, result)


def compared(first: Measured, second: Measured) -> dict[str, Any]:
    """The second weights' scores, and for each the difference, its interval and p-value."""
    differences = {}
    for metric, outcome in first.result.outcomes.items():
        difference = paired(outcome, second.result.outcomes[metric])
        differences[metric] = {
            "difference": difference.value, "low": difference.low, "high": difference.high, "p": difference.p,
        }  # fmt: skip
    return {"metrics": dict(second.result.metrics), "differences": differences}


def write_results(output: str, entries: Sequence[Mapping[str, Any]], measured: Sequence[Measured]) -> Path:
    """Write results, predictions, drawings and the report into a folder; return the report's path.

    Raises ConfigError when the folder holds results of its own already.
    """
    folder = Path(output)
    if (folder / "results.json").exists():
        raise ConfigError(f"{folder} already holds results; choose another --output.")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _predictions(measured)]
    if lines:
        write_text(folder / "predictions.jsonl", "".join(lines), "predictions")
    drawings = [part for item in measured for part in item.task.evaluator().images(item.result, item.task.source)]
    write_text(folder / "gallery.json", json.dumps(drawings), "gallery")
    write_text(folder / "results.json", json.dumps(entries, indent=1) + "\n", "results")
    return write_report(folder)


def _predictions(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    for item in measured:
        yield from item.task.evaluator().predictions(item.result, item.task.source)
