from dataclasses import replace

import pytest

from support.rates import rates
from support.timing import CallSample, PassTiming, RepeatSamples

CALLS = tuple(CallSample(0.1, 4, copies=0.1) for _ in range(10))
NPU = PassTiming("310P3", 4, CALLS, (), "device compute only", False, pass_seconds=4.0)
CPU = replace(NPU, calls=tuple(replace(call, copies=None) for call in CALLS), includes_copies=True)


def test_an_npu_tells_all_three_definitions():
    found = rates(NPU)
    assert (found.compute, found.with_copies, found.end_to_end) == pytest.approx((40, 20, 10))
    assert str(found) == "computing 40.000, with copies 20.000, end to end 10.000"
    assert list(found.contradictions(0.01)) == []


def test_a_timer_that_includes_copies_tells_nothing_of_computing_alone():
    assert (rates(CPU).compute, rates(CPU).with_copies) == (None, pytest.approx(40))


def test_copies_that_some_calls_do_not_tell_are_unknown():
    assert rates(replace(NPU, calls=(*CALLS[1:], CallSample(0.1, 4)))).with_copies is None


def test_pure_inference_is_that_of_one_image_repeated():
    assert rates(replace(NPU, repeats=RepeatSamples((9.0,), (0.1, 0.1)))).pure == pytest.approx(40)
    assert rates(NPU).pure is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pass_seconds": 1.9}, "21.053 images/s end to end, 20.000 with copies"),
        (
            {"calls": tuple(CallSample(0.1, 4, copies=-0.05) for _ in range(10))},
            "80.000 images/s with copies, 40.000 c",
        ),
        ({"calls": tuple(CallSample(0.5, 4) for _ in range(10))}, "10.000 images/s end to end, 8.000 computing alone"),
    ],
)
def test_clocks_cannot_say_that_more_work_takes_less_time(changed, message):
    (found,) = rates(replace(NPU, **changed)).contradictions(0.01)
    assert f"the clocks contradict each other: {message}" in found


def test_clocks_of_two_devices_may_differ_a_little():
    assert list(rates(replace(NPU, pass_seconds=1.99)).contradictions(0.01)) == []
    assert list(rates(replace(NPU, pass_seconds=1.97)).contradictions(0.01)) != []
