"""Pairs per second of one loader process: open_clip's pipelines and ours on the same photos, alternating, one worker each.

    python benchmarks/data/measure_loader.py PHOTOS_FOLDER [FOLDER FOR TEMPORARY FILES]      (environment: benchmarks/peers.txt)

Two sets are made of the photos: short side 256, and short side 390, ImageNet's mean size (JPEG, quality 90; smaller photos are
enlarged, which leaves the work of decoding and resizing as it is), each as a CSV with its files and as a WebDataset tar (there
open_clip's pipeline is the webdataset library's). Both sides draw a random
crop of 0.9 to 1 of the area, resize it bicubically to 224, tokenize a caption, and make batches of 64. "fast" is our
--resize-kernel fast. Also the time to put a batch of 128 together. Best of three rounds. Writes benchmarks/results/loader.json.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _peers import machine, open_clip

from diptych.data import Loader, LoaderOptions, build_prepare, collate, open_source
from diptych.image import TrainTransform, ViewOptions, compile_kernels
from diptych.text import get_tokenizer
from diptych.types import Sample, Wants

ROUNDS, BATCH, SIDE, PHOTOS = 3, 64, 224, 512
RESULT = Path(__file__).resolve().parents[1] / "results" / "loader.json"


def sets(photos: Path, folder: Path) -> dict[str, Path]:
    """CSV files of the two sets: tab separated, as open_clip's defaults want."""
    photo_files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:PHOTOS]
    files = {}
    for name, short in (("short side 256", 256), ("short side 390", 390)):
        base = folder / name.replace(" ", "-")
        base.mkdir()
        lines = ["filepath\ttitle"]
        for number, path in enumerate(photo_files):
            image = Image.open(path).convert("RGB")
            ratio = short / min(image.size)
            file = base / f"{number:04d}.jpg"
            size = (round(image.width * ratio), round(image.height * ratio))
            image.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
            lines.append(f"{file}\ta photo of something that people photograph, number {number}")
        files[name] = base / "pairs.csv"
        files[name].write_text("\n".join(lines) + "\n")
        with tarfile.open(base / "pairs.tar", "w") as tar:
            for line in lines[1:]:
                path, caption = line.split("\t")
                tar.add(path, Path(path).name)
                text = tarfile.TarInfo(Path(path).stem + ".txt")
                text.size = len(caption)
                tar.addfile(text, io.BytesIO(caption.encode()))
    return files


def their_tar(csv: Path):
    """open_clip's WebDataset pipeline, with its own settings."""
    peer = open_clip()
    from open_clip_train.data import get_wds_dataset

    given = argparse.Namespace(
        train_data=str(csv.with_suffix(".tar")), train_num_samples=PHOTOS, dataset_resampled=False, seed=0, workers=1,
        train_data_upsampling_factors=None, batch_size=BATCH, world_size=1,
    )  # fmt: skip
    transform = peer.image_transform(SIDE, is_train=True)
    return get_wds_dataset(given, transform, True, tokenizer=peer.get_tokenizer("ViT-B-32")).dataloader


def theirs(csv: Path):
    """open_clip's own data set and transform, in torch's loader with one worker, as its training script sets it up."""
    peer = open_clip()  # first: it declares what torchvision misses
    from open_clip_train.data import CsvDataset

    transform = peer.image_transform(SIDE, is_train=True)
    data = CsvDataset(
        str(csv), transform, img_key="filepath", caption_key="title", sep="\t", tokenizer=peer.get_tokenizer("ViT-B-32")
    )
    return torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=1, drop_last=True)


def ours(csv: Path, kernel: str, kind: str = "csv"):
    compile_kernels(None)  # as a training does, which reads more than these few photos
    prepare = build_prepare(Wants(), get_tokenizer("bpe"), ViewOptions(SIDE, kernel=kernel))
    return Loader(open_source(str(csv.with_suffix("." + kind))), prepare, LoaderOptions(BATCH, workers=1, epochs=1))


def rate(loader) -> float:
    """Pairs per second, from the first batch to the last: starting the process is not counted."""
    start, done = None, 0
    for batch in loader:
        if start is None:
            start = time.perf_counter()
            continue
        done += BATCH
        del batch
    return done / (time.perf_counter() - start)


def compared(csv: Path, kind: str = "csv", kernels: tuple[str, ...] = ("exact", "fast")) -> dict[str, object]:
    peer = theirs if kind == "csv" else their_tar
    rows = [
        {"open_clip": rate(peer(csv)), **{kernel: rate(ours(csv, kernel, kind)) for kernel in kernels}}
        for _ in range(ROUNDS)
    ]
    best = {key: max(row[key] for row in rows) for key in rows[0]}
    return {
        "rounds": rows, "pairs_per_second": best,
        **{f"ratio_{kernel}": best[kernel] / best["open_clip"] for kernel in kernels},
    }  # fmt: skip


def collation() -> dict[str, float]:
    """Milliseconds to make a batch of 128 out of samples."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8) for _ in range(128)]
    samples = [
        Sample(image[None], (np.arange(1, 15),), (14,), str(index), index, index, index)
        for index, image in enumerate(pixels)
    ]
    tensors = [(torch.from_numpy(image).float(), torch.zeros(77, dtype=torch.int64)) for image in pixels]

    def best(call) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        return min(times)

    mine, peer = best(lambda: collate(samples)), best(lambda: torch.utils.data.default_collate(tensors))
    return {"ours_ms": mine, "torch_default_ms": peer, "ratio": peer / mine}


def difference(csv: Path) -> float:
    """Mean difference in gray levels between the two kernels, over whole photos resized to 224."""
    from diptych.image import decode_image

    source, total = open_source(str(csv)), []
    exact, fast = (TrainTransform(SIDE, (1.0, 1.0), (0.99, 1.01), kernel=kernel) for kernel in ("exact", "fast"))
    for index in range(0, min(100, len(source))):
        image = decode_image(source.record(index).image)
        first, second = (transform(image, np.random.default_rng(index)).astype(int) for transform in (exact, fast))
        total.append(np.abs(first - second).mean())
    return float(np.mean(total))


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        result: dict[str, object] = {"benchmark": "one loader process, pairs per second"}
        for name, csv in sets(Path(sys.argv[1]), Path(folder)).items():
            for kind in ("csv", "tar"):
                found = compared(csv, kind) | {"mean_difference_of_fast_in_grey_levels": difference(csv)}
                result[f"{name}, {kind}"] = found
                print(
                    name, kind, json.dumps({key: value for key, value in found.items() if key != "rounds"}), flush=True
                )
    result["collate_128"] = collation()
    print("collate", result["collate_128"])
    result["machine"] = machine(
        "torch",
        "open_clip_torch",
        "torchvision",
        "webdataset",
        "Pillow",
        "simplejpeg",
        "numba",
        "opencv-python-headless",
    )
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
