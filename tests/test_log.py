"""The metric log keeps every row, forgets what a resumed run writes again, and feeds TensorBoard and other dashboards."""

import json
import sqlite3
import struct
import subprocess
import sys
import time

import pytest

from diptych import log
from diptych.errors import ConfigError


def test_rows_are_json_lines_and_infinities_become_null(tmp_path):
    sink = log.open_sinks(tmp_path)
    sink.write("train", 1, {"loss": 2.5, "gradient_norm": float("inf")})
    sink.close()
    assert log.read_rows(tmp_path / "metrics.jsonl") == [
        {"phase": "train", "step": 1, "loss": 2.5, "gradient_norm": None}
    ]


def test_a_resumed_run_forgets_rows_past_its_checkpoint(tmp_path):
    sink = log.open_sinks(tmp_path)
    for step in (1, 2, 3, 4):
        sink.write("train", step, {"loss": float(step)})
    sink.close()
    sink = log.open_sinks(tmp_path, resume_step=2)
    sink.write("train", 3, {"loss": 30.0})
    sink.close()
    assert [(row["step"], row["loss"]) for row in log.read_rows(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert log.read_rows(path) == [{"step": 1}]


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = log.open_sinks(tmp_path, "tensorboard")
    sink.write("train", 5, {"loss": 1.25, "time": 0.0})
    sink.write("eval", 5, {"name": "val", "image_to_text_R@1": 0.5})
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/val/image_to_text_R@1", "train/loss"]
    assert events.Scalars("train/loss")[0].value == 1.25


def test_an_unknown_sink_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'tensorboard'"):
        log.open_sinks(tmp_path, "tensorbord")


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    log.open_sinks(tmp_path).write("train", 1, {"loss": 1.0})
    log.info("hello")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_progress_off_a_terminal_is_plain_lines(capsys):
    with log.progress("work", 3) as tell:
        for done in (1, 2, 3):
            tell(done, "fine")
    assert capsys.readouterr().err.strip() == "work 3/3 fine"


@pytest.mark.heavy
def test_wandb_offline_writes_what_was_logged(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.toml").write_text(
        'accum_freq = 1\n[data]\nbatch_size = 77\n[output]\nwandb_project_name = "cats-23"\nwandb_notes = "second try"\n'
    )
    sink = log.open_sinks(tmp_path, "wandb")
    sink.write("train", 3, {"loss": 1.25, "time": 1.0})
    sink.write("eval", 3, {"name": "val", "top1": 0.5})
    sink.close()
    path, wanted = (
        next(tmp_path.rglob("*.wandb")),
        (b"train/loss", b"1.25", b"eval/val/top1", b"batch_size", b"77", b"cats-23", b"second try"),
    )
    until = (
        time.monotonic() + 60
    )  # a process of wandb's own writes the file; on a busy machine it ends later than finish() does
    while not all(words in path.read_bytes() for words in wanted) and time.monotonic() < until:
        time.sleep(0.1)
    kept = path.read_bytes()
    for words in wanted:
        assert words in kept
    assert b"train/time" not in kept


def test_trackio_keeps_what_was_logged(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    # It reads its folder when it is first imported: a process of its own.
    program = (
        "import sys, pathlib; from diptych import log; sink = log.open_sinks(pathlib.Path(sys.argv[1]), 'trackio');"
        "sink.write('train', 3, {'loss': 1.25}); sink.write('eval', 4, {'name': 'val', 'top1': 0.5}); sink.close()"
    )
    run = tmp_path / "run"
    run.mkdir()
    subprocess.run([sys.executable, "-c", program, str(run)], check=True, capture_output=True, timeout=120)
    with sqlite3.connect(tmp_path / "trackio" / "diptych.db") as base:
        rows = [(step, json.loads(values)) for step, values in base.execute("select step, metrics from metrics")]
    assert [(step, values) for step, values in rows if "train/loss" in values] == [(3, {"train/loss": 1.25})]
    assert (4, {"eval/val/top1": 0.5}) in rows


def test_swanlab_offline_keeps_what_was_logged(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    sink = log.open_sinks(tmp_path, "swanlab")
    sink.write("train", 3, {"loss": 1.25})
    sink.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "swanlab").rglob("*") if path.is_file())
    assert b"train/loss" in kept and (struct.pack("<d", 1.25) in kept or struct.pack("<f", 1.25) in kept)


def test_a_dashboard_that_is_not_installed_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        log.open_sinks(tmp_path, "wandb")


def test_held_messages_are_printed_at_the_end_unless_they_are_dropped(capsys):
    with log.held() as outer:
        log.info("first")
        with log.held() as inner:
            log.warn("never")
            inner.clear()
        assert outer == [("first", None)] and capsys.readouterr().err == ""
    assert capsys.readouterr().err == "first\n"
