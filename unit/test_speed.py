from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.baselines import SavedThroughput, throughput_record
from support.spec import load_spec
from support.speed import Speed
from support.timing import CallSample, PassTiming, estimate
from support.verdict import judge

SPEC = load_spec("efficientdet_d0")
IMAGES = 5000
TABLE = SPEC.baselines["310P3-cann6"]


class Device:
    """Gives pass after pass, all at the same rate, each with its own noise."""

    def __init__(self, rates, *, spread=0.02, most=9):
        self._rates, self._spread, self._most = rates, spread, most
        self.asked = []

    def __call__(self, batch, looks):
        self.asked.append((batch, looks))
        first, *further = (self._one(batch, number) for number in range(looks))
        return replace(first, further=tuple(further)) if looks <= self._most else None

    def _one(self, batch, number):
        calls = -(-IMAGES // batch)
        noise = np.random.default_rng((batch, number)).standard_normal(calls)
        seconds = batch / self._rates[batch] * (1 + self._spread * (noise - noise.mean()))
        counts = [batch] * (calls - 1) + [IMAGES - batch * (calls - 1)]
        pairs = zip(seconds.tolist(), counts, strict=True)
        return PassTiming("310P3", batch, tuple(CallSample(*pair) for pair in pairs), (), "device compute only", False)


def speed(device, batches=(4, 64)):
    spec = SPEC.model_copy(update={"batch_sizes": batches})
    return Speed(spec, "310P3", IMAGES, batches, device, lambda batch: True)


def same_chip(device, batch=64):
    name = "throughput_same_chip"
    found = judge(name, SPEC.clauses[name], speed(device).vs_baseline(name, batch, TABLE), batch=batch)
    return found.word, found.reason


#: The limit of the same chip at batch 64, in images per second.
LIMIT = 0.95 * 238


@pytest.mark.parametrize(("rate", "word"), [(1.05 * LIMIT, "accepted"), (0.95 * LIMIT, "rejected")])
def test_one_pass_decides_what_is_clear(rate, word):
    device = Device({64: rate})
    assert same_chip(device) == (word, "")
    assert device.asked == [(64, 1)]


def test_a_rate_at_the_limit_is_looked_at_three_times_and_stays_inconclusive():
    device = Device({64: LIMIT})
    assert same_chip(device) == ("undetermined", "inconclusive")
    assert [looks for _, looks in device.asked] == [1, 2, 3]


def test_a_device_that_is_elsewhere_is_looked_at_once():
    device = Device({64: LIMIT}, most=1)
    assert same_chip(device) == ("undetermined", "inconclusive")


def test_only_the_best_batch_size_is_looked_at_again():
    name = "throughput_best_vs_310"
    device = Device({4: 40, 64: 1.2 * SPEC.baselines["310-cann5"].best})
    found = speed(device).best_vs_baseline(name, SPEC.baselines["310-cann5"])
    assert judge(name, SPEC.clauses[name], found).reason == "inconclusive"
    assert {looks for batch, looks in device.asked if batch == 4} == {1}
    assert max(looks for batch, looks in device.asked if batch == 64) == 3
    assert "in 3 passes" in found.findings[0]


def test_a_regression_is_looked_at_again_too():
    device, name = Device({64: 90.0}), "throughput_regression"
    record = throughput_record(estimate(Device({64: 100.0})(64, 1), SPEC.throughput), spec=SPEC.name, machine="rack7")
    saved = SavedThroughput(record, Path("Linux/0001_run.json"), "2026-11-24", accepted=True)
    found = speed(device).regression(64, saved)
    assert judge(name, SPEC.clauses[name], found, batch=64).reason == "inconclusive"
    assert [looks for _, looks in device.asked] == [1, 2, 3]


def test_the_official_figure_is_that_of_the_first_pass():
    device = Device({64: 100.0})
    found = speed(device).estimate(64)
    assert (found.passes, found.images_per_second) == (1, pytest.approx(100))
