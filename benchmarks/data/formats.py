"""One data set in every format that it can be written in: the same seed gives the same batches, also after interruptions.

    python benchmarks/data/formats.py FLICKR8K_FOLDER [FOLDER FOR TEMPORARY FILES]

FLICKR8K_FOLDER holds captions.jsonl and images. The photos of its validation split are written as JSON array, tars, gzipped
tar, Parquet and a folder with texts (one record a photo, five captions), and as CSV, TSV, token file and LAION shards (one record
a caption, held against the JSON Lines with --captions all). Compared are the pixels and tokens of every batch of an epoch and a
half (36 batches at most) in shuffled order, interrupted and resumed at three positions, the resumed part with two ranks. Writes
benchmarks/results/formats.json.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from diptych.data import CaptionPerRecord, Loader, LoaderOptions, Position, build_prepare, open_source
from diptych.datatools.shards import ShardOptions, write_shards
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

RESULT = Path(__file__).resolve().parents[1] / "results" / "formats.json"
BATCH, SEED = 64, 11
PREPARE = build_prepare(Wants(), get_tokenizer("bpe"), ViewOptions(96))


def written(base: Path, out: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Paths of the formats with one record a photo, and of those with one a caption."""
    rows = [json.loads(line) for line in (base / "captions.jsonl").open()]
    rows = [{"image": row["image"], "captions": row["captions"]} for row in rows if row.get("split") == "val"]
    folder = out / "folder"
    folder.mkdir()
    for row in rows:
        shutil.copyfile(base / row["image"], folder / Path(row["image"]).name)
        (folder / Path(row["image"]).with_suffix(".txt").name).write_text("\n".join(row["captions"]) + "\n")
    # A folder is read in the order of its names: everything else is written so.
    rows = sorted(({**row, "image": Path(row["image"]).name} for row in rows), key=lambda row: row["image"])
    (folder.parent / "a.jsonl").write_text(
        "".join(json.dumps({**row, "image": f"folder/{row['image']}"}) + "\n" for row in rows)
    )
    array = [{"image": f"folder\\{row['image']}", "caption": row["captions"]} for row in rows]
    (out / "a.json").write_text(json.dumps(array))
    lines = open_source(str(out / "a.jsonl"))
    for kind in ("tar", "parquet"):
        write_shards(lines, out / kind, ShardOptions(300, kind))
    with gzip.open(out / "one.tar.gz", "wb") as packed:
        write_shards(lines, out / "one", ShardOptions(100_000))
        packed.write((out / "one" / "00000.tar").read_bytes())
    pairs = [(row["image"], text, number) for row in rows for number, text in enumerate(row["captions"])]
    for name, mark in (("b.csv", ","), ("b.tsv", "\t")):
        with (out / name).open("w", newline="") as file:
            table = csv.writer(file, delimiter=mark)
            table.writerow(("filepath", "title"))
            table.writerows((f"folder/{image}", text) for image, text, _ in pairs)
    (out / "flickr30k-images").symlink_to(folder)
    (out / "b.token").write_text("".join(f"{image}#{number}\t{text}\n" for image, text, number in pairs))
    image_data = {row["image"]: base64.b64encode((folder / row["image"]).read_bytes()).decode() for row in rows}
    columns = ((json.dumps({"caption_en": text}), image_data[image]) for image, text, _ in pairs)
    (out / "part-00000").write_text("".join(f"0\t\t{metadata}\t\t\t{data}\n" for metadata, data in columns))
    (out / "laion.filelist").write_text("part-00000\n")
    photos = {
        "json": "a.json",
        "tar": "tar/{00000..00003}.tar",
        "gzipped tar": "one.tar.gz",
        "parquet": "parquet/*.parquet",
        "folder": "folder",
    }
    captions = {"csv": "b.csv", "tsv": "b.tsv", "token file": "b.token", "LAION shards": "laion.filelist"}
    return ({name: str(out / path) for name, path in specs.items()} for specs in (photos, captions))


def batches(source, start: Position, steps: int, ranks: int = 1) -> tuple[list[str], list[Position]]:
    """A digest of the pixels and tokens of each global batch, and the position after it."""
    parts = []
    for rank in range(ranks):
        options = LoaderOptions(BATCH // ranks, seed=SEED, rank=rank, ranks=ranks, start=start)
        loader = Loader(source, PREPARE, options)
        parts.append([step for step, _ in zip(iter(loader), range(steps), strict=False)])
    digests = []
    for step in range(steps):
        digest = hashlib.sha256()
        for part in parts:
            batch = part[step][0]
            for pixels, ids, length in zip(
                batch.images[0].numpy(), batch.tokens[0].numpy(), batch.lengths[0].tolist(), strict=True
            ):
                digest.update(np.ascontiguousarray(pixels).tobytes() + ids[:length].tobytes())
        digests.append(digest.hexdigest())
    return digests, [position for _, position in parts[0]]


def compared(specs: dict[str, str], reference) -> dict[str, object]:
    steps = (len(reference) // BATCH) * 3 // 2
    steps = min(steps, 36)
    expected, positions = batches(reference, Position(0, 0), steps)
    result: dict[str, object] = {"records": len(reference), "batches": steps}
    for name, spec in specs.items():
        source = open_source(spec)
        same = batches(source, Position(0, 0), steps)[0] == expected
        resumed = [
            batches(source, positions[stop - 1], steps - stop, ranks=2)[0] == expected[stop:]
            for stop in (1, steps // 2, steps - 2)
        ]
        result[name] = {"same_batches": same, "same_after_each_of_three_interruptions": resumed}
        print(name, result[name], flush=True)
    return result


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        photos, captions = written(Path(sys.argv[1]), Path(name))
        lines = open_source(str(Path(name) / "a.jsonl"))
        result = {
            "one record a photo": compared(photos, lines),
            "one record a caption": compared(captions, CaptionPerRecord(lines)),
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
