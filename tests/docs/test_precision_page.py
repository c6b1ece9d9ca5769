"""docs/precision.md: its tables are what was measured, its bounds are those that tests hold, its cells what towers really do."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from tests.train import test_pure_bf16 as bounds

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("precision")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def result(benchmark):
    return json.loads(benchmark.RESULT.read_text(encoding="utf-8"))


def test_the_tables_are_what_was_measured(benchmark, result):
    _, _, rest = PAGE.partition(benchmark.BEGIN)
    assert rest.partition(benchmark.END)[0].strip() == benchmark.tables(result)
    assert result["steps"] == 50
    assert result["errors"].keys() == benchmark.WAYS.keys() and result["runs"].keys() == benchmark.RUNS.keys()


def test_what_was_measured_is_within_the_bounds_that_the_page_states(result):
    stated = re.search(
        r"less than ([\d.]+) on average and ([\d.]+) at most .*?less than ([\d.]+) of the way", PAGE, re.DOTALL
    )
    numbers = tuple(map(float, stated.groups()))
    assert numbers == (bounds.MEAN_GAP, bounds.LARGEST_GAP, bounds.WEIGHT_GAP)
    run = result["runs"]["pure_bf16"]
    assert run["mean gap"] < numbers[0] and run["largest gap"] < numbers[1] and run["weights"] < numbers[2]


def test_bf16_weights_with_copies_are_as_near_to_fp32_as_bf16(result):
    runs, errors = result["runs"], result["errors"]
    assert (
        runs["pure_bf16"]["weights"]
        < 1.1 * runs["bf16"]["weights"]
        < runs["pure_bf16, --master-weights none"]["weights"]
    )
    assert errors["pure_bf16"]["gradients"] < 1.2 * errors["bf16"]["gradients"]
