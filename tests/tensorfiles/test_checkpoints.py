"""Checkpoints with foreign objects: read past without importing them, or refused; the tensors are torch's own."""

import argparse
import collections
import datetime
import sys
import types

import pytest
import torch

from diptych.errors import WeightsError
from diptych.tensorfiles.read import read


class Settings(dict):
    """A dictionary class of somebody's package."""


@pytest.fixture
def foreign(monkeypatch):
    """A module that exists while the file is written, and not when it is read."""
    module = types.ModuleType("somebodys_trainer")
    for name, base in (("Settings", Settings), ("Options", object)):
        made = type(name, (base,), {"__module__": module.__name__})
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("old", [False, True], ids=["zip", "chain"])
def test_objects_are_read_past_and_tensors_are_torchs(old, foreign, tmp_path, monkeypatch):
    shared = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    options = foreign.Options()
    options.rate = 3
    tensors = {
        "a": shared, "b": shared.T, "c": shared[1:, ::2], "d": torch.tensor(5), "e": torch.zeros(0, 3),
        "f": torch.randn(5).to(torch.bfloat16), "g": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    checkpoint = {
        "state_dict": foreign.Settings(tensors), "options": options, "args": argparse.Namespace(x=1),
        "when": datetime.date(2026, 1, 2), "counts": collections.defaultdict(list, {"k": [1]}), "epoch": 4,
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    monkeypatch.delitem(sys.modules, foreign.__name__)
    stored = read(tmp_path / "a.pt")
    assert foreign.__name__ not in sys.modules
    assert set(stored.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(stored.tensors[name], tensor.detach()), name
        assert stored.tensors[name].dtype == tensor.dtype
    assert "somebodys_trainer.Options" in stored.passed_over
    assert "argparse.Namespace" in stored.passed_over
    assert stored.notes == {"epoch": 4}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "chain"])
def test_a_file_with_foreign_objects_that_is_damaged_is_one_line(old, tmp_path):
    torch.save(
        {"w": torch.randn(400), "n": argparse.Namespace()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old
    )
    data = (tmp_path / "a.pt").read_bytes()
    for size in range(1, len(data) - 1, 97):
        (tmp_path / "a.pt").write_bytes(data[:size])
        with pytest.raises(WeightsError) as caught:
            read(tmp_path / "a.pt")
        assert "\n" not in caught.value.line


def test_every_state_dict_is_handed_on_by_its_path_but_the_optimizers(tmp_path):
    inner, ema, moments = ({"w": torch.full((2,), float(number))} for number in range(3))
    checkpoint = {"model": {"inner": inner}, "ema": ema, "optimizer": {"state": {0: moments}}, "n": torch.ones(1)}
    torch.save(checkpoint, tmp_path / "a.pt")
    assert set(read(tmp_path / "a.pt").groups) == {"", "model.inner", "ema"}


def test_an_answer_of_a_store_saved_as_weights_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(WeightsError, match="a web page"):
        read(tmp_path / "a.bin")
