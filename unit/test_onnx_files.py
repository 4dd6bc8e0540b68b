import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support import onnx_files
from support.errors import NoDataError, WrongDataError
from support.onnx_files import graphs, input_shapes, load_onnx, opset_of, output_shapes, save_onnx


def small_model(*, nodes=None, opset=11, batch=2):
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "weight")
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "weight"], ["y"], "add")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, None])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def branching_model():
    branch = small_model().graph
    del branch.input[:]
    node = helper.make_node("If", ["x"], ["y"], "if", then_branch=branch, else_branch=branch)
    return small_model(nodes=[node])


def saved(tmp_path, model):
    path = tmp_path / "model.onnx"
    save_onnx(model, path)
    return path


def test_a_model_is_read_as_it_was_written(tmp_path):
    assert load_onnx(saved(tmp_path, small_model())) == small_model()


def test_equal_models_give_equal_bytes(tmp_path):
    assert saved(tmp_path, small_model()).read_bytes() == saved(tmp_path, small_model()).read_bytes()


def test_a_missing_file_is_no_data(tmp_path):
    with pytest.raises(NoDataError, match=r"there is no ONNX file .*absent\.onnx") as caught:
        load_onnx(tmp_path / "absent.onnx")
    assert caught.value.remedy == "--onnx=FILE"


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(NoDataError, match="cannot be read"):
        load_onnx(tmp_path)


def test_every_truncation_is_wrong_data(tmp_path):
    path = saved(tmp_path, small_model())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WrongDataError, match=r"model\.onnx is damaged, truncated or no ONNX model"):
            load_onnx(path)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4"])
def test_what_is_no_model_is_wrong_data(data, tmp_path):
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(WrongDataError, match=r"model\.onnx is damaged, truncated or no ONNX model"):
        load_onnx(tmp_path / "model.onnx")


def test_a_file_larger_than_any_model_is_not_read(tmp_path, monkeypatch):
    path = saved(tmp_path, small_model())
    monkeypatch.setattr(onnx_files, "_MOST_BYTES", 10)
    with pytest.raises(WrongDataError, match=r"it has \d+ bytes, 10 are the most"):
        load_onnx(path)


def outside(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize("location", ["model.onnx.data", "/etc/passwd", "../secret"])
def test_weights_in_other_files_are_refused(location, tmp_path):
    model = small_model()
    outside(model.graph.initializer[0], location)
    with pytest.raises(WrongDataError, match=r"model\.onnx: 1 tensors lie in other files, the first is 'weight'"):
        load_onnx(saved(tmp_path, model))


def test_weights_in_other_files_are_refused_inside_branches_and_attributes(tmp_path):
    model = branching_model()
    outside(model.graph.node[0].attribute[0].g.initializer[0], "data")
    constant = model.graph.node.add(op_type="Constant", output=["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    outside(constant.attribute[0].t, "data")
    with pytest.raises(WrongDataError, match="2 tensors lie in other files"):
        load_onnx(saved(tmp_path, model))


def test_inputs_and_outputs_have_names_and_shapes():
    model = small_model()
    assert dict(input_shapes(model)) == {"x": (2, 3)}
    assert dict(output_shapes(model)) == {"y": (2, None)}


def test_a_variable_dimension_keeps_its_name():
    assert dict(input_shapes(small_model(batch="batch"))) == {"x": ("batch", 3)}


def test_weights_that_are_listed_as_inputs_are_left_out():
    model = small_model()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1, 3]))
    assert list(input_shapes(model)) == ["x"]


def test_the_opset_is_that_of_the_standard_operators():
    model = small_model(opset=13)
    model.opset_import.append(helper.make_opsetid("com.example", 2))
    assert opset_of(model) == 13


@pytest.mark.parametrize("versions", [[], [11, 13]])
def test_an_opset_that_is_not_stated_once_is_wrong_data(versions):
    model = small_model()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid("", version) for version in versions)
    with pytest.raises(WrongDataError, match="the model 'small' states opsets"):
        opset_of(model)


def test_graphs_inside_nodes_are_found():
    model = branching_model()
    assert list(graphs(model.graph)) == [model.graph, *(item.g for item in model.graph.node[0].attribute)]
