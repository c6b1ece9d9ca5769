"""Step time, memory and communication over 1, 2 and 4 processes and every layout, for docs/scale.md; tests nothing.

    python benchmarks/scaling.py [--preset NAME] [--batch-size N] [--steps N] [--output FILE]      (the project's own environment)
    python benchmarks/scaling_page.py                                                               its drawing and its table

The batch of a process stays the same, so a step has more pairs with more processes (tensor groups share theirs). Each point is a
torchrun of its own on synthetic pairs: seconds are the median of the steps after two that warm up, of the slowest process;
megabytes are what a process has held at most (VmHWM), of the largest; bytes are what one process hands to collectives in one
step, counted at torch's dispatcher in a step that is not timed. Then the seconds of single collectives by bytes. One thread a
process. On a machine with fewer cores than processes, times say how the cores are shared and nothing about scaling: the file
holds the number of cores. Writes benchmarks/results/scaling.json; scaling_page.py makes docs of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "scaling.json"
PROCESSES = (1, 2, 4)
LAYOUTS: dict[str, dict[str, Any]] = {
    "replicas": {},
    "stage1": {"sharding": "stage1"},
    "stage2": {"sharding": "stage2"},
    "stage3": {"sharding": "stage3"},
    "tensor 2": {"tensor_parallel_degree": 2},
    "tensor 2, stage2": {"tensor_parallel_degree": 2, "sharding": "stage2"},
}
FEWEST = {"replicas": 1, "tensor 2": 2, "tensor 2, stage2": 4}  # processes that a layout needs; 2 where nothing is said
WARM_UP = 2
SIZES = tuple(1 << power for power in range(12, 27, 2))  # bytes that a process hands over
LIMIT = 1800.0  # seconds of one point


def measured(processes: int, *flags: str) -> dict[str, Any]:
    """What the first of some processes reports; each is this file again, as ``--worker``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        subprocess.run(
            [*command, __file__, "--worker", str(report), *flags], check=True, timeout=LIMIT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return json.loads(report.read_text())  # type: ignore[no-any-return]


def peak() -> float:
    """Megabytes that this process has held at most."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def median(call: Callable[[], Any], rounds: int, warm_up: int) -> float:
    """Seconds of a call that every process makes."""
    from diptych.distributed import process_group

    seconds = []
    for number in range(warm_up + rounds):
        process_group.barrier()
        start = time.perf_counter()
        call()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def counted(call: Callable[[], Any]) -> dict[str, dict[str, int]]:
    """Collectives of a call, by kind: how many, and the bytes that this process hands over."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    seen: dict[str, dict[str, int]] = {}
    # The tensor that a process brings; of a gather the other argument is the room for what it receives.
    brought = {"allgather_": 1, "_allgather_base_": 1, "_reduce_scatter_base_": 1}

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace in ("c10d", "_c10d_functional"):
                name = function.overloadpacket.__name__
                if name != "barrier" and not name.startswith("wait"):
                    tensors = [
                        item for item in tree_leaves(args[brought.get(name, 0)]) if isinstance(item, torch.Tensor)
                    ]
                    entry = seen.setdefault(name.strip("_"), {"count": 0, "bytes": 0})
                    entry["count"] += 1
                    entry["bytes"] += sum(item.numel() * item.element_size() for item in tensors)
            return function(*args, **(kwargs or {}))

    with Counter():
        call()
    return seen


def make_step(preset: str, size: int, layout: str) -> tuple[Callable[[], Any], int, int]:
    """A call that takes one step of CLIP on pairs of this process's own; pairs of a step, and bytes of weights of one copy."""
    import torch

    from diptych.devices import get_device
    from diptych.distributed import process_group
    from diptych.distributed.mesh import ParallelOptions
    from diptych.models import create_model, model_config
    from diptych.objectives import OBJECTIVES, create_objective
    from diptych.train.optimizer import OptimizerOptions
    from diptych.train.step import create_step
    from diptych.types import Batch

    device = get_device("cpu")
    device.prepare_process()
    world = process_group.start(device)
    torch.manual_seed(0)
    model = create_model(model_config(preset))
    weights = sum(item.numel() * item.element_size() for item in model.parameters())
    objective = create_objective(OBJECTIVES.get("clip").Config(), model)
    options = ParallelOptions(**LAYOUTS[layout])
    step = create_step(objective, OptimizerOptions(lr=1e-6), device, "fp32", world, parallel=options)
    side, text = model.config.vision.image_size, model.config.text
    torch.manual_seed(1 + step.layout.rank)
    tokens = torch.randint(1, text.vocab_size - 10, (1, size, min(24, text.context_length)))
    tokens[:, :, -1] = text.vocab_size - 1
    rows = torch.arange(size)
    batch = Batch(
        torch.randint(0, 256, (1, size, 3, side, side), dtype=torch.uint8), tokens,
        torch.full((1, size), tokens.shape[2]), tuple(map(str, range(size))), rows, rows, rows,
    )  # fmt: skip
    return (lambda: step([batch])), size * step.layout.size, weights


def work_on_step(preset: str, size: int, steps: int, layout: str) -> dict[str, Any]:
    """One point: seconds, pairs per second, megabytes and collectives of a step."""
    from diptych.distributed import process_group

    call, pairs, weights = make_step(preset, size, layout)
    before = peak()
    seconds = max(process_group.all_gather_object(median(call, steps, WARM_UP)))
    megabytes = max(process_group.all_gather_object(peak()))
    collectives = counted(call)
    return {
        "layout": layout, "processes": process_group.size(), "pairs": pairs, "seconds": seconds,
        "pairs_per_second": pairs / seconds, "megabytes": megabytes, "megabytes_before_the_first_step": before,
        "bytes_of_weights": weights, "collectives": collectives,
        "bytes": sum(item["bytes"] for item in collectives.values()),
    }  # fmt: skip


def collectives_of(own: Any, ranks: int) -> dict[str, Callable[[], Any]]:
    """Each collective of training as a call in which this process hands over a tensor."""
    import torch.distributed as dist

    gathered, scattered = [own.new_empty(len(own)) for _ in range(ranks)], own.new_empty(len(own) // ranks)
    # torch 2.13 has another name for it, and warns of the old one.
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return {
        "all_reduce": lambda: dist.all_reduce(own),
        "all_gather": lambda: dist.all_gather(gathered, own),
        "reduce_scatter": lambda: reduce_scatter(scattered, own),
    }


def work_on_collectives() -> dict[str, Any]:
    """Seconds of each collective by the bytes that a process hands over."""
    import torch

    from diptych.devices import get_device
    from diptych.distributed import process_group

    process_group.start(get_device("cpu"))
    ranks = process_group.size()
    points = []
    for size in SIZES:
        calls = collectives_of(torch.ones(size // 4), ranks)
        for name, call in calls.items():
            seconds = max(process_group.all_gather_object(median(call, 5, 1)))
            points.append({"collective": name, "processes": ranks, "bytes": size, "seconds": seconds})
    return {"points": points}


def read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ViT-Mini-8-64")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--layout", default="")
    return parser.parse_args()


def work(options: argparse.Namespace) -> None:
    """What one process of a point does: a layout's step, or single collectives where no layout is named."""
    from diptych.distributed import process_group

    asked = options.preset, options.batch_size, options.steps, options.layout
    report = work_on_step(*asked) if options.layout else work_on_collectives()
    if process_group.rank() == 0:
        options.worker.write_text(json.dumps(report))
    process_group.barrier()
    process_group.stop()


def main() -> None:
    """Measure every point that the processes allow."""
    options = read()
    if options.worker:
        work(options)
        return
    given = ("--preset", options.preset, "--batch-size", str(options.batch_size), "--steps", str(options.steps))
    points, collectives = [], []
    for processes in options.processes:
        for layout in LAYOUTS:
            if processes >= FEWEST.get(layout, 2):
                points.append(measured(processes, "--layout", layout, *given))
                print(
                    {key: points[-1][key] for key in ("layout", "processes", "seconds", "megabytes", "bytes")},
                    flush=True,
                )
        if processes > 1:
            collectives += measured(processes)["points"]
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "backend": "gloo"}
    asked = {"preset": options.preset, "batch_size": options.batch_size, "rounds": options.steps}
    options.output.write_text(
        json.dumps({**machine, **asked, "steps": points, "collectives": collectives}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
