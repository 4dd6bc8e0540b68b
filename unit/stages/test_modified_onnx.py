import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.artifacts import Artifact, ArtifactStore, file_sha256
from support.errors import BuildFailedError
from support.onnx_files import load_onnx, save_onnx
from support.pads import kept_pads
from support.progress import SilentProgress
from support.stages.modified_onnx import graph_differences, modified_onnx, zero_pads
from support.stages.pad_example import make_pad_example, pad_example

BATCH = 2


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store", lock_seconds=30)


@pytest.fixture
def before():
    return make_pad_example()


@pytest.fixture
def after():
    model = make_pad_example()
    zero_pads(model)
    return model


def artifact(model, folder):
    save_onnx(model, folder / "source.onnx")
    return Artifact("onnx", folder / "source.onnx", file_sha256(folder / "source.onnx"), {}, ())


def test_the_example_loses_its_infinite_pads_and_nothing_else(store, before):
    made = modified_onnx(store, pad_example(), 1, SilentProgress())
    assert made.made_by["facts"] == {"edited_pads": ["pad_shared", "pad_own"], "summary": "2 Pads edited"}
    edited = load_onnx(made.path)
    assert kept_pads(edited) == []
    assert graph_differences(before, edited) == []
    onnx.checker.check_model(edited, full_check=True)


def test_the_edit_changes_what_the_example_computes(before, after):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    old, new = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": images}
        )[0]
        for model in (before, after)
    )
    assert np.isfinite(new).all()
    assert not np.allclose(old, new)


def test_the_whole_network_loses_the_pads_that_its_raw_graph_keeps(stage_store, raw):
    made = modified_onnx(stage_store, raw, BATCH, SilentProgress())
    assert made.made_by["facts"]["edited_pads"] == raw.made_by["facts"]["kept_pads"]
    assert graph_differences(load_onnx(raw.path), load_onnx(made.path)) == []


def test_where_nothing_is_to_be_changed_the_bytes_are_a_copy_and_the_facts_say_so(store, after, tmp_path):
    source = artifact(after, tmp_path)
    made = modified_onnx(store, source, 1, SilentProgress())
    assert made.path.read_bytes() == source.path.read_bytes()
    assert made.sha256 == source.sha256
    assert made.made_by["facts"] == {"edited_pads": [], "summary": "no Pad fills with -inf: copied unchanged"}


def test_a_second_call_edits_nothing(store):
    first = modified_onnx(store, pad_example(), 1, SilentProgress())
    second = modified_onnx(store, pad_example(), 1, SilentProgress())
    assert (first.built, second.built) == (True, False)


def test_a_graph_of_another_batch_size_is_refused(store):
    with pytest.raises(BuildFailedError, match=r"pads\.onnx has the inputs \{'x': \[1, 3, 8, 8\]\}"):
        modified_onnx(store, pad_example(), 4, SilentProgress())


def test_a_value_the_graph_computes_cannot_be_judged_and_fails_the_build(store, before, tmp_path):
    before.graph.node.insert(0, helper.make_node("Neg", ["six"], ["computed"]))
    before.graph.node[3].input[2] = "computed"
    with pytest.raises(
        BuildFailedError, match="1 Pads fill with a value the graph computes, the first is 'pad_shared'"
    ):
        modified_onnx(store, artifact(before, tmp_path), 1, SilentProgress())


def test_a_graph_without_infinite_pads_does_not_differ_from_itself(after):
    assert graph_differences(after, after) == []


def test_the_graphs_compared_are_left_as_they_are(before, after):
    bytes_before, bytes_after = before.SerializeToString(), after.SerializeToString()
    graph_differences(before, after)
    assert (before.SerializeToString(), after.SerializeToString()) == (bytes_before, bytes_after)


def initializer(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model, name):
    return next(item for item in model.graph.node if item.name == name)


def write_half_precision_zero(model):
    initializer(model, "padded_1/zero").CopyFrom(numpy_helper.from_array(np.float16(0), "padded_1/zero"))


def write_zero_of_another_shape(model):
    initializer(model, "padded_1/zero").CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "padded_1/zero"))


def write_another_value(model):
    initializer(model, "padded_1/zero").CopyFrom(numpy_helper.from_array(np.float32(-1), "padded_1/zero"))


def leave_one_pad(model):
    initializer(model, "padded_1/zero").CopyFrom(numpy_helper.from_array(np.float32("-inf"), "padded_1/zero"))


def change_the_zero_of_another_pad(model):
    initializer(model, "zero").CopyFrom(numpy_helper.from_array(np.float32(1e-30), "zero"))


def change_the_shared_constant(model):
    initializer(model, "shared_infinity").CopyFrom(numpy_helper.from_array(np.float32(0), "shared_infinity"))


def change_a_weight(model):
    weight = numpy_helper.to_array(initializer(model, "head_weight")).copy()
    weight[0, 0, 0, 0] += 2**-20
    initializer(model, "head_weight").CopyFrom(numpy_helper.from_array(weight, "head_weight"))


def rename_a_weight(model):
    initializer(model, "stem_bias").name = "bias"
    node(model, "stem").input[2] = "bias"


def add_a_node(model):
    model.graph.node.append(helper.make_node("Relu", ["y"], ["unused"], "extra"))


def remove_a_node(model):
    model.graph.node.remove(node(model, "clip"))


def reorder_nodes(model):
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[1], nodes[0], *nodes[2:]])


def change_an_attribute(model):
    next(item for item in node(model, "pool_1").attribute if item.name == "strides").ints[0] = 1


def pad_by_reflection(model):
    node(model, "pad_own").attribute.append(helper.make_attribute("mode", "reflect"))


def pad_elsewhere(model):
    node(model, "pad_own").input[1] = "around"


def leave_an_unused_constant(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "unused"))


def change_the_input(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def change_the_output(model):
    model.graph.output[0].name = "z"


def declare_a_type(model):
    model.graph.value_info.append(helper.make_tensor_value_info("stem", TensorProto.FLOAT16, [1, 4, 8, 8]))


def raise_the_opset(model):
    model.opset_import[0].version = 13


def import_a_domain(model):
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def sign_it(model):
    model.producer_name = "another tool"


def rename_the_graph(model):
    model.graph.name = "other"


def note_something(model):
    model.metadata_props.add(key="note", value="edited")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (write_half_precision_zero, "Pad pad_shared fills with float32 -inf before, float16 0.0 after"),
        (write_zero_of_another_shape, "Pad pad_shared fills with float32 -inf before, float32 [0.0] after"),
        (write_another_value, "Pad pad_shared fills with float32 -inf before, float32 -1.0 after"),
        (leave_one_pad, "Pad pad_shared fills with float32 -inf before, float32 -inf after"),
        (change_the_zero_of_another_pad, "Pad pad_zero fills with float32 0.0 before, float32 1.0000000031710769e-30"),
        (change_the_shared_constant, "initializer shared_infinity is gone or changed"),
        (change_a_weight, "initializer head_weight is gone or changed"),
        (rename_a_weight, "node stem is gone or changed"),
        (add_a_node, "node extra is new or changed"),
        (remove_a_node, "node clip is gone or changed"),
        (reorder_nodes, "node: the order changed"),
        (change_an_attribute, "node pool_1 is gone or changed"),
        (pad_by_reflection, "3 Pads fill with a value before, 2 after"),
        (pad_elsewhere, "node pad_own is gone or changed"),
        (leave_an_unused_constant, "initializer unused is new or changed"),
        (change_the_input, "input x is gone or changed"),
        (change_the_output, "output y is gone or changed"),
        (declare_a_type, "value_info stem is new or changed"),
        (raise_the_opset, "opset_import is gone or changed"),
        (import_a_domain, "opset_import is new or changed"),
        (sign_it, "producer_name 'another tool' is new or changed"),
        (rename_the_graph, "name 'pads' is gone or changed"),
        (note_something, "metadata_props is new or changed"),
    ],
)
def test_every_other_change_is_a_difference(change, sentence, before, after):
    change(after)
    differences = graph_differences(before, after)
    assert any(item.startswith(sentence) for item in differences), differences
