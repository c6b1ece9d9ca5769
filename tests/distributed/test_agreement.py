"""What only some processes know takes effect on all of them after the same step."""

import pytest

from diptych.distributed import process_group
from diptych.distributed.agreement import Agreement
from tests.distributed._processes import run_in_processes

STEPS, RAISED = 5, 2


def agree():
    """What each step gave on this process, of a flag that the last rank raises before one, and another that it raises in it."""
    agreement, last = Agreement(60.0), process_group.rank() == process_group.size() - 1
    given = []
    for number in range(STEPS):
        before = [last and number == RAISED, last and number > RAISED]
        agreement.send(before)
        given.append(agreement.agreed([before[0], last and number >= RAISED]))
    return given


def test_a_process_on_its_own_agrees_with_itself_at_once():
    assert agree() == [[number == RAISED, number >= RAISED] for number in range(STEPS)]


@pytest.mark.slow
def test_two_processes_agree_on_what_was_raised_before_the_step():
    for given in run_in_processes(2, agree):
        assert given == [[number == RAISED, number > RAISED] for number in range(STEPS)]
