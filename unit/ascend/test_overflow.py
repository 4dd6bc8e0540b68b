import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.ascend.overflow import overflowing

pytest.importorskip("onnxruntime")

SIDE = 256
KEPT = ("ReduceMeanD",)


# A convolution that only copies, the mean over its feature map as in squeeze-and-excite, and a product.
def network(*, factor=1.0, averaging="ReduceMean"):
    weights = [
        numpy_helper.from_array(np.ones((3, 1, 1, 1), np.float32), "copy.w"),
        numpy_helper.from_array(np.array(factor, np.float32), "factor"),
    ]
    axes = {"axes": [2, 3]} if averaging == "ReduceMean" else {}
    nodes = [
        helper.make_node("Conv", ["x", "copy.w"], ["copied"], "/stem/Conv", group=3),
        helper.make_node(averaging, ["copied"], ["mean"], "/se/Mean", **axes),
        helper.make_node("Mul", ["mean", "factor"], ["scaled"], "/se/Mul"),
        helper.make_node("Shape", ["scaled"], ["shape"], "/se/Shape"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "squeeze",
        [value("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [value("scaled", TensorProto.FLOAT, [1, 3, 1, 1]), value("shape", TensorProto.INT64, [4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


# Every value fits into half precision with room to spare; their sum is 65,536 times as large.
def image(level):
    return np.full((1, 3, SIDE, SIDE), level, np.float32)


@pytest.mark.parametrize(("averaging", "kind"), [("ReduceMean", "ReduceMeanD"), ("GlobalAveragePool",) * 2])
@pytest.mark.parametrize("level", [1.25, -1.25])
def test_a_sum_that_does_not_fit_is_named_though_its_mean_would(averaging, kind, level):
    (found,) = overflowing(network(averaging=averaging), image(level), ())
    assert (found.name, found.kind, found.sums) == ("/se/Mean", kind, True)
    assert found.magnitude == pytest.approx(1.25 * SIDE**2, rel=1e-5)
    assert str(found) == f"overflow: {kind} /se/Mean sums to {found.magnitude:.0f}, half precision ends at 65504"


def test_an_operator_that_is_kept_in_float32_cannot_overflow():
    assert overflowing(network(), image(1.25), KEPT) == ()


def test_sums_that_fit_are_not_named():
    assert overflowing(network(), image(0.99), ()) == ()


def test_the_largest_positive_sum_of_any_channel_counts():
    tensor = image(0.5)
    tensor[0, 2] = 1.5
    assert overflowing(network(), tensor, ())[0].magnitude == pytest.approx(1.5 * SIDE**2, rel=1e-5)


def test_a_result_that_does_not_fit_is_named_as_well_and_the_largest_comes_first():
    found = overflowing(network(factor=1e6), image(1.25), ())
    assert [item.name for item in found] == ["/se/Mul", "/se/Mean"]
    assert str(found[0]) == "overflow: Mul /se/Mul reaches 1250000, half precision ends at 65504"
    assert [item.name for item in overflowing(network(factor=1e6), image(1.25), KEPT)] == ["/se/Mul"]


def test_a_convolution_in_groups_is_named_as_the_compiler_names_it():
    found = overflowing(network(), image(70_000), KEPT)
    assert ("/stem/Conv", "DepthwiseConv2D") in [(item.name, item.kind) for item in found]
    assert "/stem/Conv" not in [item.name for item in overflowing(network(), image(70_000), ("DepthwiseConv2D",))]


def test_the_graph_that_is_watched_stays_as_it_was():
    model = network()
    overflowing(model, image(1.25), ())
    assert model == network()
