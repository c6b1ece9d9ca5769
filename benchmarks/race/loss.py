"""C7: the contrastive loss of 8,192 pairs, forward and backward, and the memory it takes, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _clock import finish

PAIRS, WIDTH, ROUNDS = 8192, 512, 2

PROGRAM = """
import gc, json, sys, time, torch
sys.path.insert(0, {benchmarks!r})
import torch.nn.functional as F
who, pairs, width, rounds = sys.argv[1], *map(int, sys.argv[2:5])
generator = torch.Generator().manual_seed(0)
image = F.normalize(torch.randn(pairs, width, generator=generator), dim=-1).requires_grad_()
text = F.normalize(image.detach() + torch.randn(pairs, width, generator=generator) / 8, dim=-1).requires_grad_()
scale = torch.tensor([50.0], requires_grad=True)
if who == "open_clip":
    from _peers import open_clip
    peer = open_clip().ClipLoss()
    loss = lambda: peer(image, text, scale)
else:
    from diptych.devices import get_device
    from diptych.objectives.clip import Features, contrastive
    get_device("cpu").prepare_process()  # as diptych train does
    loss = lambda: contrastive(Features(image, text), Features(image, text), scale)[0]
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
small = image[:64]
(small @ small.T).sum().item()
before, seconds = peak(), []
for _ in range(rounds):
    image.grad = text.grad = scale.grad = None
    gc.collect()
    start = time.perf_counter()
    total = loss()
    total.backward()
    seconds.append(time.perf_counter() - start)
torch.save([total.detach(), image.grad, text.grad, scale.grad], sys.argv[5])
print(json.dumps([seconds, peak() - before]))
"""


def measured(who: str, path: Path) -> tuple[list[float], float]:
    program = PROGRAM.format(benchmarks=str(Path(__file__).resolve().parents[1]))
    argv = [sys.executable, "-c", program, who, *map(str, (PAIRS, WIDTH, ROUNDS)), str(path)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))  # type: ignore[return-value]


def main() -> None:
    import torch
    from _clock import folder, row

    paths = {who: folder() / f"loss-{who}.pt" for who in ("diptych", "open_clip")}
    seconds: dict[str, list[float]] = {who: [] for who in paths}
    memory: dict[str, float] = {}
    for _ in range(2):  # A/B/A/B, a process each
        for who, path in paths.items():
            times, memory[who] = measured(who, path)
            seconds[who] += times
    ours, theirs = (torch.load(path) for path in paths.values())
    far = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    what = f"contrastive loss, {PAIRS} pairs, forward and backward"
    exact = f"loss and gradients differ by at most {far:.1e} of the largest"
    speed: dict[str, Any] = row(
        "C7", what, seconds, pair=("diptych", "open_clip"), target=1.9, exact=exact, memory_mb=memory
    )
    lesser = memory["open_clip"] / max(memory["diptych"], 1.0)
    space = {**speed, "what": f"{what}: extra memory ({memory['diptych']:.0f} against {memory['open_clip']:.0f} MB)"}
    finish([speed, {**space, "ratio": lesser, "ratio_of_medians": lesser, "target": 3.0}])


if __name__ == "__main__":
    main()
