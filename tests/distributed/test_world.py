"""Who we are among processes, and what a half-set environment gets told."""

import pytest
import torch

from diptych.distributed import world
from diptych.errors import DistributedError

from ._processes import run_in_processes


def test_alone_everything_is_the_identity():
    value = torch.tensor([1.0, 2.0])
    assert world.world_from_environment() == world.World(0, 1, 0)
    assert world.size() == 1
    assert world.mean(value) is value
    assert world.share("x") == "x"
    assert world.any_process(True, torch.device("cpu")) is True


def test_a_half_set_environment_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistributedError, match="torchrun"):
        world.world_from_environment()
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DistributedError, match="outside of WORLD_SIZE"):
        world.world_from_environment()


def _talk() -> tuple[float, str, bool, bool]:
    here = world.world_from_environment()
    mean = float(world.mean(torch.tensor(float(here.rank))))
    stop = world.any_process(here.rank == 1, torch.device("cpu"))
    return mean, world.share(f"from {here.rank}"), stop, here.main


def test_two_processes_agree():
    assert run_in_processes(2, _talk) == [(0.5, "from 0", True, True), (0.5, "from 0", True, False)]
