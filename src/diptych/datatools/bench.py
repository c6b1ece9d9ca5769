"""How fast a data set loads on this machine, what holds it back, and how many processes to use.

Times each stage of one process alone, then the real loader with 0, 1, 2, 4... processes. Numbers of this machine, now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from diptych.data import Loader, LoaderOptions, Source, build_prepare
from diptych.errors import RecordError
from diptych.image import TrainTransform, ViewOptions, compile_kernels, decode_pixels
from diptych.text import get_tokenizer
from diptych.types import Wants

SAMPLES, SECONDS, BATCH = 200, 4.0, 32
Item = TypeVar("Item")


def bench(source: Source, image_size: int, processes: int) -> dict[str, Any]:
    """Rates of the stages and of the loader, the slowest stage, and the number of workers to use."""
    count = min(SAMPLES, len(source))
    indices = [number * len(source) // count for number in range(count)]
    records = [source.record(index) for index in indices]
    data = [item.image if isinstance(item.image, bytes) else item.image.read_bytes() for item in records]
    images = list(_readable(data))
    compile_kernels(None)  # as long trainings do
    transform, tokenizer = TrainTransform(image_size), get_tokenizer("bpe")
    rng = np.random.default_rng(0)
    texts = [text for item in records for text in item.captions]
    stages: dict[str, float] = {
        "read (from disk or its cache)": _rate(lambda index: _bytes(source, index), indices),
        "decode": _rate(lambda image: list(_readable([image])), data),
        f"crop and resize to {image_size}": _rate(lambda pixels: transform(pixels, rng), images),
        "tokenize": _rate(tokenizer.encode, texts),
    }
    loader = {workers: _loader_rate(source, image_size, workers) for workers in _counts(processes)}
    best = max(loader.values())
    # The fewest that come within a tenth of the best: more only take memory.
    workers = next(number for number, rate in loader.items() if rate >= 0.9 * best)
    return {
        "records": len(source), "per_second": stages, "loader": loader, "workers": workers,
        "bound_by": min(stages, key=stages.__getitem__), "cores": processes,
    }  # fmt: skip


def _counts(processes: int) -> list[int]:
    counts = [0, 1]
    while counts[-1] * 2 <= processes:
        counts.append(counts[-1] * 2)
    return counts


def _readable(data: Iterable[bytes]) -> Iterable[np.ndarray]:
    for encoded in data:
        try:
            yield decode_pixels(encoded)
        except RecordError:
            continue


def _bytes(source: Source, index: int) -> bytes:
    image = source.record(index).image
    return image if isinstance(image, bytes) else image.read_bytes()


def _rate(call: Callable[[Item], object], items: list[Item]) -> float:
    """Items per second, over a second at most, after a first for warming up."""
    if not items:
        return float("inf")
    call(items[0])
    start, done = time.perf_counter(), 0
    for item in items:
        call(item)
        done += 1
        if time.perf_counter() - start > 1.0:
            break
    return done / (time.perf_counter() - start)


def _loader_rate(source: Source, image_size: int, workers: int) -> float:
    prepare = build_prepare(Wants(), get_tokenizer("bpe"), ViewOptions(image_size))
    size = min(BATCH, len(source))
    options = LoaderOptions(size, workers=workers, bad_samples="skip", pad_last=True)
    batches = iter(Loader(source, prepare, options))
    next(batches)  # starting the processes is not what is measured
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        done += size
    return done / (time.perf_counter() - start)
