"""Which objective learns most from the same pairs? Trains the cells of the table one after another, and scores each.

    python benchmarks/objectives/run.py SHARED_DATA FOLDER [--cells N] [--only ARM ...]  (own environment; no peer)

SHARED_DATA holds flickr8k/ (captions.jsonl, images) and cifar10/test.zip. A cell that stands in
benchmarks/results/objectives.json is skipped, and each is appended there when it is scored, so that the table is filled over
several sittings; FOLDER keeps runs (the teacher of ``distill`` is trained again where it is missing). Quality only: nothing
here is timed (``steps.py`` does), so that a busy machine changes no number. ``table.py`` makes the page's table and plot.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from arms import ARMS, RESULTS, TOWERS, Cell, cells

RESULT = RESULTS / "objectives.json"


def train(cell: Cell, data: Path, folder: Path) -> Path:
    """The weights of a cell, which is trained if they are not there."""
    run = folder / cell.name
    if not (run / "model.safetensors").is_file():
        pairs = str(data / "flickr8k" / "captions.jsonl")
        command = [sys.executable, "-m", "diptych", "train", "--train-data", pairs, "--train-split", "train"]
        subprocess.run([*command, *cell.flags(folder), "--resume", "auto", "--output", str(run)], check=True)
    return run / "model.safetensors"


def cifar(data: Path, folder: Path) -> tuple[Path, Path]:
    """Class folders to fit and to test a probe on: of each class of CIFAR-10's test set the even and the odd pictures."""
    target = folder / "cifar10"
    if not target.is_dir():
        beside = folder / "cifar10.part"
        with zipfile.ZipFile(data / "cifar10" / "test.zip") as archive:
            for name in archive.namelist():
                if name.endswith(".jpg"):
                    _, label, picture = name.split("/")
                    path = beside / ("fit" if int(picture[:4]) % 2 == 0 else "test") / label / picture
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
        beside.rename(target)
    return target / "fit", target / "test"


def known() -> list[dict[str, Any]]:
    """The cells that are scored already."""
    return json.loads(RESULT.read_text()) if RESULT.is_file() else []


def append(row: dict[str, Any]) -> None:
    """Add a scored cell to the committed file, one line each, written beside and renamed; several may run at once."""
    with (RESULTS / ".objectives.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [json.dumps(item, separators=(",", ":")) for item in [*known(), row]]
        beside = RESULT.with_suffix(".part")
        beside.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
        os.replace(beside, RESULT)


def main() -> None:
    """Run what is missing, in the table's order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=10_000, help="so many at most")
    parser.add_argument("--only", nargs="*", choices=[*ARMS, "teacher"], default=[*ARMS, "teacher"])
    parser.add_argument("--tower", nargs="*", choices=list(TOWERS), default=list(TOWERS))
    options = parser.parse_args()
    from score import scores  # torch starts here, not for --help

    options.folder.mkdir(parents=True, exist_ok=True)
    done, left = {(row["tower"], row["arm"], row["seed"]) for row in known()}, options.cells
    for cell in cells():
        if cell.arm not in options.only or cell.tower not in options.tower or not left:
            continue
        trained = (options.folder / cell.name / "model.safetensors").is_file()
        if (cell.tower, cell.arm, cell.seed) in done and (cell.arm != "teacher" or trained):
            continue
        weights = train(cell, options.data, options.folder)
        row = {"tower": cell.tower, "arm": cell.arm, "seed": cell.seed, "steps": cell.steps, "batch": cell.batch_size}
        if (cell.tower, cell.arm, cell.seed) not in done:
            append(
                {
                    **row,
                    **scores(
                        weights, options.data / "flickr8k" / "captions.jsonl", cifar(options.data, options.folder)
                    ),
                }
            )
        left -= 1


if __name__ == "__main__":
    main()
