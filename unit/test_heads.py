import numpy as np
import pytest

from support.errors import ContractViolationError
from support.heads import Heads, head_shapes, pair_heads, require_finite, require_heads
from support.spec import load_spec

D0 = load_spec("efficientdet_d0").model
SMALL = D0.model_copy(update={"image_size": 128, "classes": 3})
BATCH = 2


@pytest.fixture
def outputs():
    shapes = head_shapes(SMALL, BATCH)
    return {f"node_{place}": np.full(shape, place, np.float32) for place, shape in enumerate(shapes)}


def test_d0_has_five_class_heads_and_then_five_box_heads():
    sides = (64, 32, 16, 8, 4)
    assert head_shapes(D0, 4) == (*((4, 810, s, s) for s in sides), *((4, 36, s, s) for s in sides))


@pytest.mark.parametrize("order", [range(10), reversed(range(10)), (3, 9, 1, 0, 2, 8, 4, 7, 6, 5)])
def test_outputs_are_paired_by_shape_in_whatever_order_they_come(outputs, order):
    names = list(outputs)
    heads = pair_heads({names[place]: outputs[names[place]] for place in order}, SMALL, BATCH)
    assert [int(head.flat[0]) for head in (*heads.classes, *heads.boxes)] == list(range(10))
    assert heads.names == tuple(names)
    assert heads.batch == BATCH


@pytest.mark.parametrize("count", [9, 0])
def test_a_missing_output_is_refused(outputs, count):
    some = dict(list(outputs.items())[:count])
    with pytest.raises(
        ContractViolationError, match=rf"{count} outputs instead of 10; it gives .*\n  required: 10 out"
    ):
        pair_heads(some, SMALL, BATCH)


def test_a_surplus_output_is_refused_by_name(outputs):
    outputs["scores"] = np.zeros((BATCH, 100), np.float32)
    with pytest.raises(ContractViolationError, match=r"11 outputs instead of 10; it gives .*scores float32 \[2, 100\]"):
        pair_heads(outputs, SMALL, BATCH)


def test_an_output_of_another_shape_is_refused_and_both_sides_are_named(outputs):
    outputs["node_4"] = np.zeros((BATCH, 27, 3, 3), np.float32)
    with pytest.raises(
        ContractViolationError, match=r"node_4 is like no head, and no output is of shape \[2, 27, 1, 1\]; it"
    ):
        pair_heads(outputs, SMALL, BATCH)


def test_outputs_of_another_batch_size_are_refused(outputs):
    with pytest.raises(ContractViolationError, match=r"no output is of shape \[1, 27, 16, 16\]"):
        pair_heads(outputs, SMALL, 1)


def test_two_outputs_of_one_shape_cannot_be_told_apart(outputs):
    outputs["node_4"] = outputs["node_3"]
    with pytest.raises(ContractViolationError, match="node_3 cannot be told from another output of the same shape"):
        pair_heads(outputs, SMALL, BATCH)
    ambiguous = SMALL.model_copy(update={"classes": 4})
    twins = {f"node_{place}": np.zeros(shape, np.float32) for place, shape in enumerate(head_shapes(ambiguous, BATCH))}
    with pytest.raises(
        ContractViolationError, match=r"node_0, .* cannot be told from another output of the same shape"
    ):
        pair_heads(twins, ambiguous, BATCH)


@pytest.mark.parametrize("kind", ["float16", "float64", ">f4"])
def test_an_output_of_another_type_is_refused(outputs, kind):
    outputs["node_7"] = outputs["node_7"].astype(kind)
    with pytest.raises(ContractViolationError, match=f"node_7 is {kind}; it gives"):
        pair_heads(outputs, SMALL, BATCH)


def test_rows_keep_the_kinds_the_levels_and_the_names(outputs):
    outputs["node_2"][1] = 7
    heads = pair_heads(outputs, SMALL, BATCH)
    for part in (heads.row(1), heads.rows(slice(1, 2)), heads.rows(np.array([1]))):
        assert part.batch == 1
        assert part.classes[2].max() == part.classes[2].min() == 7
        assert [head.shape for head in part.boxes] == list(head_shapes(SMALL, 1)[5:])
        assert part.names == heads.names


@pytest.mark.parametrize(
    ("value", "counted"), [(np.nan, "2 NaN and 0 infinite"), (np.inf, "0 NaN and 2"), (-np.inf, "0 NaN and 2 infinite")]
)
def test_heads_that_are_not_finite_are_refused_with_output_slot_and_count(outputs, value, counted):
    outputs["node_6"][1, 5, 0, :2] = value
    heads = pair_heads(outputs, SMALL, BATCH)
    text = rf"output 'node_6' \(box head 8x8\), image slot 1: {counted}.*of 2304 values"
    with pytest.raises(ContractViolationError, match=text) as caught:
        require_finite(heads)
    assert "overflow in mixed precision" in caught.value.remedy
    assert caught.value.slot == 1
    with pytest.raises(ContractViolationError, match=r"^box head 8x8, image slot 1"):
        require_finite(Heads(heads.classes, heads.boxes))


def test_finite_heads_pass_however_large(outputs):
    outputs["node_0"][:] = np.finfo(np.float32).max
    require_finite(pair_heads(outputs, SMALL, BATCH))


def test_heads_of_another_model_are_refused(outputs):
    heads = pair_heads(outputs, SMALL, BATCH)
    require_heads(heads, SMALL)
    with pytest.raises(ContractViolationError, match=r"the heads are .*27.*\n  required: .*810"):
        require_heads(heads, D0)
    halves = Heads(tuple(head.astype(np.float16) for head in heads.classes), heads.boxes)
    with pytest.raises(ContractViolationError, match="float16"):
        require_heads(halves, SMALL)
