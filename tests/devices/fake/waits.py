"""What makes the host wait for the device in training and in evaluation: counted on the fake accelerator, printed as JSON.

waits.py run FOLDER PAIRS FLAGS...   a run of ``diptych train``, also under torchrun: rank 0 prints
waits.py steps NAME...               steps of configurations that objectives offer to tests
waits.py evaluate FOLDER PAIRS       the validation of a run: its losses, and retrieval
"""

import json
import os
import sys
from collections import Counter

import fakeacc
import torch
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective

from diptych.devices import get_device
from diptych.distributed.layout import Layout
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.train.config import read
from diptych.train.job import Job
from diptych.train.loop import train
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step

NAME = "fakeacc"
AT_ROWS = ("record", "read_steps", "save", "validate")
"""Methods of Job in which the host may wait: a row of the metric log, a checkpoint, a measurement."""

OPTIMIZER = os.environ.get("OPTIMIZER", "adamw")
SHORT = "--model tiny-test --batch-size 4 --workers 0 --precision fp32 --save-frequency 0 --max-steps 2"
ENCODING = ("encode_image", "encode_text", "validation_terms")
PER_BATCH = ("_images", "_texts", "losses")
"""Methods of Encoder and of Validator that go through batches."""


def at_rows(wait: fakeacc.Wait) -> bool:
    """Whether the wait belongs to a row of the metric log, or to another thing that the loop does now and then."""
    return any("train/job.py" in line and line.rpartition(" ")[2] in AT_ROWS for line in wait.lines)


def own_line(wait: fakeacc.Wait) -> str:
    """The innermost line of the package that asked, with what it asked for."""
    inside = [line for line in wait.lines if "src/diptych" in line or "fake/waits" in line]
    return f"{wait.kind} {wait.what} {(inside or wait.lines)[-1].rpartition('diptych/')[2]}"


class Watched:
    """Counts waits by step: between two calls of ``begin``."""

    def __init__(self, waits: list[fakeacc.Wait]) -> None:
        self.waits, self.starts = waits, []

    def begin(self) -> None:
        """A step begins."""
        self.starts.append(len(self.waits))

    def report(self, first: int) -> dict:
        """Of the steps from ``first`` on, counted from 0: how many waits were in steps, and at rows."""
        waits = self.waits[self.starts[first] :]
        steady = [item for item in waits if not at_rows(item)]
        return {
            "steps": len(self.starts) - first,
            "between": len(steady),
            "rows": sum(at_rows(item) for item in waits),
            "lines": Counter(map(own_line, steady)).most_common(8),
            "streams": fakeacc.plugin.streams(),
        }


def run(folder: str, pairs: str, flags: list[str]) -> dict:
    """A run whose loop is watched from its first step on; the first 10 steps, which make what stays, do not count."""
    argv = ["--train-data", pairs, "--output", folder, "--device", NAME, *flags]
    with fakeacc.watched() as waits:
        watched = Watched(waits)
        rate = Job.set_learning_rate

        def set_learning_rate(self, step):
            watched.begin()
            rate(self, step)

        Job.set_learning_rate = set_learning_rate
        train(read(argv, program="diptych train"))
        # The last step ends the run, which writes weights.
        waits[:] = waits[: watched.starts[-1]]
    watched.starts.pop()
    return watched.report(10)


def steps(names: list[str]) -> dict:
    """Four steps of each configuration after two that make what stays."""
    reports = {}
    for name in names:
        device = get_device(NAME)
        objective = make_objective(EXAMPLES[name], torch.float32)
        layout = parallelize(objective, device, World())
        layout.train()
        optimizer = create_optimizer(
            layout.trainable(), objective.model, OptimizerOptions(lr=1e-3, optimizer=OPTIMIZER), device
        )
        step = Step(layout, optimizer, device, "fp32", 1.0)
        batches = [batch_for(objective, 8, seed=number) for number in range(6)]
        with fakeacc.watched() as waits:
            watched = Watched(waits)
            for batch in batches:
                watched.begin()
                result = step([pinned(batch)])
                if "READS" in os.environ:
                    read_value(result.loss)
        reports[name] = watched.report(2)
    return reports


def read_value(scalar: torch.Tensor) -> float:
    """What must not be in a step."""
    return scalar.item()


def pinned(batch):
    """The batch in page-locked memory, as a loader gives it."""
    tensors = {name: item.pin_memory() for name, item in batch._asdict().items() if isinstance(item, torch.Tensor)}
    masked = batch.masked and type(batch.masked)(*(item.pin_memory() for item in batch.masked))
    return batch._replace(masked=masked, **tensors)


def evaluate(folder: str, pairs: str) -> dict:
    """The measurements of a run of two steps, by part: how often the host waited, and how many batches there were."""
    argv = ["--train-data", pairs, "--val-data", pairs, "--output", folder, "--device", NAME, *SHORT.split()]
    batches: Counter[str] = Counter()
    for name in ENCODING:
        count_calls(Layout, name, batches)
    with fakeacc.watched() as waits:
        train(read(argv, program="diptych train"))
    measured = [item for item in waits if any(line.endswith(" validate") for line in item.lines)]
    encoding = [item for item in measured if any(line.rpartition(" ")[2] in PER_BATCH for line in item.lines)]
    return {
        "batches": batches,
        "per batch": len(encoding),
        "lines": Counter(map(own_line, encoding)).most_common(8),
        "after": Counter(map(own_line, (item for item in measured if item not in encoding))).most_common(20),
    }


def count_calls(owner: type, name: str, calls: Counter[str]) -> None:
    """Count the calls of a method."""
    before = getattr(owner, name)

    def counted(self, *arguments, **named):
        calls[name] += 1
        return before(self, *arguments, **named)

    setattr(owner, name, counted)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "run":
        report = run(rest[0], rest[1], rest[2:])
    else:
        report = steps(rest) if what == "steps" else evaluate(*rest)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(report))
        sys.stdout.flush()
    if "RANK" in os.environ:
        os._exit(0)  # a plug-in's threads must not delay the end of the process
