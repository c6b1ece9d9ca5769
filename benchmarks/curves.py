"""How cost grows with the work: measured curves, not single points, for docs/costs.md.

    python benchmarks/curves.py      (the project's own environment; no peer)

Step time and memory against batch size, caption length and image size; the loss against the number of pairs in tiles; the loader
against its processes; evaluation against the size of the set. Each point in a process of its own where memory is measured, median
of three after a warm-up. Writes benchmarks/results/curves.json and docs/costs.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT, PICTURE = ROOT / "benchmarks" / "results" / "curves.json", ROOT / "docs" / "costs.png"
BATCHES, WORDS, SIDES = (4, 8, 16, 32, 64), (2, 8, 16, 32, 48, 75), (128, 160, 192, 224, 256, 320)
PAIRS, WORKERS, SETS = (512, 1024, 2048, 4096, 8192), (0, 1, 2, 3), (1000, 2000, 5000, 10_000, 20_000)


def median(call: Callable[[], Any], rounds: int = 3) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


def peak() -> float:
    """Megabytes that this process has held at most."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def step_point(batch: int, words: int, side: int) -> dict[str, float]:
    """A training step of ViT-B-32 in bf16: seconds and megabytes at most, weights and optimiser included."""
    from dataclasses import replace

    import torch

    from diptych.conformance.training import training_step
    from diptych.devices import get_device
    from diptych.models import create_model, model_config
    from diptych.types import Batch

    device = get_device("cpu")
    device.prepare_process()
    config = model_config("ViT-B-32")
    config = replace(config, vision=replace(config.vision, image_size=side))
    step = training_step(create_model(config), device, "bf16", learning_rate=1e-6)
    tokens = torch.randint(1, 40_000, (1, batch, words + 2))
    tokens[:, :, 0], tokens[:, :, -1] = 49_406, 49_407
    lengths = torch.full((1, batch), words + 2)
    images = torch.randint(0, 256, (1, batch, 3, side, side), dtype=torch.uint8)
    given = Batch(images, tokens, lengths, tuple(map(str, range(batch))), *[torch.arange(batch)] * 3)
    return {"seconds": median(lambda: step([given])), "megabytes": peak()}


def loss_point(pairs: int, tiled: bool) -> dict[str, float]:
    """The contrastive loss of some pairs, forward and backward, in tiles or with the whole matrix."""
    import torch
    import torch.nn.functional as F

    from diptych.objectives import clip

    clip.MATRIX_LIMIT = 0 if tiled else 1 << 40
    images, texts = (F.normalize(torch.randn(pairs, 512), dim=-1).requires_grad_() for _ in range(2))
    scale, before = torch.tensor([50.0], requires_grad=True), peak()
    pair = clip.Features(images, texts)

    def both_ways() -> None:
        loss, _ = clip.contrastive(pair, pair, scale)
        loss.backward()

    return {"seconds": median(both_ways), "megabytes": peak() - before}


def loader_point(workers: int) -> dict[str, float]:
    """Emoji prepared for training per second."""
    import diptych
    from diptych.data import Loader, LoaderOptions, build_prepare, open_source
    from diptych.image import ViewOptions
    from diptych.text import get_tokenizer
    from diptych.types import Wants

    source = open_source(str(Path(diptych.__file__).parent / "assets" / "emoji" / "train-*.tar.gz"))
    loader = Loader(
        source, build_prepare(Wants(), get_tokenizer("bpe"), ViewOptions(224)), LoaderOptions(64, workers=workers)
    )
    start, done = 0.0, -5
    for _ in loader:
        done += 1
        if done == 0:
            start = time.perf_counter()
        if done == 60:
            break
    return {"pairs_per_second": 64 * done / (time.perf_counter() - start)}


def scoring_point(images: int) -> dict[str, float]:
    """Retrieval scores of ready features, five captions per image, and megabytes beside the features."""
    import torch

    from diptych.evaluate import retrieval_scores

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, 512, generator=generator)
    owner = torch.arange(images).repeat_interleave(5)
    texts, before = features[owner] + 3 * torch.randn(5 * images, 512, generator=generator), peak()
    start = time.perf_counter()
    retrieval_scores(features, texts, owner)
    return {"seconds": time.perf_counter() - start, "megabytes": peak() - before}


def alone(name: str, *given: Any) -> dict[str, float]:
    """One point in a process of its own."""
    setup = f"import json, sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})"
    program = f"{setup}; import curves; print(json.dumps(curves.{name}{given!r}))"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    point = json.loads(out.splitlines()[-1])
    print(name, given, {key: round(value, 3) for key, value in point.items()}, flush=True)
    return point


def measured() -> dict[str, list[dict[str, float]]]:
    return {
        "batch": [{"x": size} | alone("step_point", size, 12, 224) for size in BATCHES],
        "words": [{"x": words} | alone("step_point", 16, words, 224) for words in WORDS],
        "side": [{"x": side} | alone("step_point", 16, 12, side) for side in SIDES],
        "tiled": [{"x": pairs} | alone("loss_point", pairs, True) for pairs in PAIRS],
        "whole": [{"x": pairs} | alone("loss_point", pairs, False) for pairs in PAIRS],
        "workers": [{"x": workers} | alone("loader_point", workers) for workers in WORKERS],
        "scoring": [{"x": images} | alone("scoring_point", images) for images in SETS],
    }


PANELS = (
    ("Training step against batch size", "pairs in the batch", "batch", "seconds", "s"),
    ("Memory against batch size", "pairs in the batch", "batch", "megabytes", "MB"),
    ("Training step against caption length", "words in every caption", "words", "seconds", "s"),
    ("Training step against image size", "pixels on a side", "side", "seconds", "s"),
    ("Loss, forward and backward", "pairs", ("tiled", "whole"), "seconds", "s"),
    ("Loss, extra memory", "pairs", ("tiled", "whole"), "megabytes", "MB"),
    ("Loader", "loader processes on two cores", "workers", "pairs_per_second", "pairs/s"),
    ("Retrieval scores of ready features", "images, five captions each", "scoring", "seconds", "s"),
)


def drawn(curves: dict[str, list[dict[str, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 14), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, under, names, key, unit) in enumerate(PANELS):
        axes = figure.add_subplot(4, 2, position + 1)
        for name in (names,) if isinstance(names, str) else names:
            points = curves[name]
            axes.plot([point["x"] for point in points], [point[key] for point in points], marker="o", label=name)
        axes.set(title=title, xlabel=under, ylabel=unit, ylim=(0, None), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if not isinstance(names, str):
            axes.legend(frameon=False)
    figure.savefig(PICTURE)


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as cache:
        os.environ["DIPTYCH_CACHE"] = cache
        start = time.perf_counter()
        curves = measured()
    result = {
        "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "torch": torch.__version__,
        "load_average": os.getloadavg(), "seconds": time.perf_counter() - start, "curves": curves,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    drawn(curves)
    print(f"{RESULT.name} and {PICTURE.name}: {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
