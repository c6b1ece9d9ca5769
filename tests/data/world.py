"""The same few images and captions on disk in every data format, for the data tests.

A new format adds a function ``write_NAME(folder) -> spec`` here and a line to ``FORMATS``, under the name that its file in
``src/diptych/data`` registers. It writes ``COUNT`` records in order: the image of record n is ``image_bytes(n)``, its caption
``caption(n)``. The contract tests of ``test_sources.py``, ``test_mixing.py`` and ``test_open.py`` then run over it: opening by
its name and by --dataset-type, equal records and batches in every format, other ranks and loader processes, resuming anywhere.
Its class also declares ``priority``, ``example`` and ``uses`` (``data/_base.py``).
"""

import base64
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 23


def image_bytes(number: int) -> bytes:
    """A PNG whose every pixel says which record it is."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (number * 10 % 256, number, 7), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(number: int) -> str:
    return f"image number {number}"


def write_images(folder: Path, count: int = COUNT) -> list[str]:
    """Files img/00.png, ...; their paths relative to the folder."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    names = [f"img/{number:02d}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(image_bytes(number))
    return names


def write_jsonl(folder: Path) -> str:
    names = write_images(folder)
    rows = [{"image": name, "captions": [caption(number)]} for number, name in enumerate(names)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "pairs.jsonl")


def write_csv(folder: Path) -> str:
    names = write_images(folder)
    lines = ["filepath,title", *(f"{name},{caption(number)}" for number, name in enumerate(names))]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "pairs.csv")


def write_folder(folder: Path) -> str:
    for number, name in enumerate(write_images(folder)):
        (folder / name).with_suffix(".txt").write_text(caption(number) + "\n")
    return str(folder / "img")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_webdataset(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [0, 4, 15, COUNT]
    for shard, (first, last) in enumerate(itertools.pairwise(bounds)):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as tar:
            for number in range(first, last):
                add(tar, f"{number:02d}.png", image_bytes(number))
                add(tar, f"{number:02d}.txt", caption(number).encode())
    return str(folder / "shard-{000..002}.tar")


def write_json(folder: Path) -> str:
    """Windows separators, as the fine-tuning lists have them."""
    names = write_images(folder)
    rows = [{"image": name.replace("/", "\\"), "caption": [caption(number)]} for number, name in enumerate(names)]
    (folder / "en_train.json").write_text(json.dumps(rows, indent=2))
    return str(folder / "en_train.json")


def write_laion(folder: Path) -> str:
    """A file list of two shards, one of them gzipped, as PaddleMIX's loader reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(COUNT):
        metadata = json.dumps({"caption_en" if number % 2 else "blip_caption_en": caption(number)})
        lines.append(
            "\t".join(["0", "url", metadata, "x", "y", base64.b64encode(image_bytes(number)).decode(), "more"]) + "\n"
        )
    (folder / "part-00000").write_text("".join(lines[:9]))
    (folder / "part-00001.gz").write_bytes(gzip.compress("".join(lines[9:]).encode()))
    (folder / "laion.filelist").write_text("part-00000\npart-00001.gz\n")
    return str(folder / "laion.filelist")


def write_flickr_token(folder: Path) -> str:
    names = write_images(folder)
    (folder / "img").rename(folder / "flickr30k-images")
    lines = [f"{Path(name).name}#0\t{caption(number)}\n" for number, name in enumerate(names)]
    (folder / "results.token").write_text("".join(lines))
    return str(folder / "results.token")


def write_parquet(folder: Path) -> str:
    """Two files of Hugging Face's image structs, with small row groups."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"bytes": image_bytes(number), "path": None}, "caption": caption(number)} for number in range(COUNT)
    ]
    for number, part in enumerate((rows[:10], rows[10:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"{number}.parquet", row_group_size=4)
    return str(folder / "*.parquet")


FORMATS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "folder": write_folder,
    "webdataset": write_webdataset,
    "json": write_json,
    "laion": write_laion,
    "flickr_token": write_flickr_token,
    "parquet": write_parquet,
}
