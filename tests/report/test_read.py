"""What the report takes from a run's folder."""

from __future__ import annotations

import json

import pytest

from diptych.report.read import RunFiles, number, points, read_run


def test_facts_of_a_run(run_folder):
    run = read_run(run_folder)
    assert (run.name, run.steps, run.batch, run.pairs) == ("first run", 100, 64, 6400)
    assert run.seconds == pytest.approx(99.5)
    assert run.option("model") == "ViT-Ti-16" and run.option("absent", 3) == 3
    assert run.notes == ()


def test_logged_pairs_win_over_steps_times_batch():
    assert RunFiles("x", train=({"step": 10, "pairs": 5120},), config={"batch_size": 2}).pairs == 5120


def test_a_pause_between_two_sittings_is_no_work():
    times = [*range(0, 100), *range(50_000, 50_100)]
    run = RunFiles("x", train=tuple({"step": step, "time": float(time)} for step, time in enumerate(times)))
    assert run.seconds == 99 + 99


def test_losses_that_are_no_number_are_left_out_and_noted(tmp_path):
    rows = [{"phase": "train", "step": step, "loss": None if step > 3 else 1.0} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnonsense\n[1]\n")
    run = read_run(tmp_path)
    assert points(run.train, "loss") == [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
    assert "2 rows" in run.notes[0] and "step 4" in run.notes[0]


def test_of_equal_steps_the_last_row_counts():
    rows = ({"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    assert points(rows, "loss") == [(1.0, 3.0), (2.0, 2.0)]


def test_numbers_are_finite_and_not_truth_values():
    assert number(True) is None and number(float("nan")) is None and number("1") is None and number(3) == 3.0
    assert number(10**400) is None and number(5e-324) == 0.0
