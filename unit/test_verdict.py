import errno
import math
from decimal import Decimal

import numpy as np
import pytest

import support.errors
from support.clauses import CATALOGUE, Quantity
from support.errors import ContractViolationError, RejectedEarlyError, SuiteError, UsageError
from support.spec import Clause, Limit, load_spec
from support.verdict import (
    EXIT_STATUS,
    REASONS,
    ClauseVerdict,
    Measurement,
    ReleaseVerdict,
    failure,
    judge,
    outside,
    release_verdict,
    rounded_half_up,
)

SPECS = {name: load_spec(name) for name in ("efficientdet_d0", "shapes_d0")}
GUIDE = SPECS["efficientdet_d0"]

# For every quantity of every clause a value that clean runs give, and one that a broken model, input or suite gives.
# The limits are in the spec; these are not, so that a limit in the wrong place or direction is noticed.
FAULT = (0, 1)
CLEAN_AND_BROKEN = {
    "checkpoint_contract": {"key_violations": FAULT},
    "dataset_pins": {"images": {"efficientdet_d0": (5000, 4999), "shapes_d0": (133, 132)}},
    "input_contract": {"different_tensors": FAULT},
    "graph_contract": {"violations": FAULT},
    "weights_account": {"unaccounted": FAULT, "unused": FAULT, "fold_error": (2.1e-7, 1e-5)},
    "simplified_equals_raw": {"logit_error": (0, 0.01), "box_error": (0, 0.01)},
    "modified_edit": {"differences": FAULT},
    "pad_edit": {"differences": FAULT, "kept_pads": FAULT},
    "stage_tensors": {
        "logit_error": (2.2e-4, 0.01),
        "box_error": (2.6e-5, 0.01),
        "padded_logit_error": (1.31, 4),
        "padded_box_error": (0.30, 1),
        "mixed_logit_error": (0.04, 0.5),
        "mixed_box_error": (0.008, 0.1),
    },
    "om_contract": {"violations": FAULT},
    "stage_ap": {"ap_change": (0, 0.2), "padded_ap_change": (0.1, 2), "mixed_ap_change": (0.006, 1)},
    "reference_ap": {"ap_difference": {"efficientdet_d0": (0.6, 2), "shapes_d0": (0, 0.2)}},
    "batch_invariance": {
        "unmatched": FAULT,
        "score_change": (1e-5, 0.01),
        "box_change": (0.01, 1),
        "slot_error": (1e-4, 0.01),
        "mixed_unmatched": (2e-4, 0.05),
        "mixed_score_p99": (6e-4, 0.05),
        "mixed_box_p99": (0.5, 5),
        "mixed_slot_error": (0.04, 0.5),
    },
    "coverage": {"missing": FAULT, "surplus": FAULT, "padded_scored": FAULT},
    "score_agreement": {
        "unmatched": (0, 0.05),
        "score_p99": (1e-4, 0.05),
        "slope_error": (1e-4, 0.05),
        "outliers": (0, 0.05),
        "different_images": FAULT,
        "different_classes": FAULT,
        "box_shift": (0.1, 0.8),
    },
    "accuracy_guide_floor": {"ap": {"efficientdet_d0": (33.4, 33.3), "shapes_d0": (41.2, 41.1)}},
    "accuracy_guide_drop": {"ap": {"efficientdet_d0": (33.3, 33.2), "shapes_d0": (41.2, 40.7)}},
    "accuracy_measured_drop": {"ap_ratio": (1, 0.985)},
    "suspicious_gain": {"ap_gain": (0.05, 2)},
    "class_size_guard": {"change_p_value": (1, 1e-9), "class_ap_drop": (0, 50), "size_ap_drop": (0, 10)},
    "scorer_agreement": {"ap_difference": (1e-13, 1e-3)},
    "timed_outputs": {"different_images": FAULT, "mixed_different_images": (0, 8)},
    "throughput_fresh_inputs": {"speedup": (0.98, 10)},
    "throughput_vs_310": {"ratio": (1.25, 1.15)},
    "throughput_vs_t4": {"ratio": (1.65, 1.55)},
    "throughput_best_vs_310": {"ratio": (1.25, 1.15)},
    "throughput_best_vs_t4": {"ratio": (1.65, 1.55)},
    "throughput_same_chip": {"ratio": (1, 0.9)},
    "throughput_regression": {"ratio": (1, 0.8)},
}
QUANTITIES = [
    pytest.param(spec, name, key, id=f"{spec}-{name}-{key}")
    for spec in SPECS
    for name, kind in CATALOGUE.items()
    for key in kind.quantities
]


def clean_and_broken(spec, name, key):
    values = CLEAN_AND_BROKEN[name][key]
    return values[spec] if isinstance(values, dict) else values


def judged(spec, name, key, value):
    # All other quantities are clean.
    variant = CATALOGUE[name].quantities[key].variant
    values = {
        other: clean_and_broken(spec, name, other)[0]
        for other, quantity in CATALOGUE[name].quantities.items()
        if quantity.variant in ("", variant)
    }
    measurement = Measurement({**values, key: value}, count=10, expected=10, variant=variant)
    return judge(name, SPECS[spec].clauses[name], measurement)


def worst_inside(limit):
    if limit.rounding is None:
        return limit.number
    assert limit.direction == "min"
    return float(Decimal(repr(limit.number)) - Decimal(5).scaleb(-limit.rounding - 1))


def test_every_quantity_of_the_catalogue_has_a_clean_and_a_broken_value():
    assert {name: set(values) for name, values in CLEAN_AND_BROKEN.items()} == {
        name: set(kind.quantities) for name, kind in CATALOGUE.items()
    }


@pytest.mark.parametrize(("spec", "name", "key"), QUANTITIES)
def test_a_clean_value_is_accepted_and_a_broken_one_is_rejected(spec, name, key):
    clean, broken = clean_and_broken(spec, name, key)
    assert judged(spec, name, key, clean).word == "accepted"
    verdict = judged(spec, name, key, broken)
    assert (verdict.word, verdict.reason) == ("rejected", "")
    assert [reading.name for reading in verdict.readings if not reading.inside] == [key]
    assert verdict.tightest.name == key
    assert verdict.suspect == SPECS[spec].clauses[name].suspect


@pytest.mark.parametrize(("spec", "name", "key"), QUANTITIES)
def test_a_value_at_its_limit_is_accepted_and_the_next_number_beyond_is_rejected(spec, name, key):
    limit = SPECS[spec].clauses[name].limits[key]
    edge = worst_inside(limit)
    beyond = math.nextafter(edge, -math.inf if limit.direction == "min" else math.inf)
    assert judged(spec, name, key, edge).word == "accepted"
    assert judged(spec, name, key, beyond).word == "rejected"


@pytest.mark.parametrize(("spec", "name", "key"), QUANTITIES)
def test_a_value_that_is_not_finite_is_a_fault_of_the_suite(spec, name, key):
    for value in (math.nan, math.inf, -math.inf):
        verdict = judged(spec, name, key, value)
        assert (verdict.word, verdict.reason) == ("undetermined", "internal-error")


# -- rounding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "decimals", "rounded"),
    [
        (33.35, 1, 33.4),
        (33.25, 1, 33.3),
        (33.3499999, 1, 33.3),
        (0.5, 0, 1),
        (1.5, 0, 2),
        (2.5, 0, 3),
        (-0.25, 1, -0.3),
        (np.float64(33.25), 1, 33.3),
    ],
)
def test_halves_are_rounded_away_from_zero_on_the_decimal_digits(value, decimals, rounded):
    assert rounded_half_up(value, decimals) == rounded


def test_a_rounded_limit_shows_the_value_that_was_measured():
    (reading,) = judged("efficientdet_d0", "accuracy_guide_floor", "ap", 33.36).readings
    assert (reading.value, reading.limit, reading.inside) == (33.36, 33.4, True)


def test_only_the_limit_that_says_so_rounds():
    assert judged("efficientdet_d0", "accuracy_guide_floor", "ap", 33.36).word == "accepted"
    assert judged("efficientdet_d0", "accuracy_guide_drop", "ap", 33.2639).word == "rejected"
    assert judged("efficientdet_d0", "accuracy_guide_drop", "ap", 33.2641).word == "accepted"


# -- what is and what is not measured ----------------------------------------------------------------------------------


def limit(number, direction="max", unit="count", **more):
    return Limit(value=number, unit=unit, direction=direction, source="a test", date="2026-01-01", **more)


def coverage(count=10, expected=10, **values):
    values = {"missing": 0, "surplus": 0, "padded_scored": 0} | values
    return Measurement(values, count, expected)


@pytest.mark.parametrize(("count", "expected"), [(9, 10), (0, 10), (0, 0), (-1, -1)])
@pytest.mark.parametrize("missing", [0, 5])
def test_fewer_items_than_expected_are_partial_whatever_was_found(count, expected, missing):
    verdict = judge("coverage", GUIDE.clauses["coverage"], coverage(count, expected, missing=missing), batch=4)
    assert (verdict.word, verdict.reason, verdict.label) == ("undetermined", "partial", "coverage[bs4]")


@pytest.mark.parametrize("values", [{}, {"missing": 0, "surplus": 0}, {"missing": 0, "surplus": 0, "extra": 0}])
def test_a_measurement_must_give_exactly_the_quantities_of_its_clause(values):
    with pytest.raises(
        ValueError, match=r"coverage: measured .*the clause has \['missing', 'padded_scored', 'surplus'\]"
    ):
        judge("coverage", GUIDE.clauses["coverage"], Measurement(values, 10, 10))


def test_a_variant_is_judged_by_its_own_limits_alone():
    clause = GUIDE.clauses["stage_tensors"]
    folded, kept = {"logit_error": 1.0, "box_error": 0.1}, {"padded_logit_error": 1.0, "padded_box_error": 0.1}
    assert judge("stage_tensors", clause, Measurement(folded, 1, 1, variant="folded")).word == "rejected"
    assert judge("stage_tensors", clause, Measurement(kept, 1, 1, variant="kept")).word == "accepted"
    for values, variant in ((folded, "kept"), (kept, "folded"), (folded, ""), (folded | kept, "kept")):
        with pytest.raises(ValueError, match="stage_tensors: measured"):
            judge("stage_tensors", clause, Measurement(values, 1, 1, variant=variant))


def ratio(value, **optimistic):
    return Measurement({"ratio": value}, 10, 10, optimistic=optimistic)


@pytest.mark.parametrize(
    ("value", "optimistic", "word", "reason"),
    [
        (0.96, 0.99, "accepted", ""),
        (0.94, 0.96, "undetermined", "inconclusive"),
        (0.94, math.inf, "undetermined", "inconclusive"),
        (0.93, 0.94, "rejected", ""),
        (0.94, math.nan, "undetermined", "internal-error"),
    ],
)
def test_a_limit_within_the_interval_is_neither_kept_nor_broken(value, optimistic, word, reason):
    verdict = judge("throughput_same_chip", GUIDE.clauses["throughput_same_chip"], ratio(value, ratio=optimistic))
    assert (verdict.word, verdict.reason) == (word, reason)


def test_an_optimistic_value_does_not_hide_another_quantity_that_is_outside():
    values = {"missing": 1, "surplus": 1, "padded_scored": 0}
    measurement = Measurement(values, 10, 10, optimistic={"missing": 0})
    assert judge("coverage", GUIDE.clauses["coverage"], measurement).word == "rejected"


def test_an_optimistic_value_of_an_unknown_quantity_is_refused():
    with pytest.raises(ValueError, match=r"throughput_same_chip: optimistic \['speed'\]"):
        judge("throughput_same_chip", GUIDE.clauses["throughput_same_chip"], ratio(1, speed=2))


def test_the_suspect_of_a_measurement_goes_before_that_of_the_spec():
    red = Measurement({"missing": 1, "surplus": 0, "padded_scored": 0}, 10, 10, suspect="the last batch")
    assert judge("coverage", GUIDE.clauses["coverage"], red).suspect == "the last batch"


@pytest.mark.parametrize(("count", "missing"), [(10, 0), (9, 1), (10, math.nan)])
def test_nothing_is_suspected_where_nothing_was_found(count, missing):
    assert judge("coverage", GUIDE.clauses["coverage"], coverage(count, missing=missing)).suspect == ""


def test_the_tightest_reading_is_the_relatively_nearest_to_its_limit(monkeypatch):
    kind = CATALOGUE["coverage"]
    quantities = {"far": Quantity("count", "max"), "near": Quantity("count", "max")}
    monkeypatch.setattr("support.verdict.CATALOGUE", {"coverage": type(kind)("gate", True, quantities)})
    clause = Clause(title="t", modes=("build",), suspect="s", limits={"far": limit(10), "near": limit(1000)})
    verdict = judge("coverage", clause, Measurement({"far": 5, "near": 990}, 1, 1))
    assert verdict.tightest.name == "near"
    assert verdict.tightest.margin == 10


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_verdict_survives_its_way_between_processes(value):
    verdict = judge("coverage", GUIDE.clauses["coverage"], coverage(missing=value), batch=8)
    text = verdict.model_dump_json()
    assert ClauseVerdict.model_validate_json(text).model_dump_json() == text
    assert repr(ClauseVerdict.model_validate_json(text)) == repr(verdict)


# -- errors ------------------------------------------------------------------------------------------------------------

ERRORS = [getattr(support.errors, name) for name in support.errors.__all__]


def test_an_early_rung_rejects_one_clause_and_leaves_the_others_unmeasured():
    error = RejectedEarlyError("16 images were enough", required="less", remedy="sigmoid; --rungs=off")

    judged, unmeasured = failure("score_agreement", error, batch=4), failure("accuracy_guide_floor", error, batch=4)

    assert (judged.word, judged.reason, judged.suspect) == ("rejected", "", "sigmoid; --rungs=off")
    assert (unmeasured.word, unmeasured.reason, unmeasured.suspect) == ("undetermined", "rejected-early", "")
    assert judged.findings == unmeasured.findings == (str(error),)
    release = release_verdict(
        [judged, unmeasured], [(judged.clause, 4), (unmeasured.clause, 4)], scope="gate", subject="kit on cpu"
    )
    assert release.line == "rejected: kit on cpu (not a release): rejected-early"


def test_only_what_is_outside_its_limit_is_told():
    limits = load_spec("shapes_d0").rungs.first
    at_limit = {name: limit.number for name, limit in limits.items()}

    assert outside(limits, at_limit) == ()
    (reading,) = outside(limits, {**at_limit, "different": 0.5})
    assert (reading.name, reading.value, reading.limit, reading.unit) == ("different", 0.5, 0.15, "fraction")
    with pytest.raises(KeyError, match="ruined_images"):
        outside(limits, {"different": 0})


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_leads_to_a_known_word(error):
    verdict = failure("coverage", error("what", required="this", remedy="do that"), batch=1)
    if issubclass(error, ContractViolationError):
        assert (verdict.word, verdict.suspect) == ("rejected", "do that")
    elif issubclass(error, UsageError):
        assert (verdict.word, verdict.reason) == ("undetermined", "internal-error")
    else:
        assert (verdict.word, verdict.reason) == ("undetermined", error.reason)
        assert error.reason in REASONS
    assert verdict.findings == ("what\n  required: this\n  what to do: do that",)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "full"), "no-space"),
        (OSError(errno.EDQUOT, "quota"), "no-space"),
        (OSError(errno.EIO, "broken disk"), "internal-error"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(0), "internal-error"),
        (ZeroDivisionError("division by zero"), "internal-error"),
        (AssertionError(), "internal-error"),
    ],
)
def test_an_error_that_nobody_foresaw_is_never_a_rejection(error, reason):
    verdict = failure("coverage", error)
    assert (verdict.word, verdict.reason) == ("undetermined", reason)
    assert verdict.findings[0].startswith(type(error).__name__)


def test_an_error_with_an_unknown_reason_is_a_fault_of_the_suite():
    class StrangeError(SuiteError):
        reason = "accepted"

    assert failure("coverage", StrangeError("strange")).reason == "internal-error"


# -- the verdict of the session ----------------------------------------------------------------------------------------


def verdict(clause, word="accepted", batch=None, reason="", **more):
    return ClauseVerdict(clause=clause, batch=batch, word=word, reason=reason, **more)


def release(verdicts, required=None, **more) -> ReleaseVerdict:
    required = [(v.clause, v.batch) for v in verdicts] if required is None else required
    return release_verdict(verdicts, required, scope="gate", subject="d0 on cpu", **more)


GREEN = verdict("coverage", batch=4)
NOT_MEASURED = verdict("pad_edit", "undetermined", reason="no-data")
RED = verdict("graph_contract", "rejected", batch=1)


def test_all_required_clauses_accepted_are_accepted():
    found = release([GREEN, verdict("pad_edit")], is_release=True)
    assert (found.word, found.reasons, found.exit_status) == ("accepted", (), 0)
    assert found.line == "accepted: d0 on cpu"


@pytest.mark.parametrize(
    ("verdicts", "word", "status"),
    [
        ([GREEN, NOT_MEASURED], "undetermined", 10),
        ([RED, GREEN], "rejected", 1),
        ([RED, NOT_MEASURED, GREEN], "rejected", 1),
    ],
)
def test_the_worst_clause_decides(verdicts, word, status):
    for order in (verdicts, verdicts[::-1]):
        found = release(order)
        assert (found.word, found.exit_status) == (word, status)


def test_a_required_clause_that_was_not_measured_is_undetermined():
    found = release([GREEN], [("coverage", 4), ("coverage", 8)])
    assert (found.word, found.reasons) == ("undetermined", ("partial",))
    assert [(v.label, v.word, v.reason) for v in found.clauses] == [
        ("coverage[bs4]", "accepted", ""),
        ("coverage[bs8]", "undetermined", "partial"),
    ]


@pytest.mark.parametrize("verdicts", [[], [GREEN]])
def test_an_empty_set_of_required_clauses_is_never_accepted(verdicts):
    found = release(verdicts, [])
    assert (found.word, found.reasons) == ("undetermined", ("partial",))


def test_a_verdict_of_no_required_clause_counts_if_it_is_bad():
    assert release([GREEN, RED], [("coverage", 4)]).word == "rejected"


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_verdicts_of_one_clause_the_worse_counts(order):
    twice = [verdict("coverage", "rejected", batch=4), GREEN][::order]
    assert release(twice).word == "rejected"


def test_a_reason_of_the_session_keeps_it_from_being_accepted():
    found = release([GREEN], session_reasons=["interrupted", "interrupted"])
    assert (found.word, found.reasons, found.exit_status) == ("undetermined", ("interrupted",), 10)
    assert found.line == "undetermined: d0 on cpu (not a release): interrupted"


def test_a_reason_of_the_session_explains_what_is_missing_and_hides_no_rejection():
    found = release([RED], [("coverage", 4)], session_reasons=["interrupted"])
    assert found.word == "rejected"
    assert [v.reason for v in found.clauses if v.clause == "coverage"] == ["interrupted"]


def test_informative_clauses_do_not_decide():
    finding = verdict("accuracy_measured_drop", "rejected", batch=4, informative=True)
    found = release([GREEN, finding])
    assert (found.word, found.reasons) == ("accepted", ())
    assert finding in found.clauses


def test_findings_alone_accept_nothing():
    found = release([verdict("coverage", batch=4, informative=True)])
    assert (found.word, found.reasons) == ("undetermined", ("partial",))


@pytest.mark.parametrize("order", [1, -1])
def test_a_deciding_verdict_goes_before_a_worse_one_that_only_informs(order):
    both = [verdict("coverage", "rejected", batch=4, informative=True), GREEN][::order]
    assert release(both).word == "accepted"


def test_clauses_are_shown_in_the_order_of_the_catalogue():
    found = release([verdict("throughput_same_chip", batch=1), verdict("coverage", batch=64), GREEN, RED])
    assert [v.label for v in found.clauses] == [
        "graph_contract[bs1]",
        "coverage[bs4]",
        "coverage[bs64]",
        "throughput_same_chip[bs1]",
    ]


def test_a_scope_that_is_not_the_gate_is_named():
    found = release_verdict([GREEN], [("coverage", 4)], scope="throughput", subject="d0 on T4")
    assert found.line == "accepted: throughput of d0 on T4 (not a release)"


def test_exit_statuses_do_not_collide_with_those_of_pytest():
    assert EXIT_STATUS == {"accepted": 0, "rejected": 1, "undetermined": 10}
    assert EXIT_STATUS["undetermined"] not in {int(code) for code in pytest.ExitCode}


def doubted(ratio, doubt="implausible", expected=8):
    clause = load_spec("efficientdet_d0").clauses["throughput_same_chip"]
    return judge("throughput_same_chip", clause, Measurement({"ratio": ratio}, 8, expected, doubt=doubt), batch=4)


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_a_number_that_is_not_believed_neither_accepts_nor_rejects(ratio):
    found = doubted(ratio)
    assert (found.word, found.reason, found.readings[0].value) == ("undetermined", "implausible", ratio)


def test_a_partial_measurement_is_partial_whatever_else_is_doubted():
    assert doubted(1.5, expected=9).reason == "partial"


def test_a_doubt_must_be_a_reason_that_is_known():
    with pytest.raises(ValueError, match="'hunch' is no reason"):
        doubted(1.5, doubt="hunch")
