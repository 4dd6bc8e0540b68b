import signal
import threading
import time

import pytest

from support.deadline import deadline
from support.errors import SuiteTimeoutError


@pytest.fixture(autouse=True)
def alarm():
    # pytest-timeout may have set an alarm of its own for the test.
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    yield
    signal.setitimer(signal.ITIMER_REAL, *timer)
    signal.signal(signal.SIGALRM, handler)


def test_a_step_that_takes_too_long_is_interrupted_and_named():
    start = time.monotonic()
    with (
        pytest.raises(SuiteTimeoutError, match=r"^the export took longer than 0\.05 s\n.*\[timeouts\]"),
        deadline(0.05, "the export"),
    ):
        time.sleep(10)
    assert time.monotonic() - start < 5


def test_a_step_in_time_leaves_no_alarm_behind():
    before = signal.getsignal(signal.SIGALRM)
    with deadline(60, "a step"):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_error_of_the_step_passes_and_leaves_no_alarm_behind():
    with pytest.raises(ZeroDivisionError), deadline(60, "a step"):
        raise ZeroDivisionError
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_outer_alarm_is_put_back_with_the_time_left_of_it():
    rings = []
    signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 100, 7)
    with deadline(60, "a step"):
        time.sleep(0.02)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 90 < left < 99.99
    assert interval == 7
    assert rings == []


def test_an_outer_alarm_that_is_overdue_rings_at_once():
    rings = []
    signal.signal(signal.SIGALRM, lambda *_: rings.append("overdue"))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with deadline(60, "a step"):
        time.sleep(0.03)
        assert rings == []
    time.sleep(0.03)
    assert rings == ["overdue"]


def test_of_two_deadlines_the_inner_ends_first_and_the_outer_still_holds():
    ended = []

    def steps():
        with pytest.raises(SuiteTimeoutError, match="the inner step"), deadline(0.02, "the inner step"):
            time.sleep(10)
        ended.append("the inner step")
        time.sleep(10)

    with pytest.raises(SuiteTimeoutError, match="the outer step"), deadline(0.1, "the outer step"):
        steps()
    assert ended == ["the inner step"]


def test_outside_the_main_thread_a_step_just_runs():
    done = []

    def step():
        with deadline(0.001, "a step"):
            time.sleep(0.02)
            done.append(signal.getitimer(signal.ITIMER_REAL))

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert done == [(0, 0)]
