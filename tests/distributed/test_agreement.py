"""What only some processes know takes effect on all of them after the same step, one later."""

import pytest

from diptych.distributed.agreement import Agreement
from tests.distributed._processes import run_in_processes

CALLS, RAISED = 5, 2


def agree():
    """What each call gave on this process, of flags that the last rank raises in one of them; and what was still on its way."""
    from diptych.distributed import process_group

    agreement, last = Agreement(60.0), process_group.rank() == process_group.size() - 1
    given = [agreement([number == RAISED and last, False]) for number in range(CALLS)]
    agreement([last, True])
    return given, agreement.settle(), agreement.settle()


def test_a_process_on_its_own_agrees_with_itself_at_once():
    given, on_its_way, _ = agree()
    assert given == [[number == RAISED, False] for number in range(CALLS)]
    assert on_its_way == []


@pytest.mark.slow
def test_two_processes_agree_one_call_later():
    for given, on_its_way, rest in run_in_processes(2, agree):
        assert given == [[number == RAISED + 1, False] for number in range(CALLS)]
        assert (on_its_way, rest) == ([True, True], [])
