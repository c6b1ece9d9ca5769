"""What every race shares: the same weights and captions for all, alternating rounds, and rows of the table. Benchmarks only."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODEL = "ViT-B-32"
BUSY = "import torch\nx = torch.randn(700, 700)\nwhile True: x @ x"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Context in which ``count`` other processes compute matrix products without end."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def folder() -> Path:
    """The folder of this race's temporary files: weights of a random ViT-B-32 in our checkpoint format and in open_clip's."""
    return Path(os.environ["RACE_FOLDER"])


def data() -> Path:
    """The folder of real photos and captions (flickr8k/)."""
    return Path(os.environ["RACE_DATA"])


def selected(race: str) -> bool:
    """Whether this race was asked for on ``run.py``'s command line, where a file holds several."""
    names = os.environ.get("RACE_NAMES", "").split()
    return not names or race in names


def captions(count: int) -> list[str]:
    """The first captions of Flickr8k, every one of each photo."""
    texts: list[str] = []
    with (data() / "flickr8k" / "captions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            texts += json.loads(line)["captions"]
            if len(texts) >= count:
                break
    return texts[:count]


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int = 3) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(seconds, last result) of each call, A/B/A/B..., after a round that is not counted."""
    results = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()
            start = time.perf_counter()
            results[name] = call()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


class Contestant:
    """A process of its own that takes a step on request, and sleeps in between.

    ``command`` is a Python file with its arguments, which answers each line on its input with "SECONDS VALUE".
    """

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.values: list[float] = []

    def __call__(self) -> float:
        """One step: the seconds that the process itself measured; what it computed joins ``values``."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        answer = self._process.stdout.readline().split()
        self.values.append(float(answer[1]))
        return float(answer[0])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def take_turns(runners: Mapping[str, Contestant], rounds: int, warm: int) -> dict[str, list[float]]:
    """Seconds of each contestant, A/B/A/B..., after ``warm`` rounds that are not counted; they end afterwards."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(warm + rounds):
        for name, runner in runners.items():
            spent = runner()
            if number >= warm:
                seconds[name].append(spent)
    for runner in runners.values():
        runner.close()
    return seconds


def serve(step: Callable[[], float]) -> None:
    """The contestant's side: a step for each line that comes in."""
    for _ in sys.stdin:
        gc.collect()
        start = time.perf_counter()
        value = step()
        print(time.perf_counter() - start, value, flush=True)


def row(
    race: str,
    what: str,
    seconds: Mapping[str, list[float]],
    pair: tuple[str, str],
    target: float,
    exact: str,
    **more: Any,
) -> dict[str, Any]:
    """One line of the table: ``pair`` is (ours, peer); the ratio is that of the best rounds, beside that of the medians."""
    ours, peer = (seconds[name] for name in pair)
    return {
        "race": race, "what": what, "ours": pair[0], "peer": pair[1],
        "ours_seconds": min(ours), "peer_seconds": min(peer),
        "ratio": min(peer) / min(ours), "ratio_of_medians": statistics.median(peer) / statistics.median(ours),
        "target": target, "exact": exact, "rounds": {name: seconds[name] for name in pair}, **more,
    }  # fmt: skip


def finish(rows: list[dict[str, Any]]) -> None:
    """Hand the rows to ``run.py``, which started this race in a process of its own."""
    text = json.dumps(rows)
    Path(os.environ["RACE_OUT"]).write_text(text, encoding="utf-8")


def peer_model(**options: Any) -> Any:
    """open_clip's model with the race's weights."""
    from _peers import open_clip

    file = folder() / "clip" / "open_clip_model.safetensors"
    return open_clip().create_model(MODEL, pretrained=str(file), **options)


def own_model() -> Any:
    """Our model with the race's weights."""
    from diptych import weights

    return weights.load(folder() / "ours.safetensors")
