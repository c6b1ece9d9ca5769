"""Who we are among processes, and what a half-set environment gets told."""

import pytest
import torch

from diptych.distributed import process_group
from diptych.errors import DistributedError, PeerLostError

from ._processes import run_in_processes


def test_alone_everything_is_the_identity():
    value = torch.tensor([1.0, 2.0])
    assert process_group.world_from_environment() == process_group.World(0, 1, 0)
    assert process_group.size() == 1
    assert process_group.all_reduce_mean(value) is value
    assert process_group.broadcast_object("x") == "x"
    assert process_group.any_rank(True, torch.device("cpu")) is True


def test_a_half_set_environment_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistributedError, match="torchrun"):
        process_group.world_from_environment()
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DistributedError, match="outside of WORLD_SIZE"):
        process_group.world_from_environment()


def _talk() -> tuple[float, str, bool, bool]:
    here = process_group.world_from_environment()
    mean = float(process_group.all_reduce_mean(torch.tensor(float(here.rank))))
    stop = process_group.any_rank(here.rank == 1, torch.device("cpu"))
    return mean, process_group.broadcast_object(f"from {here.rank}"), stop, here.main


def test_two_processes_agree():
    assert run_in_processes(2, _talk) == [(0.5, "from 0", True, True), (0.5, "from 0", True, False)]


def _left_alone():
    """What the first process gets when the second leaves in the middle of its exchanges."""
    if process_group.rank() == 1:
        process_group.stop()
        return ""
    try:
        with process_group.naming_lost_peers():
            process_group.all_reduce_mean(torch.ones(8))
    except PeerLostError as error:
        return error.line
    return "nothing"


def test_a_lost_process_is_one_line():
    line, _ = run_in_processes(2, _left_alone)
    assert line.startswith("an exchange with the other processes failed (")
    assert line.endswith("): one of them has ended; continue with --resume auto.")
