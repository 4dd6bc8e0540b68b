import numpy as np
import pytest

from support.errors import ContractViolationError
from support.heads import Heads
from support.measurements.tensors import simplified_equals_raw, slot_error, stage_tensors, tensor_distance
from support.spec import load_spec
from support.verdict import judge

SPEC = load_spec("shapes_d0")
SIDES = (8, 4, 2)


def _heads(count=2, seed=0, names=()):
    random = np.random.default_rng(seed)
    return Heads(*(_levels(random, count, channels) for channels in (18, 36)), names)


def _levels(random, count, channels):
    return tuple(random.normal(-4, 1, (count, channels, side, side)).astype(np.float32) for side in SIDES)


def _changed(heads, kind, level, where, by):
    parts = {"classes": list(heads.classes), "boxes": list(heads.boxes)}
    parts[kind][level] = parts[kind][level].copy()
    parts[kind][level][where] += np.float32(by)
    return Heads(tuple(parts["classes"]), tuple(parts["boxes"]), heads.names)


def _judged(name, measurement):
    return judge(name, SPEC.clauses[name], measurement, batch=2)


def test_equal_heads_have_no_distance():
    distance = tensor_distance(_heads(), _heads())
    assert (distance.logit_error, distance.box_error, distance.images) == (0, 0, 2)


def test_the_logit_error_is_the_largest_difference_of_any_image_and_level():
    candidate = _changed(_heads(), "classes", 1, (1, 5, 3, 3), 0.25)
    candidate = _changed(candidate, "classes", 0, (0, 0, 0, 0), -0.125)
    distance = tensor_distance(_heads(), candidate)
    assert distance.logit_error == pytest.approx(0.25, rel=1e-5)
    assert distance.box_error == 0
    assert distance.findings[:2] == (
        "class head 4x4: 0.25 logit (image slot 1)",
        "class head 8x8: 0.125 logit (image slot 0)",
    )
    assert len(distance.findings) == 6


def test_the_box_error_is_relative_to_the_largest_code_of_the_same_image_and_level():
    reference = _heads()
    reference = _changed(reference, "boxes", 2, (0, 0, 0, 0), 96.0 - reference.boxes[2][0, 0, 0, 0])
    large = np.abs(reference.boxes[2][1]).max()
    # The image with large codes may be off by more than the other one.
    candidate = _changed(_changed(reference, "boxes", 2, (0, 0, 0, 0), 0.96), "boxes", 2, (1, 1, 1, 1), 0.5)
    distance = tensor_distance(reference, candidate)
    assert distance.box_error == pytest.approx(0.5 / large, rel=1e-5)
    assert distance.findings[0].endswith("relative (image slot 1)")


def test_the_error_of_codes_below_one_is_not_blown_up():
    zeros = Heads(_heads().classes, tuple(np.zeros_like(level) for level in _heads().boxes))
    assert tensor_distance(zeros, _changed(zeros, "boxes", 0, (0, 0, 0, 0), 0.5)).box_error == 0.5


def test_findings_name_the_outputs_of_the_candidate():
    names = tuple(f"out{place}" for place in range(6))
    candidate = _changed(_heads(names=names), "classes", 2, (0, 0, 0, 0), 1)
    assert tensor_distance(_heads(), candidate).findings[0] == (
        "output 'out2' (class head 2x2): 1 logit (image slot 0)"
    )


def test_heads_of_another_number_of_images_are_never_compared():
    with pytest.raises(
        ContractViolationError, match=r"class float32 \[1, 18, 8, 8\](.|\n)*required: class float32 \[2, 18"
    ):
        tensor_distance(_heads(2), _heads(1))


def test_a_missing_level_is_never_passed_over():
    short = Heads(_heads().classes[:2], _heads().boxes)
    with pytest.raises(ContractViolationError, match="the heads to compare are"):
        tensor_distance(_heads(), short)


def test_levels_in_another_order_are_never_compared():
    with pytest.raises(ContractViolationError, match="the heads to compare are"):
        tensor_distance(_heads(), Heads(_heads().classes[::-1], _heads().boxes))


def test_class_heads_given_as_box_heads_are_never_compared():
    with pytest.raises(ContractViolationError, match=r"class float32 \[2, 36, 8, 8\]"):
        tensor_distance(_heads(), Heads(_heads().boxes, _heads().classes))


def test_heads_of_half_precision_are_never_compared():
    half = Heads(tuple(level.astype(np.float16) for level in _heads().classes), _heads().boxes)
    with pytest.raises(ContractViolationError, match="class float16"):
        tensor_distance(_heads(), half)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["classes", "boxes"])
def test_values_that_are_not_finite_are_never_compared_not_even_on_both_sides(kind, value):
    broken = _changed(_heads(), kind, 0, (1, 3, 2, 2), value)
    with pytest.raises(ContractViolationError, match="head 8x8, image slot 1"):
        tensor_distance(broken, broken)


def test_values_at_the_border_of_float32_leave_a_finite_error():
    largest = np.finfo(np.float32).max
    one, other = (Heads(_heads().classes, (np.full((1, 4, 2, 2), sign * largest, np.float32),)) for sign in (1, -1))
    assert tensor_distance(one.row(0), other.row(0)).box_error == 2


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no image to compare"):
        tensor_distance(_heads(0), _heads(0))


def test_equal_graphs_are_accepted_and_every_image_is_counted():
    verdict = _judged("simplified_equals_raw", simplified_equals_raw(_heads(), _heads()))
    assert (verdict.word, verdict.count, verdict.expected) == ("accepted", 2, 2)


@pytest.mark.parametrize("kind", ["classes", "boxes"])
def test_a_simplifier_that_changes_one_value_is_rejected(kind):
    simplified = _changed(_heads(), kind, 2, (1, 7, 1, 0), 0.05)
    verdict = _judged("simplified_equals_raw", simplified_equals_raw(_heads(), simplified))
    assert verdict.word == "rejected"
    assert "head 2x2" in verdict.findings[0]


def test_a_candidate_with_folded_pads_is_judged_by_the_tight_limits():
    measured = stage_tensors(
        _heads(), _changed(_heads(), "classes", 0, (0, 0, 0, 0), 0.5), pads_kept=False, precision="full"
    )
    assert measured.values.keys() == {"logit_error", "box_error"}
    assert _judged("stage_tensors", measured).word == "rejected"


def test_a_candidate_with_kept_pads_is_judged_by_limits_of_its_own():
    small, large = (_changed(_heads(), "classes", 0, (0, 0, 0, 0), by) for by in (0.5, 50))
    measured = stage_tensors(_heads(), small, pads_kept=True, precision="full")
    assert measured.values.keys() == {"padded_logit_error", "padded_box_error"}
    assert _judged("stage_tensors", measured).word == "accepted"
    assert _judged("stage_tensors", stage_tensors(_heads(), large, pads_kept=True, precision="full")).word == "rejected"


def test_a_candidate_in_mixed_precision_is_judged_by_limits_of_its_own():
    parts = (_heads().classes, _heads().boxes)
    rounded = Heads(*(tuple(level.astype(np.float16).astype(np.float32) for level in part) for part in parts))
    measured = stage_tensors(_heads(), rounded, pads_kept=False, precision="mixed")
    assert measured.values.keys() == {"mixed_logit_error", "mixed_box_error"}
    assert _judged("stage_tensors", measured).word == "accepted"
    in_full = stage_tensors(_heads(), rounded, pads_kept=False, precision="full")
    assert _judged("stage_tensors", in_full).word == "rejected"


@pytest.mark.parametrize("kind", ["classes", "boxes"])
def test_mixed_precision_does_not_excuse_what_rounding_cannot_do(kind):
    wrong = _changed(_heads(), kind, 0, (1, 2, 3, 4), 1)
    measured = stage_tensors(_heads(), wrong, pads_kept=False, precision="mixed")
    assert _judged("stage_tensors", measured).word == "rejected"


def test_kept_pads_change_more_than_rounding_and_decide_the_limits():
    measured = stage_tensors(_heads(), _heads(), pads_kept=True, precision="mixed")
    assert measured.values.keys() == {"padded_logit_error", "padded_box_error"}


def test_the_first_suspect_is_asked_for_only_if_the_heads_are_red():
    asked = []

    def suspect():
        asked.append("overflow")
        return asked[0]

    wrong = _changed(_heads(), "classes", 0, (0, 0, 0, 0), 1)
    for candidate in (_heads(), wrong):
        measured = stage_tensors(_heads(), candidate, pads_kept=False, precision="mixed", suspect=suspect)
        verdict = _judged("stage_tensors", measured)
    assert (asked, verdict.suspect) == (["overflow"], "overflow")


def test_a_candidate_in_which_one_level_is_exchanged_between_images_is_rejected():
    heads = _heads()
    exchanged = Heads((heads.classes[0][::-1], *heads.classes[1:]), heads.boxes)
    verdict = _judged("stage_tensors", stage_tensors(heads, exchanged, pads_kept=False, precision="full"))
    assert verdict.word == "rejected"
    assert verdict.findings[0].startswith("class head 8x8")


def test_slots_that_compute_the_same_have_no_slot_error():
    assert slot_error(_heads(1).rows(np.array([0, 0, 0]))) == 0


def test_the_slot_error_is_the_largest_difference_to_the_first_slot():
    repeated = _heads(1).rows(np.array([0, 0, 0]))
    uneven = _changed(_changed(repeated, "classes", 0, (1, 2, 3, 3), 0.25), "classes", 2, (2, 0, 0, 0), -0.5)
    assert slot_error(uneven) == pytest.approx(0.5, rel=1e-5)


def test_a_single_slot_has_no_slot_error():
    with pytest.raises(ValueError, match="one slot alone cannot be compared"):
        slot_error(_heads(1))
