"""In which regime does ``fastclip`` pay? Drawings whose names repeat, equal steps, small batches: rates, repeats, loss.

    python benchmarks/objectives/fastclip.py FOLDER [--seeds 0 1] [--steps N]       (the project's own environment; no peer)

The demo's drawings and recipe (12,000 drawings, several of each name), batches of 64. Arms differ in the loss, in whether pairs
of one caption are negatives of each other, and in the temperature's learning rate. Scores are recalls on the unseen drawing
style. A run that is scored in the result is not repeated; one that was interrupted goes on. Writes
benchmarks/results/fastclip.json. No timing. ``run.py`` has the arms on photos with distinct captions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diptych

RESULT = Path(__file__).resolve().parents[1] / "results" / "fastclip.json"
EMOJI = Path(diptych.__file__).parent / "assets" / "emoji"
COMMON = (
    "--recipe emoji --device cpu --batch-size 64 --save-every-steps 200 --save-frequency 0 --val-every-steps 0 --val-frequency 0 "
    "--log-every-n-steps 40"
)
ARMS = {
    "clip": "",
    "clip, repeats ignored": "--repeated-captions ignored",
    "siglip": "--objective siglip",
    "siglip, repeats ignored": "--objective siglip --repeated-captions ignored",
    "fastclip, one rate": "--objective fastclip",
    "fastclip, own rate": "--objective fastclip --scale-lr 2e-4",
    "fastclip, own rate, repeats ignored": "--objective fastclip --scale-lr 2e-4 --repeated-captions ignored",
    "fastclip, fixed temperature, repeats ignored": "--objective fastclip --temperature fixed --repeated-captions ignored",
}


def scores(folder: Path, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train a run to its end, and score it."""
    output = folder / f"{arm.replace(', ', '-').replace(' ', '_')}-{seed}-{steps}"
    data = ["--train-data", str(EMOJI / "train-*.tar.gz")]
    own = [
        *ARMS[arm].split(),
        "--seed",
        str(seed),
        "--max-steps",
        str(steps),
        "--resume",
        "auto",
        "--output",
        str(output),
    ]
    if not (output / "model.safetensors").is_file():
        subprocess.run([sys.executable, "-m", "diptych", "train", *data, *COMMON.split(), *own], check=True)
    # Names alone, as the demo scores them: the other captions of a drawing are its keywords.
    command = [
        sys.executable,
        "-m",
        "diptych",
        "evaluate",
        "--pretrained",
        str(output),
        "--captions-per-image",
        "1",
        "--json",
    ]
    measured = subprocess.run(
        [*command, "--val-data", str(EMOJI / "unseen_style-*.tar.gz")], check=True, stdout=subprocess.PIPE, text=True
    )
    [entry] = json.loads(measured.stdout)
    recalls = {name: round(value, 5) for name, value in entry["metrics"].items() if "_R@" in name or name == "r_mean"}
    return {"arm": arm, "seed": seed, "steps": steps, **recalls}


def main() -> None:
    """All arms with one seed, then the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1240)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    for seed in options.seeds:
        for arm in options.arms:
            rows = json.loads(RESULT.read_text()) if RESULT.is_file() else []
            if any((row["arm"], row["seed"], row["steps"]) == (arm, seed, options.steps) for row in rows):
                continue
            row = scores(options.folder, arm, seed, options.steps)
            print(f"{arm:48} seed {seed}  mean recall {100 * row['r_mean']:.2f} %", flush=True)
            rows = json.loads(RESULT.read_text()) if RESULT.is_file() else []
            beside = RESULT.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
            beside.replace(RESULT)


if __name__ == "__main__":
    main()
