"""``diptych evaluate``: measure weights on pairs (retrieval) and on named pictures (zero-shot, linear probe, neighbours)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from diptych.commands import command
from diptych.commands._tables import print_differences, print_results
from diptych.data import SourceOptions


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    pretrained: str
    """Weights in any layout: a file, a folder, a run, or a name of the catalogue (diptych models --pretrained)."""
    model: str = ""
    """Architecture, where the weights do not say it."""
    against: str = ""
    """Other weights, measured on the same queries: each difference is shown with its interval and p-value."""
    val_data: str = ""
    """Pairs for retrieval: .jsonl, .csv, .tsv, shards, a folder."""
    val_split: str = ""
    """Split of the pairs; empty takes "val", "validation", "dev" or "test", the first there is."""
    imagenet_val: str = ""
    """Pictures to name: class folders, a .jsonl, .csv or shards with labels, or a folder with images/ and labels.txt."""
    templates: str = ""
    """Prompts: openai80, openai7, prompt8, prompt6, simple, cc, or a text file; empty: templates.txt there, or openai80."""
    labels: str = ""
    """Class names: imagenet, or a text file, one per line in the folders' order; empty: labels.txt, or the folders' names."""
    probe_train: str = ""
    """Labelled pictures for a linear probe and nearest neighbours, which are then tested on --imagenet-val."""
    knn_k: int = 20
    """Neighbours that vote."""
    protocol: Literal["grouped", "paired"] = "grouped"
    """Retrieval: any true caption of the picture counts (COCO, Flickr), or row by row as open_clip does."""
    captions_per_image: int = 0
    """Only the first so many captions of a picture (5 for COCO papers); 0 takes all."""
    batch_size: int = 64
    """Images, or captions, encoded at a time."""
    workers: int = 1
    """Processes that decode images."""
    device: str = "auto"
    """Accelerator: auto, or the name of one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic inside the towers; scores are always fp32."""
    json: bool = False
    """One JSON list instead of a table."""
    output: str = ""
    """Folder for results.json, predictions.jsonl and report.html with the worst mistakes as pictures."""
    source: SourceOptions = field(default_factory=SourceOptions)


@command("evaluate", example="diptych evaluate --pretrained runs/a --val-data photos.jsonl --val-split test")
def main(options: Options) -> int:
    """Measure weights: retrieval on pairs, zero-shot and probes on named pictures; chance and intervals beside every score."""
    from diptych.commands import _measure as measuring
    from diptych.errors import ConfigError

    if not (options.val_data or options.imagenet_val):
        raise ConfigError("nothing to measure on: give --val-data PAIRS, --imagenet-val FOLDER, or both.")
    if options.probe_train and not options.imagenet_val:
        raise ConfigError("--probe-train is tested on --imagenet-val: give both.")
    tasks = measuring.tasks(options)
    measured = measuring.measure(options, options.pretrained, tasks)
    entries = [one.entry() for one in measured]
    differences = []
    if options.against:
        others = measuring.measure(options, options.against, tasks)
        differences = [measuring.compared(one, two) for one, two in zip(measured, others, strict=True)]
        for entry, difference in zip(entries, differences, strict=True):
            entry["against"] = {"weights": options.against, **difference}
    report = measuring.keep(options.output, entries, measured) if options.output else None
    if options.json:
        print(json.dumps(entries))
        return 0
    print_results(entries)
    print_differences(entries)
    if report:
        print(f"report: {report}")
    return 0
