import json
import math

import numpy as np
import pytest

from support.errors import NoTimingError, WrongDataError
from support.load import LoadSample
from support.spec import load_spec
from support.timing import CallSample, PassTiming, RepeatSamples, estimate

RULES = load_spec("efficientdet_d0").throughput


def timing(*seconds, batch=4, tail=None, **fields):
    images = [batch] * (len(seconds) - 1) + [tail or batch]
    calls = tuple(CallSample(value, count) for value, count in zip(seconds, images, strict=True))
    return PassTiming("310P3", batch, calls, (9.0, 8.0), "device compute only", False, **fields)


def estimated(*seconds, further=(), **options):
    passes = tuple(timing(*one) for one in further)
    return estimate(timing(*seconds, further=passes, **options), RULES)


def noisy(seed, *, calls=1250, mean=0.1, spread=0.01):
    return mean * (1 + spread * np.random.default_rng(seed).standard_normal(calls))


def test_throughput_is_batch_size_over_mean_call():
    assert estimated(0.1, 0.2, 0.3, 0.4).images_per_second == pytest.approx(4 / 0.25)


def test_the_interval_of_few_calls_is_students_interval_of_the_mean_call():
    found = estimated(0.1, 0.2)
    half = 12.7062047364 * math.sqrt(0.005) / math.sqrt(2)
    assert found.lower == pytest.approx(4 / (0.15 + half))
    assert found.upper == math.inf  # the half width is larger than the mean
    assert (found.blocks, found.block_calls, found.autocorrelation) == (2, 1, None)


def test_equal_calls_have_an_interval_of_no_width():
    found = estimated(0.25, 0.25, 0.25)
    assert found.lower == found.images_per_second == found.upper == found.judged_lower == found.judged_upper == 16


def test_a_pass_of_many_calls_is_cut_into_blocks():
    found = estimated(*noisy(1))
    assert (found.blocks, found.block_calls) == (RULES.blocks, 62)
    assert found.judged_lower < found.lower < found.images_per_second < found.upper < found.judged_upper


def test_a_pass_that_is_shorter_than_its_own_memory_bounds_nothing():
    found = estimated(*np.linspace(0.1, 0.2, 60))
    assert (found.blocks, found.lower, found.upper) == (1, 0, math.inf)


def test_a_padded_tail_costs_the_device_a_whole_batch():
    found = estimated(0.25, 0.25, tail=1)
    assert found.images_per_second == 16
    assert (found.images, found.real_images_per_second) == (5, 10)


def test_warm_up_calls_do_not_count():
    assert estimated(0.25, 0.25).calls == 2


def test_percentiles_are_of_the_latency_of_a_call():
    found = estimated(*(value / 1000 for value in range(1, 102)))
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((51, 91, 100))


def test_further_passes_narrow_the_interval():
    one, three = estimated(*noisy(1)), estimated(*noisy(1), further=(noisy(2), noisy(3)))
    assert (three.passes, three.calls, three.blocks, three.images) == (3, 3750, 60, 5000)
    assert three.upper - three.lower < 0.7 * (one.upper - one.lower)


def test_passes_that_disagree_are_judged_on_the_interval_that_covers_all_of_them():
    slow, fast = noisy(1), noisy(2, mean=0.09)
    alone = [estimated(*one) for one in (slow, fast)]
    found = estimated(*slow, further=(fast,))
    assert found.judged_lower == alone[0].judged_lower
    assert found.judged_upper == alone[1].judged_upper


def test_the_first_looks_are_those_passes_alone():
    whole = timing(0.1, 0.2, further=(timing(0.3, 0.4), timing(0.5, 0.6)))
    assert [len(whole.looks(count).passes) for count in (1, 2, 3)] == [1, 2, 3]
    assert whole.looks(1) == timing(0.1, 0.2)


@pytest.mark.parametrize("seconds", [0.0, -0.1, math.nan, math.inf])
def test_an_impossible_duration_is_refused(seconds):
    with pytest.raises(NoTimingError, match=f"batch 4 on 310P3: call 1 took {seconds} s"):
        estimated(0.1, seconds)
    with pytest.raises(NoTimingError, match=f"batch 4 on 310P3: call 1 took {seconds} s"):
        estimated(0.1, 0.1, further=((0.1, seconds),))


@pytest.mark.parametrize("images", [-1, 5])
def test_an_impossible_number_of_images_is_refused(images):
    with pytest.raises(NoTimingError, match=f"call 1 has {images} images"):
        estimated(0.1, 0.1, tail=images)


@pytest.mark.parametrize(("calls", "minimum", "required"), [(0, 2, 2), (1, 1, 2), (4, 5, 5)])
def test_too_few_calls_are_refused(calls, minimum, required):
    measured = timing(*[0.1] * calls) if calls else PassTiming("cpu", 4, (), (), "", True)
    with pytest.raises(NoTimingError, match=f"{calls} timed calls .*\n  required: at least {required}"):
        estimate(measured, RULES.model_copy(update={"minimum_calls": minimum}))


def whole():
    return timing(
        *(0.1, 1 / 3, 2e-9),
        tail=3,
        pass_seconds=0.7,
        load=(LoadSample("before", clock=960.0), LoadSample("after", throttled="hot")),
        repeats=RepeatSamples((0.1,), (0.1, 1 / 7)),
        further=(timing(0.2, 0.3),),
    )


def test_a_timing_survives_json():
    assert PassTiming.from_json(json.loads(json.dumps(whole().as_json()))) == whole()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"calls": [{"seconds": "fast", "images": 4}]}, "calls.0.seconds"),
        ({"calls": [{"seconds": 0.1}]}, "calls.0.images"),
        ({"batch": None}, "batch"),
        ({"load": [{"when": "later"}]}, "load.0.when"),
        ({"repeats": {"fresh": [0.1]}}, "repeats.repeated"),
        ({"further": [{"chip": "cpu"}]}, "further.0.batch"),
    ],
)
def test_a_damaged_timing_is_refused(damage, message):
    with pytest.raises(WrongDataError, match=f"timing samples: {message}"):
        PassTiming.from_json(whole().as_json() | damage)


def test_a_timing_without_a_field_is_refused():
    record = timing(0.1, 0.1).as_json()
    del record["includes_copies"]
    with pytest.raises(WrongDataError, match="includes_copies"):
        PassTiming.from_json(record)
