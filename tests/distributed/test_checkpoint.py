"""Checkpoints are whole or absent, found again, and read without running code."""

import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.distributed import checkpoint
from diptych.errors import WeightsError


def test_what_is_saved_is_loaded(tmp_path):
    state = {"step": 3, "weights": {"a": torch.arange(4.0)}, "config": {"lr": 0.1, "names": ("x", "y")}}
    path = checkpoint.save(tmp_path, 3, state)
    again = checkpoint.load(path)
    assert again["config"] == state["config"]
    assert torch.equal(again["weights"]["a"], state["weights"]["a"])


def test_only_the_newest_are_kept_and_latest_is_the_last(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 10]
    path, state = checkpoint.newest(tmp_path)
    assert (path, state["step"]) == (checkpoint.path_of(tmp_path, 10), 10)
    assert checkpoint.newest(tmp_path / "empty") is None


def test_a_protected_checkpoint_is_kept_by_rotation(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1})
    kept = checkpoint.protect(tmp_path, 1)
    for step in (2, 3):
        checkpoint.save(tmp_path, step, {"step": step}, keep=1)
    assert checkpoint.steps(tmp_path) == [3]
    assert checkpoint.load(kept)["step"] == 1


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, share, bit):
    state = {"step": 7, "weights": {"a": torch.arange(900.0), "b": torch.ones(3, 5)}, "name": "x"}
    path = checkpoint.save(tmp_path, 7, state)
    flip(path, int(share * path.stat().st_size), bit)
    try:
        loaded = checkpoint.load(path, state)
    except WeightsError as error:
        assert "\n" not in error.line
        return
    assert (loaded["step"], loaded["name"]) == (7, "x")
    assert all(torch.equal(loaded["weights"][name], item) for name, item in state["weights"].items())


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"weights": {"a": torch.full((5000,), float(step))}})
    newest = checkpoint.path_of(tmp_path, 2)
    flip(newest, newest.stat().st_size // 2, 3)  # inside of the numbers
    path, state = checkpoint.newest(tmp_path)
    assert path == checkpoint.path_of(tmp_path, 1) and float(state["weights"]["a"][0]) == 1
    printed = capsys.readouterr().err
    assert "step_00000002.pt" in printed and "bytes have changed" in printed
    flip(path, path.stat().st_size // 2, 3)
    with pytest.raises(WeightsError, match="none of the 2 checkpoints is whole"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_truncated_checkpoint_is_refused(tmp_path, size):
    path = checkpoint.save(tmp_path, 1, {"weights": {"a": torch.randn(1000)}})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        checkpoint.load(path)


class _Trap:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('SPRUNG').write_text('x')",))


def test_a_crafted_pickle_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": _Trap()}, tmp_path / "step_00000001.pt")
    (tmp_path / "step_00000002.pt").write_bytes(pickle.dumps(_Trap()))
    for step in (1, 2):
        with pytest.raises(WeightsError):
            checkpoint.load(checkpoint.path_of(tmp_path, step))
    assert not (tmp_path / "SPRUNG").exists()


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    checkpoint.save(tmp_path, 1, {"weights": {"a": torch.ones(10)}})
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from diptych.distributed import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "from diptych.errors import OutputError\n"
        "try: checkpoint.save(Path(sys.argv[1]), 2, {'weights': {'a': torch.ones(100000)}}, keep=1)\n"
        "except OutputError as error: print(error.line)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "could not be written" in run.stdout, run
    assert checkpoint.steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]
    assert torch.equal(checkpoint.load(checkpoint.path_of(tmp_path, 1))["weights"]["a"], torch.ones(10))
