"""Three SLIP views of a pair (a crop, two strong views, 224 pixels): pairs per second of one loader process, ours and SLIP's.

    python benchmarks/views.py FLICKR8K/captions.jsonl [PAIRS]      (environment: benchmarks/peers.txt, for torchvision)

The peer is facebookresearch/SLIP's recipe on open_clip's way of loading: a torch DataLoader over files that Pillow opens,
torchvision's transforms, tensors normalized in the loader process, open_clip's tokenizer where it is installed. Where torchvision
cannot be imported the same recipe is written in plain Pillow and numpy, and the result says so. Both read the same files in one
process each, alternating, best of five; images are in the page cache. Writes benchmarks/results/views.json.
"""

from __future__ import annotations

import gc
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _peers import machine, open_clip
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset

from diptych.data import TRAIN_SPLITS, Loader, LoaderOptions, SourceOptions, build_prepare, open_split
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

SIZE, BATCH, ROUNDS = 224, 64, 5
BASE_SCALE, STRONG_SCALE = (0.5, 1.0), (0.08, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESULT = Path(__file__).resolve().parent / "results" / "views.json"


def blurred(image: Image.Image) -> Image.Image:
    """SLIP's blur, by Pillow: half of the time, a standard deviation of 0.1 to 2 pixels."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() < 0.5 else image


def by_torchvision() -> tuple[Callable[[Image.Image], Any], Callable[[Image.Image], Any]]:
    """The base view and the strong view as SLIP's main.py composes them. Raises ImportError or RuntimeError."""
    open_clip()  # declares what a CPU build of torchvision misses
    from torchvision import transforms

    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    base = transforms.Compose([transforms.RandomResizedCrop(SIZE, scale=BASE_SCALE), *end])
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    changes = [jitter, transforms.RandomGrayscale(p=0.2), blurred, transforms.RandomHorizontalFlip()]
    return base, transforms.Compose([transforms.RandomResizedCrop(SIZE, scale=STRONG_SCALE), *changes, *end])


def cropped(image: Image.Image, scale: tuple[float, float]) -> Image.Image:
    """A random resized crop, bilinear, of a shape of 3/4 to 4/3; the whole image where ten draws do not fit."""
    for _ in range(10):
        area = image.width * image.height * random.uniform(*scale)
        shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if width <= image.width and height <= image.height:
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            part = image.crop((left, top, left + width, top + height))
            return part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def hue_shifted(image: Image.Image, shift: float) -> Image.Image:
    """The hue turned in Pillow's HSV."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Floats of 0 to 1, normalized, [3, h, w]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def by_pillow() -> tuple[Callable[[Image.Image], Any], Callable[[Image.Image], Any]]:
    """The same two views without torchvision."""

    def strong(image: Image.Image) -> torch.Tensor:
        view = cropped(image, STRONG_SCALE)
        if random.random() < 0.8:
            changes: list[Callable[[Image.Image], Image.Image]] = [
                lambda item: ImageEnhance.Brightness(item).enhance(random.uniform(0.6, 1.4)),
                lambda item: ImageEnhance.Contrast(item).enhance(random.uniform(0.6, 1.4)),
                lambda item: ImageEnhance.Color(item).enhance(random.uniform(0.6, 1.4)),
                lambda item: hue_shifted(item, random.uniform(-0.1, 0.1)),
            ]
            random.shuffle(changes)
            for change in changes:
                view = change(view)
        if random.random() < 0.2:
            view = view.convert("L").convert("RGB")
        view = blurred(view)
        return as_tensor(ImageOps.mirror(view) if random.random() < 0.5 else view)

    return lambda image: as_tensor(cropped(image, BASE_SCALE)), strong


class Peer(Dataset[Any]):
    """Files and captions as open_clip's CsvDataset reads them, with three views."""

    def __init__(self, rows: list[tuple[Path, str]], tokenize: Callable[[str], Any], views: Any) -> None:
        self.rows, self.tokenize, (self.base, self.strong) = rows, tokenize, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        path, text = self.rows[index]
        image = Image.open(path).convert("RGB")
        return self.base(image), self.strong(image), self.strong(image), self.tokenize(text)


def peer() -> tuple[Any, Callable[[str], Any], str]:
    """The peer's views and tokenizer, and what they are."""
    try:
        views, what = by_torchvision(), "torchvision's transforms, as SLIP's main.py"
    except (ImportError, RuntimeError) as error:
        views, what = by_pillow(), f"the same recipe in plain Pillow, since torchvision does not import ({error})"
    try:
        tokenizer = open_clip().get_tokenizer("ViT-B-32")
        return views, lambda text: tokenizer([text])[0], what + "; open_clip's tokenizer"
    except ImportError:
        ours = get_tokenizer("bpe")
        return views, lambda text: ours([text])[0], what + "; our tokenizer, since open_clip is not installed"


def pairs_per_second(batches: Any, pairs: int) -> float:
    """Of a running loader, the start of its process left out."""
    gc.collect()
    iterator = iter(batches)
    for _ in range(6):  # its process is running, and what it prepared ahead is used up
        next(iterator)
    start, count = time.perf_counter(), 0
    while count < pairs:
        next(iterator)
        count += BATCH
    return count / (time.perf_counter() - start)


def main() -> None:
    data, pairs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    torch.set_num_threads(1)
    source = open_split(data, "", TRAIN_SPLITS, SourceOptions(), "--train-split")
    records = [source.record(index) for index in range(min(len(source), pairs + 8 * BATCH))]
    rows = [(Path(str(record.image)), record.captions[0]) for record in records]
    views, tokenize, what = peer()
    wants = Wants(images=("crop", "strong", "strong"))
    options = ViewOptions(SIZE, scale=BASE_SCALE, interpolation="bilinear")
    prepare = build_prepare(wants, get_tokenizer("bpe"), options, "first")
    rounds = []
    for number in range(ROUNDS):
        ours = Loader(source, prepare, LoaderOptions(BATCH, workers=1, seed=number))
        theirs = DataLoader(Peer(rows, tokenize, views), BATCH, shuffle=True, num_workers=1, drop_last=True)
        rounds.append({"ours": pairs_per_second(ours, pairs), "peer": pairs_per_second(theirs, pairs)})
        print(f"round {number + 1}: ours {rounds[-1]['ours']:.0f} pairs/s, peer {rounds[-1]['peer']:.0f} pairs/s")
    best = {name: max(row[name] for row in rounds) for name in ("ours", "peer")}
    result = {
        "benchmark": "views", "views": list(wants.images), "size": SIZE, "pairs": pairs, "peer": what, "rounds": rounds,
        "best_pairs_per_second": best, "ratio": best["ours"] / best["peer"], "machine": machine("torch", "Pillow", "numpy"),
    }  # fmt: skip
    print(f"ratio {result['ratio']:.2f} ({what})")
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
