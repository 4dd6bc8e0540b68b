import numpy as np
import onnx
import pytest

from support.simulator.precision import lowered, lowered_nodes

onnxruntime = pytest.importorskip("onnxruntime")

LIST = ["ReduceMeanD"]


def run(model, images, *names):
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": images}), strict=True))


def mixed(model, *, black=LIST, saturate=False):
    return lowered(model, lowered_nodes(model, "allow_mix_precision", black), saturate=saturate)


def half(array):
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


@pytest.fixture
def images():
    return np.random.default_rng(3).normal(size=(2, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("mode", ["force_fp32", "cube_fp16in_fp32out", "must_keep_origin_dtype", "allow_fp32_to_fp16"])
def test_modes_that_keep_precision_lower_nothing(small, mode):
    assert lowered_nodes(small(), mode, ()) == []


def test_forced_half_precision_lowers_what_the_list_would_keep(small):
    model = small()
    assert lowered_nodes(model, "force_fp16", LIST) == [node.name for node in model.graph.node]


@pytest.mark.parametrize("mode", ["allow_mix_precision", "allow_mix_precision_fp16"])
@pytest.mark.parametrize(
    ("black", "kept"),
    [
        ("ReduceMeanD", {"squeeze"}),
        ("ReduceMean", set()),
        ("DepthwiseConv2D", {"deep"}),
        ("Conv2D", {"stem", "excite", "class_head", "box_head"}),
        ("MaxPoolV3", {"pool"}),
    ],
)
def test_the_list_keeps_operators_by_the_names_of_the_compiler(small, mode, black, kept):
    model = small()
    assert {node.name for node in model.graph.node} - set(lowered_nodes(model, mode, [black])) == kept


def test_a_graph_without_a_lowered_operator_stays_the_same(small):
    assert lowered(small(), [], saturate=False) == small()


@pytest.mark.parametrize("saturate", [False, True])
def test_every_lowered_result_is_a_number_of_half_precision_after_the_runtime_has_optimised(small, images, saturate):
    model = small()
    names = [node.output[0] for node in model.graph.node if node.name not in ("swish.gate", "squeeze")]
    found = run(mixed(model, saturate=saturate), images, *(set(names) - {"classes", "boxes"}))
    assert [name for name in names if not np.array_equal(found[name], half(found[name]))] == []
    exact = run(model, images)
    assert not np.array_equal(exact["classes"], half(exact["classes"]))
    assert 0 < np.abs(found["classes"] - exact["classes"]).max() < 0.01


def test_a_lowered_convolution_reads_rounded_images_and_weights_and_sums_exactly(small, images):
    model = small()
    stem = lowered(model, ["stem"], saturate=False)
    rounded = small()
    for tensor in rounded.graph.initializer:
        if tensor.name.startswith("stem"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(half(onnx.numpy_helper.to_array(tensor)), tensor.name))
    assert np.array_equal(run(stem, images, "stem")["stem"], half(run(rounded, half(images), "stem")["stem"]))


def test_what_an_operator_in_float32_gives_is_rounded_for_the_lowered_operator_that_reads_it(small, images):
    found = run(mixed(small()), images, "squeezed", "squeezed:rounded")
    assert not np.array_equal(found["squeezed"], half(found["squeezed"]))
    assert np.array_equal(found["squeezed:rounded"], half(found["squeezed"]))


def test_each_tensor_is_rounded_once_whoever_reads_it(small):
    model = lowered(small(), ["class_head", "box_head"], saturate=False)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    # Two weights, two results and the one tensor both heads read, each there and back.
    assert len(casts) == 2 * 5


def test_a_sum_beyond_half_precision_is_lost_where_averages_are_lowered(small, images):
    model = small(mean=400.0)
    assert run(model, images, "squeezed")["squeezed"].max() * 256 > 65504
    assert np.isinf(run(mixed(model, black=()), images, "squeezed")["squeezed"]).any()
    assert np.isfinite(run(mixed(model), images)["classes"]).all()


def test_a_runtime_that_saturates_gives_wrong_numbers_instead(small, images):
    model = small(mean=400.0)
    squeezed = run(mixed(model, black=(), saturate=True), images, "squeezed")["squeezed"]
    assert (squeezed == half(np.float32(65504 / 256))).all()
    assert run(model, images, "squeezed")["squeezed"].min() > 300


def test_an_average_that_fits_is_rounded_as_sum_and_as_quotient(small, images):
    found = run(mixed(small(), black=()), images, "swish", "squeezed")
    total = half(found["swish"].sum(axis=(2, 3), keepdims=True, dtype=np.float64).astype(np.float32))
    assert np.allclose(found["squeezed"], half(total / 256), rtol=2**-10)
    assert np.array_equal(found["squeezed"], half(found["squeezed"]))


def test_the_graph_that_is_lowered_stays_as_it_was(small):
    model = small()
    mixed(model)
    assert model == small()
