"""The race against the peers, C1 to C10 of the plan, in at most ten minutes on two cores: ``make bench``.

    python benchmarks/race/run.py DATA [C1 C7 ...]      (environment: benchmarks/peers.txt)

DATA is the folder with flickr8k/. Each race is a file of this folder, in a process of its own, and reports how far its two sides
agree.
Writes benchmarks/results/race.json (all rounds, versions, load) and the table of docs/race.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "race.json"
PAGE = HERE.parents[1] / "docs" / "race.md"
FILES = {
    "steps.py": ("C1", "C2", "C10"), "encode.py": ("C3", "C8"), "classifier.py": ("C4",), "loader.py": ("C5",),
    "tokens.py": ("C6",), "loss.py": ("C7",), "start.py": ("C9",),
}  # fmt: skip
PREPARE = """
import sys, torch
from pathlib import Path
from diptych import weights
from diptych.models import create_model
from diptych.weights._convert import convert
torch.manual_seed(0)
folder = Path(sys.argv[1])
weights.save(folder / "ours.safetensors", create_model("ViT-B-32"))
for layout, name in (("openclip", "clip"), ("hf", "hf")):
    convert(folder / "ours.safetensors", layout, folder / name)
"""
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"


def raced(file: str, folder: Path, data: Path, names: set[str]) -> list[dict[str, Any]]:
    out = folder / f"{file}.json"
    settings = {
        **os.environ, "RACE_FOLDER": str(folder), "RACE_DATA": str(data), "RACE_OUT": str(out), "RACE_NAMES": " ".join(names),
    }  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / file)], check=False, env=settings, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{file} failed:\n{done.stderr[-4000:]}")
    rows = json.loads(out.read_text(encoding="utf-8"))
    for row in rows:
        met = "" if row["ratio"] >= row["target"] else "   MISSED"
        print(
            f"{row['race']:<4}{row['ratio']:>6.2f}x (asked {row['target']}x)  {row['what']}, against {row['peer']}{met}"
        )
    print(f"    {file}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["machine"]["versions"].items())
    load = result["machine"]["load_average"][0]
    lines = [
        f"Measured {result['date']} on {result['machine']['cores']} cores, {result['machine']['torch_threads']} threads, "
        f"load {load:.1f} at the end; {versions}.",
        "",
        "| | what | against | ratio | medians | asked | ours | exactness |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        mark = "" if row["ratio"] >= row["target"] else " (missed)"
        lines.append(
            f"| {row['race']} | {row['what']} ({row['ours']}) | {row['peer']} | **{row['ratio']:.2f}x**{mark} "
            f"| {row['ratio_of_medians']:.2f}x | {row['target']:g}x | {row['ours_seconds']:.3g} s | {row['exact']} |"
        )
    return "\n".join(lines)


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    from _peers import machine

    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "flickr8k").is_dir():
        sys.exit("usage: run.py DATA [C1 C7 ...]; DATA is a folder with flickr8k/captions.jsonl and its images")
    data, wanted = Path(sys.argv[1]).resolve(), set(sys.argv[2:])
    files = [file for file, races in FILES.items() if not wanted or wanted & set(races)]
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-c", PREPARE, name], check=True)
        for file in files:
            rows += raced(file, Path(name), data, wanted)
    rows.sort(key=lambda row: int(row["race"][1:]))
    packages = ("torch", "open_clip_torch", "transformers", "sentence-transformers", "Pillow", "webdataset")
    result = {
        "date": time.strftime("%Y-%m-%d"), "seconds": time.perf_counter() - start,
        "rows": rows, "machine": machine(*packages),
    }  # fmt: skip
    print(f"{len(rows)} rows in {result['seconds']:.0f} s, {sum(row['ratio'] < row['target'] for row in rows)} missed")
    if not wanted:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
