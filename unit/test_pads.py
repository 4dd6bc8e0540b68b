import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.pads import drop_unused_constants, kept_pads, pad_fills
from support.stages.modified_onnx import graph_differences, zero_pads

MINUS_INFINITY = -float("inf")


def scalar(value, dtype=np.float32, name="fill"):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def padded(*nodes, initializers=(), opset=11, kind=TensorProto.FLOAT, inputs=()):
    pads = numpy_helper.from_array(np.array([0, 1], np.int64), "pads")
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", kind, [4]), *inputs],
        [helper.make_tensor_value_info("y", kind, [5])],
        [pads, *initializers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def pad(fill="fill", **attributes):
    return helper.make_node(
        "Pad", ["x", "pads", fill] if fill is not None else ["x", "pads"], ["y"], "pad", **attributes
    )


def constant_tensor(value):
    return helper.make_node("Constant", [], ["fill"], "constant", value=scalar(value, name=""))


def from_initializer():
    return padded(pad(), initializers=[scalar(MINUS_INFINITY)])


def from_constant_node():
    return padded(constant_tensor(MINUS_INFINITY), pad())


def from_constant_float():
    return padded(helper.make_node("Constant", [], ["fill"], value_float=MINUS_INFINITY), pad(), opset=12)


def from_attribute():
    node = helper.make_node("Pad", ["x"], ["y"], "pad", pads=[0, 1], value=MINUS_INFINITY)
    return padded(node, opset=10)


def from_identity():
    renamed = helper.make_node("Identity", ["merged"], ["fill"])
    return padded(renamed, pad(), initializers=[scalar(MINUS_INFINITY, name="merged")])


def from_half_precision():
    return padded(pad(), initializers=[scalar(MINUS_INFINITY, np.float16)], kind=TensorProto.FLOAT16)


def from_double_precision_of_one_dimension():
    return padded(pad(), initializers=[scalar([MINUS_INFINITY], np.float64)], kind=TensorProto.DOUBLE)


WAYS = [
    from_initializer,
    from_constant_node,
    from_constant_float,
    from_attribute,
    from_identity,
    from_half_precision,
    from_double_precision_of_one_dimension,
]


@pytest.mark.parametrize("make", WAYS)
def test_minus_infinity_is_found_wherever_the_graph_keeps_it(make):
    assert kept_pads(make()) == ["pad"]


@pytest.mark.parametrize("make", WAYS)
def test_the_edit_writes_a_zero_of_the_same_type_and_shape(make):
    before, after = make(), make()
    assert zero_pads(after) == ["pad"]
    (old,), (new,) = pad_fills(before), pad_fills(after)
    assert new.value == 0
    assert (new.tensor.data_type, list(new.tensor.dims)) == (old.tensor.data_type, list(old.tensor.dims))
    assert kept_pads(after) == []
    assert graph_differences(before, after) == []
    onnx.checker.check_model(after)


@pytest.mark.parametrize("value", [0.0, 1.0, float("inf"), float("nan"), np.finfo(np.float32).min])
def test_other_values_are_left_alone(value):
    model = padded(pad(), initializers=[scalar(value)])
    before = model.SerializeToString()
    assert zero_pads(model) == []
    assert model.SerializeToString() == before


@pytest.mark.parametrize("node", [pad(fill=None), pad(fill="")])
def test_a_pad_without_a_value_fills_with_zero(node):
    model = padded(node)
    assert [item.value for item in pad_fills(model)] == [0]
    assert kept_pads(model) == []


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_a_pad_that_reflects_or_repeats_has_no_value(mode):
    assert pad_fills(padded(pad(mode=mode), initializers=[scalar(MINUS_INFINITY)])) == []


def test_a_computed_value_counts_as_kept_because_it_cannot_be_read():
    model = padded(helper.make_node("Neg", ["source"], ["fill"]), pad(), initializers=[scalar(1.0, name="source")])
    assert kept_pads(model) == ["pad"]
    assert pad_fills(model)[0].value is None


def test_a_pad_without_a_name_is_called_after_its_output():
    model = from_initializer()
    model.graph.node[0].name = ""
    assert kept_pads(model) == ["y"]


def test_a_pad_inside_a_branch_is_found_and_edited():
    branch = helper.make_graph([pad()], "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])])
    node = helper.make_node("If", ["which"], ["y"], "if", then_branch=branch, else_branch=branch)
    which = numpy_helper.from_array(np.asarray(True), "which")
    before = padded(node, initializers=[which, scalar(MINUS_INFINITY)])
    after = padded(node, initializers=[which, scalar(MINUS_INFINITY)])
    assert kept_pads(before) == ["pad", "pad"]
    assert zero_pads(after) == ["pad", "pad"]
    assert kept_pads(after) == []
    assert graph_differences(before, after) == []


def test_a_constant_nobody_uses_any_more_is_removed_with_its_type():
    model = from_constant_node()
    model.graph.value_info.append(helper.make_tensor_value_info("fill", TensorProto.FLOAT, []))
    zero_pads(model)
    assert [node.op_type for node in model.graph.node] == ["Pad"]
    assert not model.graph.value_info


def test_a_constant_others_use_stays():
    lower = helper.make_node("Clip", ["x", "fill"], ["clipped"], "clip")
    model = padded(lower, pad(), initializers=[scalar(MINUS_INFINITY)])
    assert zero_pads(model) == ["pad"]
    (shared,) = [tensor for tensor in model.graph.initializer if tensor.name == "fill"]
    assert numpy_helper.to_array(shared) == MINUS_INFINITY
    assert model.graph.node[0] == lower


def test_a_constant_that_is_an_output_or_an_input_stays():
    model = padded(pad(), initializers=[scalar(MINUS_INFINITY), scalar(1.0, name="listed")])
    model.graph.output.append(helper.make_tensor_value_info("fill", TensorProto.FLOAT, []))
    model.graph.input.append(helper.make_tensor_value_info("listed", TensorProto.FLOAT, []))
    drop_unused_constants(model, ["fill", "listed", "pads"])
    assert [tensor.name for tensor in model.graph.initializer] == ["pads", "fill", "listed"]
