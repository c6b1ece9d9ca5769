"""The script for a GPU runs to its end without one, in its reduced form, and leaves every race and its counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.heavy
def test_the_reduced_form_runs_every_race(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "run.py"), str(out), "--reduced"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    written = json.loads(out.read_text())
    assert written["reduced"]
    assert [row["race"] for row in written["rows"]] == ["G1", "G1", "G2", "G3", "G4", "G5", "G5", "G6", "G7"]
    assert not [row for row in written["rows"] if "failed" in row]
    for row in written["rows"]:
        if row["race"] in ("G1", "G3"):
            assert row["counts"]["operators"] > 1000, row
            assert 0 < row["share_of_matmul_peak"] < 1.5


def test_wheels_are_listed_with_their_versions():
    lines = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert all(len(line.split("==")) == 2 for line in packages)
    assert {"open-clip-torch", "tyro"} <= {line.split("==")[0] for line in packages}
