"""``diptych data``: inspect data before training on it, and convert it.

Arguments and output only; the reading, writing and counting are done in ``datatools``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from diptych.commands import command
from diptych.data import SourceOptions
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from diptych.data import Source
    from diptych.datatools.inspect import Findings

ACTIONS = Literal["check", "stats", "shard", "index", "split", "bench"]


@dataclass(frozen=True)
class Options:
    """What to do, with which data."""

    action: Positional[ACTIONS]
    """check reads everything; stats counts; shard writes tars; index prepares; split makes files; bench times loading."""
    data: Positional[str]
    """Pairs: anything that --train-data takes."""
    output: Positional[str] = ""
    """Folder for shard and split."""
    split: str = ""
    """Only this split of the file."""
    against: str = ""
    """check: other pairs, to search for images that are in both (leakage)."""
    against_split: str = ""
    """check: only this split of the other pairs."""
    context_length: int = 77
    """check, stats: tokens that a text may have."""
    samples_per_shard: int = 1000
    """shard: records in each."""
    format: Literal["tar", "parquet"] = "tar"
    """shard: WebDataset tars or Parquet."""
    resize: int = 0
    """shard: longest short side in pixels; 0 leaves images as they are, byte for byte."""
    quality: int = 90
    """shard: JPEG quality of images that are resized."""
    shuffle: bool = False
    """shard: in a shuffled order."""
    seed: int = 0
    """shard, split: seed of the order or draw."""
    rule: str = "random:0.1"
    """split: last:N (rows), karpathy:FILE.json, or random:SHARE (images)."""
    image_size: int = 224
    """bench: size of the training crop."""
    workers: int = -1
    """Processes; -1 takes one per core."""
    json: bool = False
    """Print a JSON object instead of text."""
    source: SourceOptions = field(default_factory=SourceOptions)

    @property
    def processes(self) -> int:
        """The number of processes that -1 means."""
        return self.workers if self.workers >= 0 else len(os.sched_getaffinity(0))


@command("data", example="diptych data check photos.jsonl --against val.jsonl")
def main(options: Options) -> int:
    """Check, count, shard, index, split or time image-text data."""
    from diptych.data import open_source

    if options.against and options.action != "check":
        raise ConfigError(f"--against {options.against}: only data check compares with other data; leave it out.")
    source = open_source(options.data, split=options.split, options=options.source, alone=not options.against)
    result = {"check": _check, "stats": _stats, "shard": _shard, "index": _index, "split": _split, "bench": _bench}[
        options.action
    ](options, source)
    if options.json:
        print(json.dumps(result))
    else:
        from diptych.commands._data_report import render

        print(render(options.action, result))
    return 0


def _findings(options: Options, source: Source, decode: bool = True) -> Findings:
    from diptych import log
    from diptych.datatools.inspect import inspect_all, summarize
    from diptych.text import get_tokenizer

    tokenizer = get_tokenizer("bpe", options.context_length)
    with log.progress(f"reading {source.name}", len(source)) as report:
        return summarize(inspect_all(source, tokenizer, options.processes, decode), report)


def _check(options: Options, source: Source) -> dict[str, Any]:
    from diptych.data import Opened, check_options, open_source
    from diptych.datatools.inspect import near

    other = None
    if options.against:
        other = open_source(options.against, split=options.against_split, options=options.source, alone=False)
        check_options([Opened(source, options.source), Opened(other, options.source)])
    findings = _findings(options, source)
    result = {
        "records": findings.records, "usable": findings.usable, "pictures": len(findings.sides),
        "unreadable": findings.unreadable, "tiny": findings.tiny, "empty_captions": findings.empty,
        "same_bytes": findings.same_bytes, "repeated_captions": findings.repeated_captions,
        "nearly_the_same": [pair for pair in near(findings.hashes, findings.hashes, 0) if pair[0] < pair[1]],
        "captions": findings.captions, "truncated": findings.truncated, "context_length": options.context_length,
        "scripts": dict(findings.scripts.most_common()), "tokens": _spread(findings.lengths),
    }  # fmt: skip
    if other is not None:
        result["against"] = options.against
        result["in_both"] = near(findings.hashes, _findings(options, other).hashes)
    return result


def _stats(options: Options, source: Source) -> dict[str, Any]:
    findings = _findings(options, source, decode=False)
    return {
        "records": findings.records, "captions": findings.captions,
        "captions_per_record": findings.captions / max(1, findings.records),
        "without_caption": len(findings.empty), "truncated": findings.truncated, "context_length": options.context_length,
        "tokens": _spread(findings.lengths), "scripts": dict(findings.scripts.most_common()),
        "repeated_captions": findings.repeated_captions, "splits": source.splits(),
    }  # fmt: skip


def _spread(values: list[int]) -> dict[str, float]:
    import numpy as np

    if not values:
        return {}
    array = np.array(values)
    marks = {f"p{mark}": float(np.percentile(array, mark)) for mark in (50, 90, 99)}
    return {"mean": float(array.mean()), **marks, "max": int(array.max())}


def _folder(options: Options) -> Path:
    if not options.output:
        raise ConfigError(f"diptych data {options.action} DATA FOLDER: the folder to write to is missing.")
    return Path(options.output)


def _shard(options: Options, source: Source) -> dict[str, Any]:
    from diptych import log
    from diptych.datatools.shards import ShardOptions, write_shards

    wanted = ShardOptions(
        options.samples_per_shard, options.format, options.resize, options.quality, options.shuffle, options.seed
    )
    folder = _folder(options)
    with log.progress(f"writing {folder}", len(source)) as report:
        done = write_shards(source, folder, wanted, options.processes, report)
    return {
        "folder": str(folder), "shards": len(done), "samples": sum(shard.samples for shard in done),
        "left_out": [pair for shard in done for pair in shard.left_out], "format": options.format,
    }  # fmt: skip


def _index(options: Options, source: Source) -> dict[str, Any]:
    import time

    from diptych.data import open_source
    from diptych.files import cache_folder

    start = time.perf_counter()
    open_source(options.data, split=options.split, options=options.source)
    return {"records": len(source), "splits": source.splits(), "opens_in_seconds": time.perf_counter() - start,
            "cache": str(cache_folder())}  # fmt: skip


def _split(options: Options, source: Source) -> dict[str, Any]:
    from diptych.datatools.split import split, write_splits

    parts = split(source, options.rule, options.seed)
    stem = Path(options.data).name.partition(".")[0]
    files = write_splits(parts, _folder(options), stem)
    return {"files": [str(path) for path in files], "rows": {part: len(rows) for part, rows in sorted(parts.items())}}


def _bench(options: Options, source: Source) -> dict[str, Any]:
    from diptych.datatools.bench import bench

    return bench(source, options.image_size, options.processes)
