"""Degrees of parallelism: what they come to, and the arithmetic of what cannot be."""

import pytest

from diptych.distributed.mesh import Degrees, ParallelOptions, data_world, degrees_of
from diptych.distributed.process_group import World
from diptych.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        (ParallelOptions(), 1, Degrees(1, 1, 1)),
        (ParallelOptions(), 4, Degrees(4, 1, 1)),
        (ParallelOptions(sharding="stage3"), 4, Degrees(1, 4, 1)),
        (ParallelOptions(sharding="stage1", sharding_parallel_degree=2), 4, Degrees(2, 2, 1)),
        (ParallelOptions(tensor_parallel_degree=2), 2, Degrees(1, 1, 2)),
        (ParallelOptions(sharding="stage2", tensor_parallel_degree=2), 8, Degrees(1, 4, 2)),
        (ParallelOptions(sharding="stage2", sharding_parallel_degree=2, tensor_parallel_degree=2), 8, Degrees(2, 2, 2)),
    ],
)
def test_degrees_multiply_to_the_processes(options, processes, expected):
    degrees = degrees_of(options, World(0, processes))
    assert degrees == expected and degrees.data * degrees.tensor == processes


def test_processes_of_a_tensor_group_see_the_same_pairs():
    options = ParallelOptions(tensor_parallel_degree=2)
    worlds = [data_world(options, World(rank, 6)) for rank in range(6)]
    assert [world.rank for world in worlds] == [0, 0, 1, 1, 2, 2] and {world.size for world in worlds} == {3}


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        (ParallelOptions(sharding_parallel_degree=2), 4, "goes with --sharding"),
        (
            ParallelOptions(tensor_parallel_degree=3),
            4,
            "4 processes are no whole number of groups of 3; expected a divisor of 4",
        ),
        (ParallelOptions(sharding="stage2"), 1, r"there is one \(no other process\); start more with torchrun"),
        (ParallelOptions(sharding="stage2", tensor_parallel_degree=2), 2, "2 processes / 2 of a tensor group"),
        (
            ParallelOptions(sharding="stage3", sharding_parallel_degree=3),
            4,
            "4 processes are no whole number of groups of 3",
        ),
        (ParallelOptions(sharding="stage3", sharding_parallel_degree=1), 4, "expected a divisor of 4 from 2 on"),
        (
            ParallelOptions(sharding="stage3", sharding_parallel_degree=4, tensor_parallel_degree=4),
            8,
            r"2 processes \(8 processes / 4 of a tensor group\) are no whole number of groups of 4",
        ),
    ],
)
def test_degrees_that_do_not_divide_are_refused_with_the_arithmetic(options, processes, message):
    with pytest.raises(ConfigError, match=message):
        degrees_of(options, World(0, processes))
