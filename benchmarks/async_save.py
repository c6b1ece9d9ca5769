"""How long a step waits for a checkpoint: written at once, and with --async-save; one process, and two over gloo.

    python benchmarks/async_save.py [--folder DIR] [--rounds 7]

The state is that of ViT-Mini-8-64 with AdamW's moments, 169 MB. A round saves at once, then while training goes on, so that
what else the machine does meets both; each process's time counts from a common start, and the slowest one's is taken. Timed is
what ``Job.save`` does: collecting the state, looking for what is not finite, the checkpoint writer. Not a measure of the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _peers import machine

RESULTS = Path(__file__).parent / "results" / "async_save.json"
MODEL = "ViT-Mini-8-64"
CASES = {
    1: {"one process, file": ({}, "file"), "one process, folder": ({}, "folder")},
    2: {
        "replicas on two processes, file": ({}, "file"),
        "stage2 on two processes, folder": ({"sharding": "stage2"}, "folder"),
        "stage3 on two processes, folder": ({"sharding": "stage3"}, "folder"),
        "tensor parallel on two processes, folder": ({"tensor_parallel_degree": 2}, "folder"),
    },
}


def step_of(parallel: dict[str, Any]) -> Any:
    """A step whose optimizer has its moments."""
    import torch

    from diptych.devices import get_device
    from diptych.distributed.mesh import ParallelOptions
    from diptych.distributed.process_group import world_from_environment
    from diptych.models import create_model, model_config
    from diptych.objectives import OBJECTIVES, create_objective
    from diptych.train.optimizer import OptimizerOptions
    from diptych.train.step import create_step
    from diptych.types import Batch

    torch.manual_seed(0)
    config, options = model_config(MODEL), OBJECTIVES.get("clip").Config()
    objective = create_objective(options, create_model(config), None)
    world = world_from_environment()
    step = create_step(
        objective, OptimizerOptions(), get_device("cpu"), "fp32", world, parallel=ParallelOptions(**parallel)
    )
    size, rows = config.vision.image_size, torch.arange(4)
    images = torch.randint(0, 256, (1, 4, 3, size, size), dtype=torch.uint8)
    tokens = torch.randint(1, 400, (1, 4, 8))
    tokens[..., -1] = config.text.vocab_size - 1
    step([Batch(images, tokens, torch.full((1, 4), 8), tuple("abcd"), rows, rows, rows)])
    return step


def save(step: Any, writer: Any, number: int) -> float:
    """Seconds until the step goes on, the slowest process's."""
    from diptych.distributed import process_group
    from diptych.train.nonfinite import names_not_finite

    process_group.barrier()
    begin = time.perf_counter()
    layout = step.layout
    weights = layout.full_state() if writer.whole else layout.own_state()
    assert not names_not_finite(layout.local(weights))
    writer.save(number, {"step": number, "weights": weights, "step_state": step.state(writer.whole)})
    return max(process_group.all_gather_object(time.perf_counter() - begin))


def measured(parallel: dict[str, Any], kind: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each round: a save at once; the stall of an asynchronous one; and when that one was whole."""
    from diptych.distributed.saving import CheckpointWriter, SaveOptions

    step = step_of(parallel)
    writers = [
        CheckpointWriter(folder, step.layout.world, SaveOptions(kind, asynchronous, keep=1))
        for asynchronous in (False, True)
    ]
    at_once, stalls, whole = [], [], []
    for number in range(rounds + 1):  # the first allocates
        at_once.append(save(step, writers[0], 2 * number))
        begin = time.perf_counter()
        stalls.append(save(step, writers[1], 2 * number + 1))
        writers[1].settle()
        whole.append(time.perf_counter() - begin)
    (newest,) = folder.glob("step_*")
    size = sum(file.stat().st_size for file in ([newest] if newest.is_file() else newest.iterdir()))
    medians = statistics.median(at_once[1:]), statistics.median(stalls[1:])
    return {
        "bytes": size,
        "at_once_s": at_once[1:],
        "stall_s": stalls[1:],
        "whole_after_s": whole[1:],
        "first_stall_s": stalls[0],
        "median_at_once_s": medians[0],
        "median_stall_s": medians[1],
        "stall_share": medians[1] / medians[0],
    }


def work(processes: int, folder: Path, rounds: int) -> None:
    """One process of a measurement; the first prints the results."""
    import torch

    from diptych.devices import get_device
    from diptych.distributed import process_group

    torch.set_num_threads(1)
    world = process_group.start(get_device("cpu"))
    for name, (parallel, kind) in CASES[processes].items():
        own = folder / name.replace(" ", "_")
        row = measured(parallel, kind, own, rounds)
        process_group.barrier()
        if world.main:
            print(json.dumps({"case": name, **row}), flush=True)
            shutil.rmtree(own)
    process_group.stop()


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where checkpoints are written; a temporary folder without it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, help="internal: measure the cases of so many processes")
    given = parser.parse_args()
    if given.processes:
        work(given.processes, Path(given.folder), given.rounds)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for processes in CASES:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            own = ["--processes", str(processes), "--folder", folder, "--rounds", str(given.rounds)]
            command = [sys.executable, *(launcher if processes > 1 else []), __file__, *own]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            rows += [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        print(
            f"{row['case']:45s} {row['median_at_once_s']:.3f} s at once, stall {row['median_stall_s']:.3f} s", end=" "
        )
        print(f"({row['stall_share']:.0%}), {row['bytes'] / 1e6:.0f} MB")
    result = {"model": MODEL, "rounds": given.rounds, "machine": machine("torch", "safetensors"), "cases": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
