import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.errors import NoTimingError, WrongDataError
from support.timing import CallSample, PassTiming, estimate, student_t


def timing(*seconds, batch=4, tail=None):
    images = [batch] * (len(seconds) - 1) + [tail or batch]
    calls = tuple(CallSample(value, count) for value, count in zip(seconds, images, strict=True))
    return PassTiming("310P3", batch, calls, (9.0, 8.0), "device compute only", False)


def estimated(*seconds, **options):
    return estimate(timing(*seconds, **options), confidence=0.95, minimum_calls=2)


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


def test_throughput_is_batch_size_over_mean_call():
    assert estimated(0.1, 0.2, 0.3, 0.4).images_per_second == pytest.approx(4 / 0.25)


def test_the_interval_is_students_interval_of_the_mean_call():
    found = estimated(0.1, 0.2)
    half = 12.7062047364 * math.sqrt(0.005) / math.sqrt(2)
    assert found.lower == pytest.approx(4 / (0.15 + half))
    assert found.upper == math.inf  # the half width is larger than the mean


def test_equal_calls_have_an_interval_of_no_width():
    found = estimated(0.25, 0.25, 0.25)
    assert found.lower == found.images_per_second == found.upper == 16


def test_a_padded_tail_costs_the_device_a_whole_batch():
    found = estimated(0.25, 0.25, tail=1)
    assert found.images_per_second == 16
    assert (found.images, found.real_images_per_second) == (5, 10)


def test_warm_up_calls_do_not_count():
    assert estimated(0.25, 0.25).calls == 2


def test_percentiles_are_of_the_latency_of_a_call():
    found = estimated(*(value / 1000 for value in range(1, 102)))
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((51, 91, 100))


@pytest.mark.parametrize("seconds", [0.0, -0.1, math.nan, math.inf])
def test_an_impossible_duration_is_refused(seconds):
    with pytest.raises(NoTimingError, match=f"batch 4 on 310P3: call 1 took {seconds} s"):
        estimated(0.1, seconds)


@pytest.mark.parametrize("images", [-1, 5])
def test_an_impossible_number_of_images_is_refused(images):
    with pytest.raises(NoTimingError, match=f"call 1 has {images} images"):
        estimated(0.1, 0.1, tail=images)


@pytest.mark.parametrize(("calls", "minimum", "required"), [(0, 2, 2), (1, 1, 2), (4, 5, 5)])
def test_too_few_calls_are_refused(calls, minimum, required):
    with pytest.raises(NoTimingError, match=f"{calls} timed calls .*\n  required: at least {required}"):
        estimate(
            timing(*[0.1] * calls) if calls else PassTiming("cpu", 4, (), (), "", True),
            confidence=0.95,
            minimum_calls=minimum,
        )


def test_a_timing_survives_json():
    whole = timing(0.1, 1 / 3, 2e-9, tail=3)
    assert PassTiming.from_json(json.loads(json.dumps(whole.as_json()))) == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"calls": [{"seconds": "fast", "images": 4}]}, "calls.0.seconds"),
        ({"calls": [{"seconds": 0.1}]}, "calls.0.images"),
        ({"batch": None}, "batch"),
    ],
)
def test_a_damaged_timing_is_refused(damage, message):
    with pytest.raises(WrongDataError, match=f"timing samples: {message}"):
        PassTiming.from_json(timing(0.1, 0.1).as_json() | damage)


def test_a_timing_without_a_field_is_refused():
    record = timing(0.1, 0.1).as_json()
    del record["includes_copies"]
    with pytest.raises(WrongDataError, match="includes_copies"):
        PassTiming.from_json(record)
