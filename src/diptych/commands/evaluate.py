"""``diptych evaluate``: measure weights on pairs (retrieval) and on class folders (zero-shot classification)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diptych.commands import command
from diptych.commands._tables import print_results
from diptych.data import SourceOptions

if TYPE_CHECKING:
    from diptych.evaluate import Result


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    pretrained: str
    """Weights in any layout: a file, a folder, a run, or a name of the catalogue (diptych models --pretrained)."""
    model: str = ""
    """Architecture, where the weights do not say it."""
    val_data: str = ""
    """Pairs for retrieval: .jsonl, .csv, .tsv, shards, a folder."""
    val_split: str = ""
    """Split of the pairs; empty takes "val", "validation", "dev" or "test", the first there is."""
    imagenet_val: str = ""
    """Folder of class folders for zero-shot classification."""
    templates: str = "openai80"
    """Prompt templates: openai80, simple, or a text file with one per line, {} for the name."""
    labels: str = ""
    """Text file with one class name per line, in the folders' sorted order; empty takes the folders' names."""
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
    source: SourceOptions = field(default_factory=SourceOptions)


@command("evaluate", example="diptych evaluate --pretrained runs/a --val-data photos.jsonl --val-split test")
def main(options: Options) -> int:
    """Measure weights: retrieval both ways on pairs, zero-shot classification on class folders; chance beside every score."""
    from diptych.errors import ConfigError

    if not (options.val_data or options.imagenet_val):
        raise ConfigError("nothing to measure on: give --val-data PAIRS, --imagenet-val FOLDER, or both.")
    entries = [result.entry() for result in measure(options)]
    if options.json:
        print(json.dumps(entries))
    else:
        print_results(entries)
    return 0


def measure(options: Options) -> Iterator[Result]:
    """Load once, then score every data set that was named."""
    from diptych import log, weights
    from diptych.data import open_source
    from diptych.devices import get_device
    from diptych.evaluate import evaluators
    from diptych.train.pipeline import VALIDATION_SPLITS, opened

    device = get_device(options.device)
    model = weights.load(options.pretrained, model=options.model).to(device.torch_device)
    look = weights.transforms(model.config)[1].transform
    tokenizer = weights.tokenizer_of(model.config, options.pretrained)
    precision = device.default_precision() if options.precision == "auto" else options.precision
    shared: dict[str, Any] = {"batch_size": options.batch_size, "workers": options.workers, "precision": precision}
    tasks: list[tuple[str, Any, dict[str, Any]]] = []
    if options.val_data:
        source = opened(options.val_data, options.val_split, VALIDATION_SPLITS, options.source)
        tasks.append(
            ("retrieval", source, {"protocol": options.protocol, "captions_per_image": options.captions_per_image})
        )
    if options.imagenet_val:
        folders = open_source(options.imagenet_val, options=options.source)
        tasks.append(("zeroshot", folders, {"templates": options.templates, "labels": options.labels or None}))
    for name, source, own in tasks:
        with log.progress(f"{name} on {source.name}", 1) as tell:
            yield evaluators.get(name)(
                model,
                source,
                tokenizer,
                look,
                device,
                progress=lambda done, total: tell(done, total=total),
                **shared,
                **own,
            )
