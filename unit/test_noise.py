from dataclasses import replace

import numpy as np
import pytest

from support.spec import load_spec
from support.speed import Speed
from support.timing import CallSample, PassTiming
from support.verdict import judge

SPEC = load_spec("efficientdet_d0")
CLAUSE, TABLE, CHIP = "throughput_same_chip", SPEC.baselines["310P3-cann6"], "310P3"
# Simulated devices of known speed, looked at as the gate looks at real ones.

#: The batch size with the fewest calls of a full data set, which is the hardest to be sure at.
BATCH, CALLS = 64, 79
#: Largest coefficient of variation of a call.
SPREAD = 0.02


def independent(rng):
    return rng.standard_normal(CALLS)


def correlated(rng, rho=0.5):
    # Each call keeps half of the deviation of the one before.
    last, values = float(rng.standard_normal()), []
    for fresh in (rng.standard_normal(CALLS) * np.sqrt(1 - rho**2)).tolist():
        last = rho * last + fresh
        values.append(last)
    return np.array(values)


def strongly_correlated(rng):
    return correlated(rng, 0.9)


def heavy_tails(rng):
    # Student's t with 5 degrees of freedom has a variance of 5/3.
    return rng.standard_t(5, CALLS) / np.sqrt(5 / 3)


def two_clocks(rng):
    # A clock that changes every four calls or so, some twenty times a pass, and a little noise beside it. A pass that
    # sees it change but a few times may by chance see one of its sides almost alone.
    changes = np.cumsum(rng.random(CALLS) < 1 / 4) + rng.integers(2)
    return 0.9 * (2.0 * (changes % 2) - 1) + np.sqrt(1 - 0.81) * rng.standard_normal(CALLS)


def bursts(rng):
    # Bursts of three slow calls or more; three calls in ten are in one. What happens once or twice in a pass, or not at
    # all, could not be seen in it by any rule.
    begun = rng.random(CALLS + 2) < 1 - 0.7 ** (1 / 3)
    slow = begun[:-2] | begun[1:-1] | begun[2:]
    return 0.8 * (slow - 0.3) / np.sqrt(0.21) + 0.6 * rng.standard_normal(CALLS)


def drifting(rng):
    # From one end of the range to the other, the same in every pass.
    line = np.linspace(1, -1, CALLS)
    return 0.8 * line / line.std() + 0.6 * rng.standard_normal(CALLS)


FAMILIES = (independent, correlated, strongly_correlated, heavy_tails, two_clocks, bursts, drifting)


def verdicts(noise, ratio, runs):
    """Judge devices whose true throughput is `ratio` times the limit; returns words and the most passes of any."""
    limit = SPEC.clauses[CLAUSE].limits["ratio"].number * TABLE.images_per_second[BATCH]
    words, most = [], 0
    for seed in range(runs):
        rng, passes = np.random.default_rng((7, seed)), []

        def timing(batch, looks, rng=rng, passes=passes):
            while len(passes) < looks:
                seconds = BATCH / (limit * ratio) * (1 + SPREAD * noise(rng))
                calls = tuple(CallSample(value, BATCH) for value in seconds.tolist())
                passes.append(PassTiming(CHIP, BATCH, calls, (), "device compute only", False))
            return replace(passes[0], further=tuple(passes[1:looks]))

        speed = Speed(SPEC, CHIP, BATCH, (BATCH,), timing, lambda batch: True)
        words.append(judge(CLAUSE, SPEC.clauses[CLAUSE], speed.vs_baseline(CLAUSE, BATCH, TABLE), batch=BATCH).word)
        most = max(most, len(passes))
    return words, most


def wrong(words):
    # At the very limit neither word is right for certain, so both count.
    return sum(word != "undetermined" for word in words)


@pytest.mark.parametrize("noise", FAMILIES)
def test_at_the_limit_hardly_any_verdict_is_wrong(noise):
    words, most = verdicts(noise, 1.0, 100)
    assert wrong(words) <= 2
    assert most == SPEC.throughput.looks


@pytest.mark.nightly
@pytest.mark.parametrize("noise", FAMILIES)
def test_at_the_limit_at_most_twelve_verdicts_of_two_thousand_are_wrong(noise):
    assert wrong(verdicts(noise, 1.0, 2000)[0]) <= 12


@pytest.mark.parametrize(("ratio", "right"), [(1.03, "accepted"), (0.97, "rejected")])
@pytest.mark.parametrize("noise", [independent, heavy_tails])
def test_three_percent_from_the_limit_independent_noise_is_seen_through(noise, ratio, right):
    words, most = verdicts(noise, ratio, 100)
    assert words.count(right) >= 95
    assert most <= SPEC.throughput.looks


@pytest.mark.parametrize(("ratio", "right"), [(1.1, "accepted"), (0.9, "rejected")])
def test_ten_percent_from_the_limit_a_slow_clock_does_not_hide_the_truth(ratio, right):
    words, _ = verdicts(two_clocks, ratio, 40)
    assert words.count(right) >= 20
    assert set(words) <= {right, "undetermined"}
