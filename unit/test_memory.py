import gc
import weakref

import numpy as np
import pytest

from support.errors import NoDataError, ToolError
from support.memory import recalled, remembered


class Machine:
    def __init__(self):
        self.memory = {}
        self.calls = []

    @remembered
    def double(self, number, *, plus=0):
        self.calls.append(number)
        return 2 * number + plus

    @property
    @remembered
    def nothing(self):
        self.calls.append("nothing")

    @remembered
    def missing(self, name):
        self.calls.append(name)
        raise NoDataError(f"no {name}", required="a file", remedy="look for it")

    @remembered
    def crash(self):
        self.calls.append("crash")
        raise ZeroDivisionError

    @remembered
    def large_failure(self):
        array = np.zeros(8)
        self.large = weakref.ref(array)
        raise ToolError(f"{array.size} numbers in vain")


@pytest.fixture
def machine():
    return Machine()


def test_a_result_is_computed_once_for_each_argument(machine):
    assert [machine.double(3), machine.double(3), machine.double(4), machine.double(3, plus=1)] == [6, 6, 8, 7]
    assert machine.calls == [3, 4, 3]


def test_no_result_is_a_result(machine):
    assert machine.nothing is None
    assert machine.nothing is None
    assert machine.calls == ["nothing"]


def test_every_object_remembers_for_itself(machine):
    other = Machine()
    assert machine.double(3) == other.double(3)
    assert other.calls == [3]


def test_a_failure_fails_once_and_says_the_same_every_time(machine):
    texts = []
    for _ in range(3):
        with pytest.raises(NoDataError, match="no checkpoint") as caught:
            machine.missing("checkpoint")
        texts.append(str(caught.value))
    assert machine.calls == ["checkpoint"]
    assert set(texts) == {"no checkpoint\n  required: a file\n  what to do: look for it"}


def test_a_failure_is_that_of_its_argument(machine):
    for name in ("images", "checkpoint"):
        with pytest.raises(NoDataError, match=f"no {name}"):
            machine.missing(name)
    assert machine.calls == ["images", "checkpoint"]


def test_a_fault_of_the_suite_is_not_kept(machine):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            machine.crash()
    assert machine.calls == ["crash", "crash"]


def test_a_failure_keeps_nothing_of_its_frames_alive(machine):
    for _ in range(2):
        with pytest.raises(ToolError, match="8 numbers in vain"):
            machine.large_failure()
        gc.collect()
        assert machine.large() is None


def test_a_failure_that_is_raised_again_does_not_collect_tracebacks(machine):
    depths = []
    for _ in range(4):
        with pytest.raises(NoDataError) as caught:
            machine.missing("checkpoint")
        depths.append(len(caught.traceback))
    assert len(set(depths[1:])) == 1


def test_what_was_computed_is_recalled_without_computing(machine):
    assert recalled(machine, "double", 3) is None
    machine.double(3)
    assert recalled(machine, "double", 3) == 6
    assert recalled(machine, "double", 4) is None
    assert machine.calls == [3]


def test_a_failure_is_recalled_as_nothing(machine):
    with pytest.raises(NoDataError):
        machine.missing("checkpoint")
    assert recalled(machine, "missing", "checkpoint") is None


def test_nobody_recalls_nothing():
    assert recalled(None, "double", 3) is None
