"""How much memory the largest batches take, each measured in processes of its own: losses of 65,536 pairs, a step of 4,096.

    python benchmarks/memory.py PAIRS [--model ViT-B-32] [--batch-size 4096] [--micro-batch 64] [--parts contrastive,sigmoid,step]

PAIRS are at least 4,096 images with captions, in any form that ``diptych train`` reads. A loss: forward and backward of CLIP's
and of SigLIP's with D = 512 in fp32; the process's peak in RAM (VmHWM) less what it had before the features were made, so that
inputs count. The step: the whole command ``diptych train``, its loader processes included; the largest sum of memory over its
processes (Pss: shared pages once), read twice a second. Writes benchmarks/results/memory.json, each part as it ends. It measures
memory; seconds are those of a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "memory.json"
COUNT, WIDTH = 65_536, 512

LOSS = """
import json, sys, time, torch
from diptych.devices import get_device
from diptych.objectives._sigmoid import sigmoid
from diptych.objectives._terms import Features, contrastive
torch.set_num_threads(int(sys.argv[4]))
get_device("cpu").prepare_process()
def memory(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) * 1024
small = torch.randn(64, 64)
(small @ small.T).sum().item()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = memory("VmRSS")
count, width = int(sys.argv[2]), int(sys.argv[3])
def features():
    values = torch.randn(count, width)
    return values.div_(values.norm(dim=1, keepdim=True)).requires_grad_()
image, text = features(), features()
scale, bias = torch.tensor([20.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
start = time.perf_counter()
if sys.argv[1] == "sigmoid":
    loss = sigmoid(image, text, scale, bias)[0]
else:
    loss = contrastive(Features(image, text), Features(image, text), scale)[0]
loss.backward()
print(json.dumps({"bytes": memory("VmHWM") - before, "seconds": round(time.perf_counter() - start, 1), "loss": loss.item()}))
"""


def measured_loss(name: str, count: int = COUNT, width: int = WIDTH, threads: int = 1) -> dict[str, Any]:
    """Peak bytes, inputs included, and seconds of one loss of ``count`` pairs, forward and backward."""
    argv = [sys.executable, "-c", LOSS, name, str(count), str(width), str(threads)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return {"pairs": count, "width": width, **json.loads(out.splitlines()[-1])}


def memory_of_tree(root: int) -> int:
    """Bytes in RAM of a process and all that it started, pages that several share counted once; of those that can be read."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree, grown = {root}, True
    while grown:
        children = {process for process, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | children, bool(children)
    total = 0
    for process in tree:
        with contextlib.suppress(OSError, IndexError, ValueError):
            total += int(Path(f"/proc/{process}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]) * 1024
    return total


def measured_step(args: argparse.Namespace) -> dict[str, Any]:
    """One step of the whole command: the largest memory of all its processes together, and seconds from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "model": args.model, "train-data": args.pairs, "batch-size": args.batch_size, "micro-batch": args.micro_batch,
            "max-steps": 1, "warmup": 0, "workers": 1, "device": "cpu", "precision": args.precision, "log-every-n-steps": 1,
            "output": f"{folder}/run",
        }  # fmt: skip
        argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        start, most = time.perf_counter(), 0
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "diptych", "train", *argv],
                stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            )  # fmt: skip
            while process.poll() is None:
                most = max(most, memory_of_tree(process.pid))
                time.sleep(0.5)
            if process.returncode:
                log.seek(0)
                sys.exit(f"diptych train failed: {log.read()[-2000:]}")
        row = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[0])
    command = {"model": args.model, "batch_size": args.batch_size, "micro_batch": args.micro_batch}
    seconds = round(time.perf_counter() - start)
    return {**command, "precision": args.precision, "bytes": most, "seconds": seconds, "loss": row["loss"]}


def main() -> None:
    """Measure the parts that are asked for, and write each into the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pairs")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", default="contrastive,sigmoid,step")
    args = parser.parse_args()
    for part in args.parts.split(","):
        row = measured_step(args) if part == "step" else measured_loss(part, threads=args.threads)
        result = (
            json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        )  # of another run meanwhile, too
        RESULT.write_text(json.dumps({**result, part: row}, indent=1) + "\n", encoding="utf-8")
        print(part, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
