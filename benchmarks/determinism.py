"""Whether equal training runs are equal bit for bit: the whole command, twice, and stopped and resumed.

    python benchmarks/determinism.py [--cases ViT-B-32,fp32,1 ...] [--steps 3] [--load 2]

Each case (model, precision, micro-batches) trains on generated images and captions through ``diptych train``, in processes of
their own: a run, the same run again, and a run that is stopped after its first step and resumed. All tensors of the last
checkpoint and of ``model.safetensors`` are compared bit for bit. ``--load`` keeps the cores busy beside. Prints a table, writes
benchmarks/results/determinism.json; exit code 1 when a tensor differs. It measures no speed; ``determinism_steps.py`` finds
the operator behind a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

RESULT = Path(__file__).resolve().parent / "results" / "determinism.json"
CASES = ["ViT-B-32,fp32,1", "ViT-B-32,bf16,1", "ViT-B-32,fp32,2", "RN50,fp32,1", "ViT-B-16-SigLIP,fp32,1"]
BUSY = "import torch\ntorch.set_num_threads(2)\nx = torch.randn(700, 700)\nwhile True: x @ x"
CAPTION_WORDS = "a red green small dog cat on the grass under bright evening sky with two children running beside water"
VOCABULARY = CAPTION_WORDS.split()


def make_pairs(folder: Path, count: int) -> Path:
    """``count`` noise images with a caption of 4 to 20 words each, as JSON lines."""
    source, draw = np.random.default_rng(0), random.Random(0)
    lines = []
    for number in range(count):
        name = f"{number}.png"
        Image.fromarray(source.integers(0, 256, (240, 280, 3), dtype=np.uint8)).save(folder / name)
        lines.append(
            json.dumps({"image": name, "captions": [" ".join(draw.choices(VOCABULARY, k=draw.randint(4, 20)))]})
        )
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(folder: Path, pairs: Path, case: str, steps: int, *more: str) -> None:
    """One sitting of ``diptych train`` in a process of its own."""
    model, precision, micro_batches = case.split(",")
    flags = {
        "model": model, "precision": precision, "accum-freq": micro_batches, "batch-size": str(8 // int(micro_batches)),
        "train-data": str(pairs), "max-steps": str(steps), "warmup": "0", "lr": "1e-4", "workers": "2", "device": "cpu",
        "aug-flip": "0.5", "aug-color-jitter": "0.2", "log-every-n-steps": "1", "output": str(folder),
    }  # fmt: skip
    argv = [part for name, value in flags.items() for part in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "diptych", "train", *argv, *more], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"diptych train failed: {done.stderr[-2000:]}")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor that a run leaves: the weights it exports, and weights, moments and random states of its last checkpoint."""
    tensors = {f"model: {name}": value for name, value in load_file(folder / "model.safetensors").items()}
    last = max((folder / "checkpoints").glob("step_*.pt"))
    return tensors | dict(_flattened(torch.load(last, map_location="cpu", weights_only=True), last.name))


def _flattened(state: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _flattened(value, f"{name}/{key}")
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from _flattened(value, f"{name}/{number}")


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names that are missing on one side, or whose bits differ."""
    names = sorted(first.keys() | second.keys())
    return [
        name for name in names if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]


def compared(case: str, steps: int, folder: Path) -> dict[str, object]:
    """A row of the table: how many tensors there are, and which of them differ between the runs."""
    folder.mkdir()
    pairs = make_pairs(folder, 8 * steps)
    for name in ("first", "second"):
        train(folder / name, pairs, case, steps)
    train(folder / "resumed", pairs, case, steps, "--stop-after", "1")
    train(folder / "resumed", pairs, case, steps, "--resume", "latest")
    first = tensors_of(folder / "first")
    again, resumed = (differing(first, tensors_of(folder / name)) for name in ("second", "resumed"))
    return {"case": case, "steps": steps, "tensors": len(first), "again": again, "resumed": resumed}


def main(argv: Sequence[str]) -> int:
    """Run the cases, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--load", type=int, default=2, help="busy processes beside")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.load)]
    rows: list[dict[str, object]] = []
    print(f"{'case':<26} {'tensors':>8} {'differ in an equal run':>23} {'differ after stop and resume':>29}")
    try:
        for case in options.cases:
            with tempfile.TemporaryDirectory() as name:
                row = compared(case, options.steps, Path(name) / "runs")
            rows.append(row)
            counts = [len(row[key]) for key in ("again", "resumed")]  # type: ignore[arg-type]
            print(f"{case:<26} {row['tensors']:>8} {counts[0]:>23} {counts[1]:>29}", flush=True)
    finally:
        for process in busy:
            process.kill()
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    options.out.write_text(
        json.dumps({**machine, "load": options.load, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    return int(any(row["again"] or row["resumed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
