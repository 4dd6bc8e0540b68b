import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.intervals import autocorrelation_time, mean_interval, student_t

#: As the spec has them.
BLOCKS, TIMES = 20, 3.0


def correlated(rng, count, rho):
    """Noise of variance 1 in which each value keeps the part `rho` of the one before: AR(1)."""
    last, values = float(rng.standard_normal()), []
    for fresh in (rng.standard_normal(count) * math.sqrt(1 - rho**2)).tolist():
        last = rho * last + fresh
        values.append(last)
    return np.array(values)


def covered(rho, *, calls, runs=400, naive=False):
    rng, hits = np.random.default_rng(11), 0
    for _ in range(runs):
        series = 1 + 0.02 * correlated(rng, calls, rho)
        # More blocks than values times one make every value a block.
        found = mean_interval([series], blocks=calls + 1 if naive else BLOCKS, times=1 if naive else TIMES)
        low, high = found.bounds(0.95)
        hits += low <= 1 <= high
    return hits / runs


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    # two-sided quantiles from published tables
    [
        (0.95, 1, 12.7062047364),
        (0.95, 2, 4.3026527297),
        (0.95, 3, 3.1824463053),
        (0.99, 7, 3.4994832974),
        (0.95, 30, 2.0422724563),
        (0.90, 120, 1.6576508994),
        (0.95, 4999, 1.9604385),
    ],
)
def test_t_quantiles_are_those_of_the_tables(confidence, degrees, quantile):
    assert student_t(confidence, degrees) == pytest.approx(quantile, rel=1e-7)


@given(st.integers(1, 400), st.floats(0.51, 0.99))
def test_t_quantiles_shrink_towards_the_normal_one_as_degrees_grow(degrees, confidence):
    assert student_t(confidence, degrees) > student_t(confidence, degrees + 1)


# 400 runs, always the same.
@pytest.mark.parametrize(("rho", "calls"), [(0.0, 79), (0.0, 1250), (0.5, 1250), (0.8, 1250), (0.9, 1250)])
def test_the_interval_covers_the_truth_as_often_as_it_says(rho, calls):
    assert 0.92 <= covered(rho, calls=calls) <= 0.98


def test_an_interval_of_independent_calls_fails_where_they_depend_on_each_other():
    assert covered(0.9, calls=200, runs=200, naive=True) < 0.5
    assert covered(0.9, calls=1250, runs=200) > 0.92


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_autocorrelation_time_is_found_and_not_too_short(rho):
    truth = (1 + rho) / (1 - rho)
    found = autocorrelation_time([correlated(np.random.default_rng(3), 20_000, rho)])
    assert 0.95 * truth <= found <= 1.5 * truth


def test_equal_and_alternating_values_are_independent():
    assert autocorrelation_time([np.full(100, 0.1)]) == 1
    assert autocorrelation_time([np.array([1.0, 2.0] * 2000)]) == pytest.approx(1, rel=0.1)


def test_blocks_are_as_many_as_asked_for_and_long_enough():
    quick = mean_interval([np.random.default_rng(1).standard_normal(1250)], blocks=BLOCKS, times=TIMES)
    slow = mean_interval([correlated(np.random.default_rng(1), 1250, 0.95)], blocks=BLOCKS, times=TIMES)
    assert (quick.degrees + 1, quick.block) == (20, 62)
    assert slow.degrees + 1 < 20
    assert slow.block >= TIMES * slow.time > 3 * 39


def test_blocks_never_span_two_series():
    series = [np.full(100, 1.0), np.full(100, 2.0)]
    found = mean_interval(series, blocks=BLOCKS, times=TIMES)
    assert found.mean == 1.5
    # Each is a level of its own for as long as it lasts.
    assert found.degrees == 1


def test_few_values_are_taken_as_independent():
    values = np.array([0.1, 0.3, 0.2, 0.2])
    found = mean_interval([values], blocks=BLOCKS, times=TIMES)
    assert (found.time, found.block, found.degrees) == (None, 1, 3)
    assert found.error == pytest.approx(values.std(ddof=1) / 2)


def test_one_block_bounds_nothing():
    found = mean_interval([np.linspace(1, 2, 100)], blocks=BLOCKS, times=TIMES)
    assert found.degrees == 0
    assert found.bounds(0.95) == (-math.inf, math.inf)
