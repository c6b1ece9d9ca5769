"""What a run of two processes writes into results.json is what one process measures of the weights that it leaves.

Real runs under torchrun, with shards and with split layers; then ``diptych evaluate``, alone and shared by two processes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.world import write_jsonl
from tests.distributed.torchrun import TORCHRUN

from .runs import argv

pytestmark = pytest.mark.slow
LAYOUTS = {"stage3": ["--sharding", "stage3"], "tensor": ["--tensor-parallel-degree", "2"]}


def run(*command):
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of which some images and captions are equal, so that they tie, and five labeled images."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in Path(write_jsonl(folder)).read_text().splitlines()]
    for number in (7, 12, 20):
        shutil.copy(folder / "img" / "03.png", folder / "img" / f"{number:02d}.png")
        rows[number]["captions"] = rows[number - 1]["captions"] + rows[3]["captions"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, name in enumerate(("a", "b", "a", "b", "a")):
        (folder / "classes" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "img" / f"{5 * number:02d}.png", folder / "classes" / name)
    return str(folder / "pairs.jsonl"), str(folder / "classes")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_those_of_one_process(tmp_path, data, layout):
    pairs, classes = data
    given = argv(pairs, tmp_path / "a", "--max-steps", "4", "--val-data", pairs, "--imagenet-val", classes)
    run(*TORCHRUN, "-m", "diptych", "train", *given, *LAYOUTS[layout])
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [entry["name"] for entry in results] == ["val", "zeroshot"]
    flags = ["--pretrained", str(tmp_path / "a"), "--val-data", pairs, "--imagenet-val", classes]
    flags += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--json"]
    alone = json.loads(run(sys.executable, "-m", "diptych", "evaluate", *flags))
    shared = json.loads(run(*TORCHRUN, "-m", "diptych", "evaluate", *flags))
    assert alone == shared
    for entry, expected in zip(results, alone, strict=True):
        for key in ("metrics", "intervals", "chance", "count"):
            assert entry[key] == expected[key], (entry["name"], key)
