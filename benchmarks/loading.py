"""From a file to a ready model: seconds against open_clip's create_model + load, and peak memory against the file's size.

    python benchmarks/loading.py [FOLDER FOR TEMPORARY FILES]      (environment: benchmarks/peers.txt)

ViT-B-32 in fp32 safetensors, both libraries in one process, alternating, best of seven, each after a garbage collection: once to
a ready model, once until all of its parameters have been read. Then, in a process of its own, a bf16 ViT-H-14 of random weights
(2.0 GB): the growth of the process's memory at its peak, all parameters read. Writes benchmarks/results/loading.json.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _peers import machine, open_clip

from diptych import weights
from diptych.models import create_model
from diptych.weights._convert import convert

ROUNDS = 7
RESULT = Path(__file__).resolve().parent / "results" / "loading.json"
PEAK = """
import sys, torch
import diptych
from diptych import weights
diptych.load, torch.zeros(1)
weights.load(sys.argv[2])  # a small model: imports are not what is measured
def peak():
    status = open("/proc/self/status").read()  # not ru_maxrss, which remembers the parent's
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before = peak()
model = weights.load(sys.argv[1], precision="file")
total = sum(float(item.detach().sum()) for item in model.parameters())
print(peak() - before)
"""


def timed(call, read: bool) -> float:
    gc.collect()  # memory that the other library left is not for this call to free
    start = time.perf_counter()
    model = call()
    if read:  # mapped pages cost when they are read: read them all
        sum(float(item.detach().sum()) for item in model.parameters())
    return time.perf_counter() - start


def speed(folder: Path) -> dict[str, object]:
    weights.save(folder / "ours.safetensors", create_model("ViT-B-32"))
    convert(folder / "ours.safetensors", "openclip", folder / "clip")
    file, peer = folder / "clip" / "open_clip_model.safetensors", open_clip()
    rounds = []
    for _ in range(ROUNDS):
        row = {}
        for read, word in ((False, ""), (True, "_and_read")):
            row["ours" + word] = timed(lambda: weights.load(folder / "clip"), read)
            row["open_clip" + word] = timed(lambda: peer.create_model("ViT-B-32", pretrained=str(file)), read)
        rounds.append(row)
    best = {key: min(row[key] for row in rounds) for key in rounds[0]}
    return {
        "rounds": rounds, "best_seconds": best, "ratio": best["open_clip"] / best["ours"],
        "ratio_with_all_parameters_read": best["open_clip_and_read"] / best["ours_and_read"],
    }  # fmt: skip


def memory(folder: Path) -> dict[str, object]:
    model = create_model("ViT-H-14", dtype=torch.bfloat16)
    weights.save(folder / "h.safetensors", model)
    weights.save(folder / "tiny.safetensors", create_model("tiny-test"))
    del model
    size = (folder / "h.safetensors").stat().st_size
    command = [sys.executable, "-c", PEAK, str(folder / "h.safetensors"), str(folder / "tiny.safetensors")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"model": "ViT-H-14 bf16", "file_bytes": size, "peak_bytes": peak, "ratio": peak / size}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        result = {"benchmark": "loading", "speed": speed(Path(name)), "memory": memory(Path(name))}
    result["machine"] = machine("torch", "open_clip_torch", "safetensors")
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
