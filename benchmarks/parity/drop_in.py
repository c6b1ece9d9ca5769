"""The package diptych.open_clip against the real open_clip, on its random weights: features, state dicts, speed of equal calls.

    .venv-peers/bin/python benchmarks/parity/drop_in.py        (environment: benchmarks/peers.txt)

Each model is made by open_clip and saved; ours opens the file. Both encode the same images and texts, taking turns; times are the
fastest of several rounds, in one process whose threads both share. Writes benchmarks/results/drop_in.json; `towers.py` shows it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _peers import machine, open_clip
from towers import shaken

from diptych import open_clip as drop_in

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "drop_in.json"
MODELS = ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "RN50", "ViT-L-14-CLIPA"]
ROUNDS = 5
CAPTIONS = [
    "a dog",
    "two children run through tall grass",
    "a photo of the number 7",
    "a very small cat on a red sofa",
] * 8


def inputs(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Normalized images, and ids: of captions, or random ones for a vocabulary that is not at hand."""
    chance = torch.Generator().manual_seed(1)
    side = model.visual.image_size
    side = side[0] if isinstance(side, tuple) else side
    ids = drop_in.tokenize(CAPTIONS)
    if "CLIPA" in name:
        ids = torch.randint(2, 30_000, (len(CAPTIONS), model.context_length), generator=chance)
    return {"image": torch.randn(8, 3, side, side, generator=chance), "text": ids}


@torch.no_grad()
def compared(name: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    theirs: Any = open_clip().create_model(name)
    shaken(theirs)
    path = folder / "open_clip_pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    ours: Any = drop_in.create_model(name, pretrained=str(path))
    theirs.load_state_dict(ours.state_dict())
    again, saved = theirs.state_dict(), torch.load(path, weights_only=True)
    row: dict[str, Any] = {
        "model": name,
        "state dicts, both ways": max(_difference(saved[key], again[key]) for key in saved),
    }
    theirs.eval(), ours.eval()
    for tower, given in inputs(theirs, name).items():
        calls = [getattr(model, f"encode_{tower}") for model in (theirs, ours)]
        expected, actual = (call(given, normalize=True) for call in calls)
        times = [min(_seconds(call, given) for _ in range(ROUNDS)) for call in calls]
        row |= {f"{tower} max |difference|": _difference(expected, actual), f"{tower} speed": times[0] / times[1]}
    return row


def _difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected.double() - actual.double()).abs().max())


def _seconds(call: Any, given: torch.Tensor) -> float:
    start = time.perf_counter()
    call(given)
    return time.perf_counter() - start


def main() -> None:
    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compared(name, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    result = {"rows": rows, "machine": machine("torch", "open_clip_torch", "timm", "safetensors")}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
