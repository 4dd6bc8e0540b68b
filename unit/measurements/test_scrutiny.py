from dataclasses import replace

import numpy as np
import pytest

from support.errors import NoTimingError
from support.load import LoadSample
from support.measurements.scrutiny import fresh_inputs, scrutinised
from support.measurements.throughput import vs_baseline
from support.spec import load_spec
from support.timing import CallSample, PassTiming, RepeatSamples, estimate
from support.verdict import judge

SPEC = load_spec("efficientdet_d0")
RULES = SPEC.throughput
CLAUSE = "throughput_same_chip"
TABLE = SPEC.baselines["310P3-cann6"]
#: Images a second at batch 4 in that table.
PUBLISHED = 260


def timing(rate=PUBLISHED, *, repeated=1.0, spread=0.01, calls=1250, **changes):
    """One image takes `repeated` times as long as new ones."""
    seconds = 4 / rate * (1 + spread * np.random.default_rng(6).uniform(-1, 1, calls))
    whole = PassTiming(
        "310P3",
        4,
        tuple(CallSample(value, 4) for value in seconds.tolist()),
        (0.1,) * 6,
        "device compute only",
        False,
        pass_seconds=1.1 * float(seconds.sum()),
        repeats=RepeatSamples(tuple(seconds[:16].tolist()), tuple((repeated * seconds[:20]).tolist())),
    )
    return replace(whole, **changes)


def scrutiny(whole, *, agree=True, chip="310P3", miscounted=1):
    found = estimate(whole, RULES)
    figure = miscounted * found.images_per_second
    measurement = vs_baseline(found, TABLE, images=5000)
    return scrutinised(measurement, whole, SPEC, figure=figure, chip=chip, outputs_agree=lambda: agree)


def verdict(whole, **options):
    found = judge(CLAUSE, SPEC.clauses[CLAUSE], scrutiny(whole, **options), batch=4)
    return found.word, found.reason


# -- one image repeated ------------------------------------------------------------------------------------------------


def test_a_runtime_that_computes_is_no_faster_on_a_repeated_image():
    found = fresh_inputs(timing(), RULES)
    assert found.values["speedup"] < 1.02
    assert judge("throughput_fresh_inputs", SPEC.clauses["throughput_fresh_inputs"], found, batch=4).word == "accepted"
    assert (found.count, found.expected) == (20, RULES.repeat_calls)


@pytest.mark.parametrize("repeated", [0.85, 0.5, 0.01])
def test_a_runtime_that_keeps_outputs_is_rejected_and_its_throughput_not_believed(repeated):
    whole = timing(repeated=repeated)
    found = fresh_inputs(whole, RULES)
    assert judge("throughput_fresh_inputs", SPEC.clauses["throughput_fresh_inputs"], found, batch=4).word == "rejected"
    assert verdict(whole) == ("undetermined", "implausible")
    assert "outputs are kept: one image repeated is at least" in scrutiny(whole).findings[0]


def test_other_load_on_all_but_the_repeated_image_makes_no_cache():
    # Every new image but one took twice as long.
    slow = RepeatSamples((4 / PUBLISHED,), (4 / PUBLISHED,) * 20)
    whole = timing(PUBLISHED / 2, repeats=slow)
    assert fresh_inputs(whole, RULES).values["speedup"] <= 1


def test_a_difference_within_the_noise_of_a_short_pass_is_none():
    few = timing(spread=0.3, calls=3, repeats=RepeatSamples((0.016,), (0.008,)))
    assert fresh_inputs(few, RULES).values["speedup"] < 1


@pytest.mark.parametrize(
    "whole",
    [timing(repeats=None), timing(repeats=RepeatSamples((), (0.1,))), timing(repeats=RepeatSamples((0.1,), ()))],
)
def test_nothing_repeated_is_nothing_measured(whole):
    with pytest.raises(NoTimingError, match="no image was repeated beside new ones"):
        fresh_inputs(whole, RULES)


def test_fewer_repeated_calls_than_asked_for_are_partial():
    found = fresh_inputs(timing(repeats=RepeatSamples((0.016,) * 4, (0.016,))), RULES)
    clause = SPEC.clauses["throughput_fresh_inputs"]
    assert judge("throughput_fresh_inputs", clause, found, batch=4).reason == "partial"


# -- too fast ----------------------------------------------------------------------------------------------------------


def test_a_plausible_throughput_needs_no_proof():
    assert verdict(timing(PUBLISHED * 2.4, repeats=None), agree=False) == ("accepted", "")


@pytest.mark.parametrize(
    ("changes", "agree", "unproven"),
    [
        ({"repeats": None}, True, "that new images take as long as a repeated one"),
        ({}, False, "that the outputs are those of an independent pass"),
    ],
)
def test_a_throughput_beyond_the_plausible_is_not_believed_before_both_proofs(changes, agree, unproven):
    whole = timing(PUBLISHED * 2.6, **changes)
    assert verdict(whole, agree=agree) == ("undetermined", "implausible")
    assert (
        f"2.60 times the published 260 of a 310P3, and it is not shown {unproven}"
        in (scrutiny(whole, agree=agree).findings[0])
    )


def test_both_proofs_clear_it():
    assert verdict(timing(PUBLISHED * 2.6)) == ("accepted", "")
    assert any("show it to be real" in finding for finding in scrutiny(timing(PUBLISHED * 2.6)).findings)


def test_a_chip_without_a_published_table_has_no_plausible_limit():
    assert verdict(timing(PUBLISHED * 100, repeats=None), agree=False, chip="cpu") == ("accepted", "")


def test_clocks_that_contradict_each_other_are_not_believed():
    whole = timing(pass_seconds=1.0)
    assert verdict(whole) == ("undetermined", "implausible")
    assert "the clocks contradict each other" in scrutiny(whole).findings[0]
    assert verdict(timing(further=(whole,))) == ("undetermined", "implausible")


# -- too slow ----------------------------------------------------------------------------------------------------------

HOT = (LoadSample("before"), LoadSample("during", throttled="thermal"), LoadSample("after"))


@pytest.mark.parametrize("miscounted", [0.25, 1.01, 4])
def test_a_figure_that_the_samples_do_not_give_is_not_believed(miscounted):
    assert scrutiny(timing(), miscounted=miscounted).findings[0].split(", which")[0].endswith("follow from the samples")
    assert verdict(timing(), miscounted=miscounted) == ("undetermined", "implausible")


def test_a_throttled_pass_that_is_too_slow_proves_nothing():
    assert verdict(timing(PUBLISHED / 2)) == ("rejected", "")
    assert verdict(timing(PUBLISHED / 2, load=HOT)) == ("undetermined", "inconclusive")
    assert "throttled: thermal" in scrutiny(timing(load=HOT)).findings


def test_a_throttled_pass_that_is_fast_enough_all_the_same_is_accepted():
    assert verdict(timing(load=HOT)) == ("accepted", "")


# -- what is told ------------------------------------------------------------------------------------------------------


def test_every_definition_of_throughput_is_told():
    (told,) = [finding for finding in scrutiny(timing()).findings if finding.startswith("images/s by definition")]
    assert "computing 259.9" in told
    assert "end to end 23" in told
    assert "one image repeated 2" in told


def test_a_pass_that_never_gets_steady_says_so():
    whole = timing()
    calls = whole.calls
    slow = tuple(replace(call, seconds=call.seconds * 1.1) for call in calls[:250])
    drifting = replace(whole, calls=(*slow, *calls[250:]), warm_up=tuple(np.linspace(2, 1, RULES.warm_up_most)))
    told = [finding for finding in scrutiny(drifting).findings if finding.startswith("never steady")]
    assert told[0] == f"never steady: times still changed after {RULES.warm_up_most} calls of warm-up"
    assert "calls at the head were 10." in told[1]
    assert "slower" in told[1]
    assert not any(finding.startswith("never steady") for finding in scrutiny(timing()).findings)


def test_findings_of_several_passes_name_theirs():
    findings = scrutiny(timing(further=(timing(load=HOT, repeats=None),))).findings
    assert "pass 2: throttled: thermal" in findings
    assert any(finding.startswith("pass 1: images/s by definition") for finding in findings)


def test_a_first_call_that_has_the_input_of_the_warm_up_hides_no_cache():
    whole = timing(repeated=0.01)
    first = replace(whole.calls[0], seconds=0.01 * whole.calls[0].seconds)
    found = fresh_inputs(replace(whole, calls=(first, *whole.calls[1:])), RULES)
    assert found.values["speedup"] > 50
