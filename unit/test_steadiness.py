import numpy as np
import pytest

from support.spec import load_spec
from support.steadiness import WarmUp, drift

RULES = load_spec("efficientdet_d0").throughput
COLD = [1.0, 0.13, 0.12, 0.115, 0.11, 0.107]
STEADY = [0.1, 0.1001, 0.0999]


@pytest.mark.parametrize("seconds", [[], STEADY, COLD, [*COLD, *STEADY]])
def test_a_warm_up_that_still_gets_faster_goes_on(seconds):
    assert not WarmUp(RULES)(seconds)


def test_a_warm_up_ends_when_a_block_is_as_fast_as_the_one_before():
    assert WarmUp(RULES)([*COLD, *STEADY, *STEADY])


def test_a_change_below_the_tolerance_is_none():
    assert WarmUp(RULES)([0.1004, 0.1004, 0.1004, 0.1, 0.1, 0.1])
    assert not WarmUp(RULES)([0.101, 0.101, 0.101, 0.1, 0.1, 0.1])


def test_noise_is_no_drift():
    assert WarmUp(RULES)([0.11, 0.12, 0.11, 0.12, 0.1, 0.11])


def test_a_warm_up_that_never_gets_steady_ends_at_its_limit_and_is_not_called_steady():
    falling = np.linspace(2, 1, RULES.warm_up_most).tolist()
    assert not WarmUp(RULES)(falling[:-1])
    assert WarmUp(RULES)(falling)
    assert not WarmUp(RULES).steady(falling)


def test_a_single_call_of_warm_up_is_compared_by_the_tolerance_alone():
    rules = RULES.model_copy(update={"warm_up_calls": 1})
    assert WarmUp(rules)([0.1001, 0.1])
    assert not WarmUp(rules)([0.2, 0.1])


def noise(count, seed=4):
    return 1 + 0.01 * np.random.default_rng(seed).standard_normal(count)


def test_a_slow_head_of_a_pass_is_found():
    head = np.concatenate([np.full(250, 1.05), np.ones(1000)])
    assert drift(head * noise(1250), RULES) == pytest.approx(0.05, abs=0.005)


def test_a_fast_head_of_a_pass_is_found_too():
    head = np.concatenate([np.full(250, 0.9), np.ones(1000)])
    assert drift(head * noise(1250), RULES) == pytest.approx(-0.1, abs=0.005)


@pytest.mark.parametrize("seed", range(20))
def test_a_steady_pass_shows_no_drift(seed):
    assert drift(noise(1250, seed), RULES) == 0


def test_a_short_pass_cannot_tell():
    assert drift([2.0] * 5 + [1.0] * 60, RULES) == 0
