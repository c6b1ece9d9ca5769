"""What a training step of each objective costs beside one of ``clip``: one process, the same towers and pairs, in turns.

    python benchmarks/objectives/steps.py SHARED_DATA [--towers NAME ...]       (the project's own environment; no peer)

Real photos and captions, batches of 64, batches made before anything is timed: loading is not in it. For each objective a
step of ``clip`` and one of its own alternate; the ratio is that of the medians. Bars of the project: slip 3.1, superclip 1.1,
siglip 1.05, fastclip 1.1, filip 1.5. Writes benchmarks/results/objective_steps.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from arms import ARMS, STEP_TIMES

import diptych
import diptych.train.config as train_config
from diptych.models import create_model
from diptych.train.build import prepared

OBJECTIVES = ("siglip", "superclip", "fastclip", "filip", "slip", "distill", "declip", "defilip")
BARS = {"slip": 3.1, "superclip": 1.1, "siglip": 1.05, "fastclip": 1.1, "filip": 1.5}
ROUNDS, WARM, BATCHES = 12, 2, 4
COMMON = "--batch-size 64 --workers 0 --device cpu --max-steps 1000"


def teacher(tower: str, folder: Path) -> Path:
    """A file of new weights: a teacher costs the same whatever it knows."""
    target = folder / f"{tower}.safetensors"
    diptych.save(target, create_model(tower, device="cpu"))
    return target


@contextlib.contextmanager
def stepper(objective: str, tower: str, data: Path, folder: Path) -> Iterator[Callable[[], float]]:
    """A call that takes one step of an objective and gives its seconds."""
    pairs = str(data / "flickr8k" / "captions.jsonl")
    own = ARMS[objective].split()
    if objective == "distill":
        own += ["--distill-model", str(teacher(tower, folder))]
    flags = ["--train-data", pairs, "--train-split", "train", "--model", tower, *COMMON.split(), *own]
    config = train_config.read([*flags, "--output", str(folder / f"{objective}-{tower}")], program="steps")
    with prepared(config) as job:
        steps = job.batches()
        batches = [next(steps)[0] for _ in range(BATCHES)]
        taken = 0

        def step() -> float:
            nonlocal taken
            job.set_learning_rate(taken)
            start = time.perf_counter()
            job.step(batches[taken % BATCHES])
            taken += 1
            return time.perf_counter() - start

        yield step


def compared(objective: str, tower: str, data: Path) -> dict[str, Any]:
    """One row: median seconds of a step of ``clip`` and of the objective, and their ratio."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        both = [stack.enter_context(stepper(item, tower, data, Path(name))) for item in ("clip", objective)]
        rounds = [[step() for step in both] for _ in range(WARM + ROUNDS)][WARM:]
    base, own = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(two / one for one, two in rounds)
    return {
        "tower": tower, "objective": objective, "clip_seconds": round(base, 4), "seconds": round(own, 4),
        "ratio": round(own / base, 3), "ratios": [round(ratio, 3) for ratio in ratios], "bar": BARS.get(objective),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--towers", nargs="*", default=["ViT-Mini-8-64", "emoji-64", "ViT-B-32"])
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES))
    options = parser.parse_args()
    saved = json.loads(STEP_TIMES.read_text())["rows"] if STEP_TIMES.is_file() else []
    rows = {(row["tower"], row["objective"]): row for row in saved}
    for tower in options.towers:
        for objective in options.objectives:
            row = compared(objective, tower, options.data)
            rows[tower, objective] = {**row, "load": os.getloadavg()[0]}
            print(f"{tower:14} {objective:10} {row['ratio']:.2f}  (bar {row['bar']})", flush=True)
            STEP_TIMES.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
