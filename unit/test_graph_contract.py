import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.graph_contract import constants, violations
from support.spec import load_spec

SPEC = load_spec("shapes_d0")
NETWORK = SPEC.model.model_copy(update={"image_size": 128, "classes": 2})


def _weight(name, *shape):
    return numpy_helper.from_array(np.full(shape, 0.5, np.float32), name)


def _small_graph(batch=1, *, fill=0.0, opset=11, image=TensorProto.FLOAT, extra_nodes=()):
    side, channels = NETWORK.image_size, {"class": 18, "box": 36}
    nodes = [helper.make_node("Pad", ["x.1", "pads", "fill"], ["padded"], name="pad", mode="constant")]
    weights = [
        numpy_helper.from_array(np.zeros(8, np.int64), "pads"),
        numpy_helper.from_array(np.array(fill, np.float32), "fill"),
    ]
    outputs = []
    for kind, count in channels.items():
        weights += [_weight(f"{kind}.weight", count, 3, 1, 1)]
        for level in range(3, 8):
            cell, name = 2**level, f"{kind}{level}"
            pool = {"kernel_shape": [cell, cell], "strides": [cell, cell]}
            nodes += [
                helper.make_node("MaxPool", ["padded"], [f"{name}.pool"], **pool),
                helper.make_node("Conv", [f"{name}.pool", f"{kind}.weight"], [name], kernel_shape=[1, 1]),
            ]
            outputs.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, count, side // cell, side // cell))
            )
    image = helper.make_tensor_value_info("x.1", image, (batch, 3, side, side))
    graph = helper.make_graph([*nodes, *extra_nodes], "small", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def _found(model, *, pads_allowed=False, batch=1):
    return violations(model, SPEC.graph, NETWORK, batch, pads_allowed=pads_allowed)


def _only(sentences):
    (sentence,) = sentences
    return sentence


@pytest.mark.parametrize("images", [1, 4])
def test_a_graph_that_keeps_its_contract_has_no_violation(images):
    assert _found(_small_graph(images), batch=images) == []


def test_weights_listed_as_inputs_as_in_old_files_are_not_inputs():
    model = _small_graph()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert _found(model) == []


def test_another_opset_is_named_with_the_required_one():
    assert _only(_found(_small_graph(opset=12))) == "The graph imports opset ai.onnx 12; required: ai.onnx 11."


def test_a_second_operator_domain_is_a_violation_even_if_unused():
    model = _small_graph()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "imports operators of com.microsoft; required: the domain ai.onnx alone" in _only(_found(model))


def test_operators_outside_the_list_are_counted_one_by_one():
    extra = [
        helper.make_node("Erf", ["padded"], ["e1"]),
        helper.make_node("Erf", ["e1"], ["e2"]),
        helper.make_node("Softplus", ["padded"], ["s"]),
    ]
    found = _found(_small_graph(extra_nodes=extra))
    assert [sentence.split(";")[0] for sentence in found] == [
        "The operator Erf occurs 2 times",
        "The operator Softplus occurs 1 times",
    ]


def test_an_operator_of_another_domain_is_foreign_whatever_its_name():
    model = _small_graph(extra_nodes=[helper.make_node("Relu", ["padded"], ["r"], domain="com.microsoft")])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert any("The operator com.microsoft.Relu occurs 1 times" in sentence for sentence in _found(model))


def test_an_input_of_another_name_is_named():
    model = _small_graph()
    model.graph.input[0].name = model.graph.node[0].input[0] = "images"
    assert "The inputs are 'images' float (1, 3, 128, 128); required: 'x.1'" in _only(_found(model))


def test_a_second_input_is_a_violation():
    model = _small_graph()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, (1,)))
    assert "'x.1' float (1, 3, 128, 128), 'scale' float (1); required" in _only(_found(model))


def test_half_precision_input_is_a_violation():
    assert any(
        "'x.1' float16 (1, 3, 128, 128)" in sentence for sentence in _found(_small_graph(image=TensorProto.FLOAT16))
    )


def test_a_dynamic_batch_is_a_violation_at_input_and_outputs():
    model = _small_graph()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    found = _found(model)
    assert "'x.1' float (N, 3, 128, 128)" in found[0]
    assert len([sentence for sentence in found if "(N, " in sentence]) == 11


def test_a_graph_of_another_batch_size_is_a_violation():
    assert "Output 1 is 'class3' float (4, 18, 16, 16); required: float (1, 18, 16, 16)." in _found(_small_graph(4))


def test_box_heads_before_class_heads_are_a_violation():
    model = _small_graph()
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[5:] + outputs[:5])
    assert "Output 1 is 'box3' float (1, 36, 16, 16); required: float (1, 18, 16, 16)." in _found(model)


def test_levels_from_coarse_to_fine_are_a_violation():
    model = _small_graph()
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[4::-1] + outputs[5:])
    assert "Output 1 is 'class7' float (1, 18, 1, 1); required: float (1, 18, 16, 16)." in _found(model)


def test_a_missing_output_is_counted():
    model = _small_graph()
    del model.graph.output[-1]
    assert "has 9 outputs; required: 10" in _only(_found(model))


def test_a_declared_shape_that_is_not_what_the_graph_computes_is_found():
    model = _small_graph()
    model.graph.node[1].attribute[1].ints[:] = [4, 4]
    assert "Output class3 is declared as float (1, 18, 16, 16) but computes float (1, 18, 31, 31)" in _only(
        _found(model)
    )


def test_shapes_that_contradict_each_other_are_found():
    model = _small_graph(extra_nodes=[helper.make_node("Add", ["class3", "box3"], ["sum"])])
    assert _only(_found(model)).startswith("Shape inference fails")


def test_a_graph_the_checker_refuses_comes_first():
    model = _small_graph(opset=12)
    model.graph.node[0].input[0] = "nowhere"
    assert _found(model)[0].startswith("The ONNX checker refuses the graph")


def test_weights_in_another_file_are_a_violation():
    model = _small_graph()
    weight = model.graph.initializer[2]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    assert "1 tensors lie in another file, the first is 'class.weight'; required: one file." in _found(model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_counted(value):
    model = _small_graph()
    bad = np.full((18, 3, 1, 1), 0.5, np.float32)
    bad[:2, 0] = value
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(bad, "class.weight"))
    sentence = "The constant 'class.weight' has 2 of 54 values that are not finite; required: none."
    assert _found(model, pads_allowed=True) == [sentence]


def test_a_pad_that_fills_with_minus_infinity_is_allowed_only_before_modification():
    model = _small_graph(fill=-np.inf)
    assert _found(model, pads_allowed=True) == []
    assert "1 Pads may fill with -inf, the first is 'pad'" in _only(_found(model, pads_allowed=False))


def test_a_minus_infinity_that_more_than_pads_use_is_never_allowed():
    model = _small_graph(fill=-np.inf, extra_nodes=[helper.make_node("Add", ["padded", "fill"], ["sum"])])
    assert "The constant 'fill' has 1 of 1 values that are not finite" in _only(_found(model, pads_allowed=True))


def test_a_pad_that_fills_with_nan_is_never_allowed():
    assert "'fill' has 1 of 1 values that are not finite" in _only(_found(_small_graph(fill=np.nan), pads_allowed=True))


def test_weights_that_nothing_uses_are_counted():
    model = _small_graph()
    model.graph.initializer.extend([_weight("spare", 1), _weight("other", 1)])
    assert "2 initializers feed no operator, the first is 'spare'" in _only(_found(model))


def test_constants_are_initializers_and_constant_nodes_alike():
    node = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    found = constants(_small_graph(extra_nodes=[node]))
    assert sorted(found) == ["box.weight", "class.weight", "fill", "one", "pads"]
    assert onnx.numpy_helper.to_array(found["one"]).tolist() == [1.0]
