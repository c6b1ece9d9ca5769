"""Shards out: any source as WebDataset tars or Parquet, resized on the way, in several processes, continued where it stopped.

Shard k holds records k*N to (k+1)*N - 1 of the source's order (or of a shuffled one), so a shard depends on nothing but its
number. A complete shard is left as it is; each is written to a temporary file and renamed. Records that cannot be read are
left out and listed. ``sizes.json`` says how many each shard holds, as open_clip reads it.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from diptych.data import OWN_GROUP, OWN_KEY, Source, permute
from diptych.errors import ConfigError, OutputError, RecordError
from diptych.files import replacing, write_text
from diptych.image import decode_image
from diptych.types import Record

PLAN, SIZES, BAD = "shards.json", "sizes.json", "left_out.jsonl"


@dataclass(frozen=True)
class ShardOptions:
    """How shards are written. ``resize`` is the longest short side in pixels, 0 keeps images as they are, byte for byte."""

    samples: int = 1000
    format: Literal["tar", "parquet"] = "tar"
    resize: int = 0
    quality: int = 90
    shuffle: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """One finished shard."""

    name: str
    samples: int
    left_out: tuple[tuple[str, str], ...] = ()


def write_shards(
    source: Source,
    folder: Path,
    options: ShardOptions,
    workers: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> list[Written]:
    """Write all missing shards, and ``sizes.json``; ``report`` gets the number of records done.

    Raises OutputError when the folder holds shards of another source or other options.
    """
    if options.samples < 1:
        raise ConfigError(f"--samples-per-shard {options.samples}: expected at least 1.")
    _ = source.classes  # raises for joined parts whose labels a shard could not keep
    _claim(source, folder, options)
    count = -(-len(source) // options.samples)
    done: list[Written] = []
    for written in _written(source, folder, options, list(range(count)), workers):
        done.append(written)
        report(min(len(source), len(done) * options.samples))
    write_text(folder / SIZES, json.dumps({shard.name: shard.samples for shard in done}, indent=1) + "\n", "sizes")
    left_out = [{"key": key, "reason": reason} for shard in done for key, reason in shard.left_out]
    write_text(folder / BAD, "".join(json.dumps(row) + "\n" for row in left_out), "list of records left out")
    return done


def _claim(source: Source, folder: Path, options: ShardOptions) -> None:
    plan = {"source": source.name, "records": len(source), **asdict(options)}
    path = folder / PLAN
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise OutputError(f"{folder} holds shards of another source or with other options; give a new folder.")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} already holds files that are not shards; give a new folder.")
    write_text(path, json.dumps(plan, indent=1) + "\n", "plan")


_WORKER: dict[str, Any] = {}


def _start_worker(source: Source, folder: Path, options: ShardOptions) -> None:
    _WORKER.update(source=source, folder=folder, options=options)


def _numbered(number: int) -> Written:
    return _shard(_WORKER["source"], _WORKER["folder"], _WORKER["options"], number)


def _written(
    source: Source, folder: Path, options: ShardOptions, numbers: list[int], workers: int
) -> Iterator[Written]:
    if workers < 1 or len(numbers) < 2:
        yield from (_shard(source, folder, options, number) for number in numbers)
        return
    with multiprocessing.Pool(workers, _start_worker, (source, folder, options)) as pool:
        yield from pool.imap(_numbered, numbers)


def _shard(source: Source, folder: Path, options: ShardOptions, number: int) -> Written:
    """Write one shard, or recognize that it exists: a note beside each lists what it holds."""
    path = folder / f"{number:05d}.{options.format}"
    note = folder / ".notes" / f"{number:05d}.json"
    if path.is_file() and note.is_file():
        note_data = json.loads(note.read_text(encoding="utf-8"))
        return Written(path.name, note_data["samples"], tuple(map(tuple, note_data["left_out"])))
    first = number * options.samples
    positions = np.arange(first, min(first + options.samples, len(source)))
    order = permute(positions, len(source), options.seed, 0) if options.shuffle else positions
    rows, left_out = [], []
    for position, index in zip(positions.tolist(), order.tolist(), strict=True):
        try:
            rows.append(_row(source.record(index), position, options))
        except RecordError as error:
            left_out.append((error.key, error.reason))
    with replacing(path, "shard") as beside:
        (_write_tar if options.format == "tar" else _write_parquet)(beside, rows)
    write_text(note, json.dumps({"samples": len(rows), "left_out": left_out}), "note")
    return Written(path.name, len(rows), tuple(left_out))


@dataclass(frozen=True)
class Row:
    """One sample as it is written; ``ending`` names the image's encoding."""

    key: str
    ending: str
    image: bytes
    metadata: dict[str, Any]


def _row(record: Record, position: int, options: ShardOptions) -> Row:
    try:
        data = record.image if isinstance(record.image, bytes) else record.image.read_bytes()
    except OSError as error:
        raise RecordError(record.key, f"the image file cannot be read: {error.strerror}") from error
    image = decode_image(data, record.key)  # what cannot be read is left out of a shard
    ending = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif"}.get(data[:2], "")
    if (options.resize and min(image.size) > options.resize) or not ending:
        data, ending = _resized(image, options), "jpg"
    metadata: dict[str, Any] = {OWN_KEY: record.key, "captions": list(record.captions)}
    if record.label is not None:
        metadata["label"] = record.label
    if record.group is not None and record.group != record.key:
        metadata[OWN_GROUP] = record.group
    return Row(f"{position:09d}", ending, data, metadata)


def _resized(image: Image.Image, options: ShardOptions) -> bytes:
    short = min(image.size)
    if options.resize and short > options.resize:
        size = (round(image.width * options.resize / short), round(image.height * options.resize / short))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality)
    return buffer.getvalue()


def _write_tar(path: Path, rows: list[Row]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            metadata = json.dumps(row.metadata, ensure_ascii=False).encode()
            text = (row.metadata["captions"] or [""])[0].encode()
            for ending, data in ((row.ending, row.image), ("json", metadata), ("txt", text)):
                member = tarfile.TarInfo(f"{row.key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: Path, rows: list[Row]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("writing Parquet needs the package pyarrow: pip install 'diptych[parquet]'") from error
    table = [{"jpg": row.image, **row.metadata} for row in rows]
    # Small row groups: a record read alone costs its group.
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path, row_group_size=16, compression="none")
