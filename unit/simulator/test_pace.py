import time

import numpy as np
import pytest

from support.simulator.pace import COPY_RATE, JITTER, Pace

TABLE = {8: 240.0, 1: 100.0, 4: 200.0}


@pytest.mark.parametrize(("batch", "rate"), [(1, 100.0), (4, 200.0), (8, 240.0), (6, 220.0), (64, 240.0)])
def test_a_run_takes_the_published_time_or_one_between(batch, rate):
    assert Pace(TABLE, waits=False).compute_ms(batch) == pytest.approx(1e3 * batch / rate, rel=JITTER)


def test_times_are_spread_around_the_published_one_and_repeat():
    first, second = Pace(TABLE, waits=False), Pace(TABLE, waits=False)
    times = [first.compute_ms(4) for _ in range(200)]
    assert times == [second.compute_ms(4) for _ in range(200)]
    assert np.mean(times) == pytest.approx(20.0, rel=JITTER / 10)
    assert 0.5 * JITTER < np.std(times) / 20.0 < JITTER


def test_a_paced_run_ends_no_sooner_than_its_time_and_that_of_its_copies():
    start = time.perf_counter()
    Pace(TABLE, waits=True).wait(20.0, start, int(0.03 * COPY_RATE))
    assert 0.05 <= time.perf_counter() - start < 1


def test_copies_take_as_long_as_their_rate_says():
    start = time.perf_counter()
    Pace(TABLE, waits=True, copy_rate=1e9).wait(0.0, start, int(0.05 * 1e9))
    assert 0.05 <= time.perf_counter() - start < 1


def test_a_run_that_took_longer_does_not_wait():
    pace, now = Pace(TABLE, waits=True), time.perf_counter()
    pace.wait(20.0, now - 100, 0)
    assert time.perf_counter() - now < 1


def test_in_virtual_time_nobody_waits():
    now = time.perf_counter()
    Pace(TABLE, waits=False).wait(60_000.0, now, 0)
    assert time.perf_counter() - now < 1
