import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.errors import ContractViolationError
from support.weights_account import CallOrder, Convolution, account, call_order

# A network in small: a stem with batch norm, a fusion of two levels, the first through a convolution of its own, and a
# head that both levels share, with a batch norm for each.
ORDER = CallOrder(
    convolutions=(
        Convolution("stem.weight", norm="stem_bn", epsilon=1e-3),
        Convolution("lateral.weight", "lateral.bias", norm="lateral_bn", epsilon=1e-3),
        Convolution("head.weight", "head.bias", norm="level0", epsilon=1e-3),
        Convolution("head.weight", "head.bias", norm="level1", epsilon=1e-3),
        Convolution("predict.weight", "predict.bias"),
    ),
    fusions=("fuse.edge_weights",),
)
TOLERANCE = 1e-5


def _checkpoint(seed=0):
    random = np.random.default_rng(seed)
    tensors = {"fuse.edge_weights": np.array([1.5, 0.5], np.float32)}
    for name, inputs in {"stem": 3, "lateral": 4, "head": 4, "predict": 4}.items():
        tensors[f"{name}.weight"] = random.normal(size=(4, inputs, 1, 1)).astype(np.float32)
        if name != "stem":
            tensors[f"{name}.bias"] = random.normal(size=4).astype(np.float32)
    for name in ("stem_bn", "lateral_bn", "level0", "level1"):
        for key in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{key}"] = random.uniform(0.5, 2, size=4).astype(np.float32)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)
    return tensors


CHECKPOINT = _checkpoint()


def _folded(tensors, conv, norm):
    scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + np.float32(1e-3))
    bias = tensors.get(f"{conv}.bias", np.zeros(4, np.float32))
    return {
        f"{conv}@{norm}.w": tensors[f"{conv}.weight"] * scale[:, None, None, None],
        f"{conv}@{norm}.b": tensors[f"{norm}.bias"] + (bias - tensors[f"{norm}.running_mean"]) * scale,
    }


def _weights(tensors=CHECKPOINT):
    total = np.maximum(tensors["fuse.edge_weights"], 0).sum() + np.float32(1e-4)
    found = {"w0": tensors["fuse.edge_weights"][0], "w1": tensors["fuse.edge_weights"][1], "total": total}
    for conv, norm in (("stem", "stem_bn"), ("lateral", "lateral_bn"), ("head", "level0"), ("head", "level1")):
        found.update(_folded(tensors, conv, norm))
    return {**found, "predict.w": tensors["predict.weight"], "predict.b": tensors["predict.bias"]}


def _conv(source, name, target, bias=True):
    return helper.make_node(
        "Conv", [source, f"{name}.w", *([f"{name}.b"] if bias else [])], [target], name=f"/{target}"
    )


def _coefficients(first="lateral"):
    multiplied = [helper.make_node("Mul", [first, "w0"], ["m0"])] if first == "lateral" else []
    return [
        *multiplied,
        helper.make_node("Div", ["m0", "total"], ["d0"]),
        helper.make_node("Mul", ["stem", "w1"], ["m1"]),
        helper.make_node("Div", ["m1", "total"], ["d1"]),
    ]


def _graph(weights=None, *, lateral="lateral", coefficients=None, extra=()):
    weights = _weights() if weights is None else weights
    nodes = [
        _conv("x", "stem@stem_bn", "stem"),
        _conv("stem", "lateral@lateral_bn", lateral),
        *(_coefficients(lateral) if coefficients is None else coefficients),
        helper.make_node("Unsqueeze", ["d0"], ["u0"], axes=[-1]),
        helper.make_node("Unsqueeze", ["d1"], ["u1"], axes=[-1]),
        helper.make_node("Concat", ["u0", "u1"], ["stacked"], axis=-1),
        helper.make_node("ReduceSum", ["stacked"], ["fused"], axes=[-1], keepdims=0, name="/fuse"),
        _conv("fused", "head@level0", "head0"),
        helper.make_node("Clip", ["head0", "low"], ["clipped"]),
        _conv("clipped", "head@level1", "head1"),
        *extra,
        _conv("head1", "predict", "out"),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(np.array(0, np.float32), "low")]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 4, 8, 8))],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])


def _account(model, tensors=CHECKPOINT, *, order=ORDER):
    return account(model, order, tensors, tolerance=TOLERANCE)


def _assert_balanced(result):
    assert (result.unaccounted, result.unused, result.findings) == ((), (), ())
    assert 0 < result.fold_error < 1e-6


def test_a_folded_graph_balances_and_counts_every_place():
    result = _account(_graph())
    _assert_balanced(result)
    # Five convolutions with bias, two coefficients.
    assert result.places == 12


def test_a_raw_graph_that_computes_its_coefficients_balances():
    weights = _weights()
    for name in ("w0", "w1", "total"):
        del weights[name]
    computed = [
        helper.make_node("Identity", ["edges"], ["shared"]),
        helper.make_node("Relu", ["shared"], ["positive"]),
        helper.make_node("ReduceSum", ["positive"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "epsilon"], ["total"]),
        *[
            node
            for place in (0, 1)
            for node in (
                helper.make_node("Constant", [], [f"i{place}"], value=numpy_helper.from_array(np.array(place))),
                helper.make_node("Gather", ["positive", f"i{place}"], [f"w{place}"], axis=0),
            )
        ],
        *_coefficients(),
    ]
    weights.update({"edges": CHECKPOINT["fuse.edge_weights"], "epsilon": np.float32(1e-4)})
    _assert_balanced(_account(_graph(weights, coefficients=computed)))


def test_a_coefficient_may_move_into_the_convolution_before_the_fusion():
    weights = _weights()
    for part in ("w", "b"):
        weights[f"lateral@lateral_bn.{part}"] = weights[f"lateral@lateral_bn.{part}"] * weights["w0"]
    del weights["w0"]
    _assert_balanced(_account(_graph(weights, lateral="m0")))


def test_a_coefficient_that_went_missing_is_not_taken_for_moved():
    weights = _weights()
    del weights["w0"]
    result = _account(_graph(weights, lateral="m0"))
    assert set(result.unaccounted) == {"lateral@lateral_bn.w", "lateral@lateral_bn.b", "total"}
    assert result.fold_error == pytest.approx(1 - 1 / 1.5, rel=1e-4)


def test_a_coefficient_may_not_move_into_a_convolution_that_others_read():
    weights = _weights()
    for part in ("w", "b"):
        weights[f"lateral@lateral_bn.{part}"] = weights[f"lateral@lateral_bn.{part}"] * weights["w0"]
    del weights["w0"]
    extra = [helper.make_node("Add", ["head1", "m0"], ["unread"])]
    result = _account(_graph(weights, lateral="m0", extra=extra))
    assert "lateral@lateral_bn.w" in result.unaccounted


def test_a_negative_fusion_weight_counts_as_zero():
    tensors = {**CHECKPOINT, "fuse.edge_weights": np.array([1.5, -0.5], np.float32)}
    weights = {**_weights(tensors), "w1": np.float32(0)}
    _assert_balanced(_account(_graph(weights), tensors))


def test_a_fusion_without_weights_needs_none():
    plain = [helper.make_node("Relu", [name], [target]) for name, target in (("lateral", "d0"), ("stem", "d1"))]
    weights = {name: value for name, value in _weights().items() if name not in ("w0", "w1", "total")}
    tensors = {name: value for name, value in CHECKPOINT.items() if name != "fuse.edge_weights"}
    order = CallOrder(ORDER.convolutions, ("",))
    _assert_balanced(_account(_graph(weights, coefficients=plain), tensors, order=order))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("stem@stem_bn.w", "stem.weight with stem_bn.weight"),
        ("stem@stem_bn.b", "stem_bn.bias with stem_bn.running_mean"),
        ("head@level1.w", "head.weight with level1.weight"),
        ("head@level1.b", "level1.bias with head.bias"),
        ("w1", "fuse.edge_weights[1]"),
    ],
)
def test_a_value_that_is_one_percent_off_is_found_and_named(name, label):
    weights = _weights()
    weights[name] = weights[name] * np.float32(1.01)
    result = _account(_graph(weights))
    assert name in result.unaccounted
    assert result.fold_error == pytest.approx(0.01, rel=1e-3)
    assert result.findings[0].startswith(f"{name!r}")
    assert result.findings[0].endswith(f" is not {label} (relative error 0.01)")


def test_a_channel_set_to_zero_is_found():
    weights = _weights()
    weights["head@level0.w"] = weights["head@level0.w"].copy()
    weights["head@level0.w"][2] = 0
    assert _account(_graph(weights)).unaccounted == ("head@level0.w",)


def test_layers_that_swapped_their_weights_are_found_though_every_value_is_in_the_checkpoint():
    weights = _weights()
    weights["head@level0.w"], weights["head@level1.w"] = weights["head@level1.w"], weights["head@level0.w"]
    result = _account(_graph(weights))
    assert result.unaccounted == ("head@level0.w", "head@level1.w")
    assert "'head@level0.w' at /head0 is not head.weight with level0.weight" in "".join(result.findings)


def test_the_finding_names_the_layer_whose_weights_are_there_instead():
    weights = _weights()
    weights["predict.w"] = weights["lateral@lateral_bn.w"]
    finding = _account(_graph(weights)).findings[0]
    assert "'predict.w' at /out is not predict.weight" in finding
    assert "nearest is lateral.weight with lateral_bn.weight (" in finding


def test_weights_of_another_checkpoint_leave_nothing_in_balance():
    result = _account(_graph(), _checkpoint(seed=1))
    assert len(result.unaccounted) == 10
    assert {"stem.weight", "level1.running_var", "predict.bias"} <= set(result.unused)
    assert result.findings[5] == "and 5 more of this kind"


def test_weights_without_batch_norm_must_be_equal_bit_for_bit():
    weights = _weights()
    weights["predict.w"] = np.nextafter(weights["predict.w"], np.float32(9))
    result = _account(_graph(weights))
    assert (result.unaccounted, result.unused) == (("predict.w",), ("predict.weight",))


def test_batch_norm_of_another_level_is_found():
    weights = {**_weights(), **{f"head@level1.{part}": _weights()[f"head@level0.{part}"] for part in ("w", "b")}}
    result = _account(_graph(weights))
    assert set(result.unaccounted) == {"head@level1.w", "head@level1.b"}
    assert {"level1.weight", "level1.running_mean"} <= set(result.unused)


def test_batch_norm_that_was_not_folded_is_found():
    extra = [helper.make_node("BatchNormalization", ["stem", "gamma", "beta", "mean", "var"], ["normed"])]
    extra += [helper.make_node("Add", ["head1", "normed"], ["sum"]), _conv("sum", "predict", "out")]
    weights = {**_weights(), "stem@stem_bn.w": CHECKPOINT["stem.weight"]}
    for name, key in {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}.items():
        weights[name] = CHECKPOINT[f"stem_bn.{key}"]
    model = _graph(weights, extra=extra)
    del model.graph.node[-1]
    assert {"gamma", "beta", "mean", "var", "stem@stem_bn.w"} <= set(_account(model).unaccounted)


def test_a_bias_that_is_missing_leaves_its_tensors_unused():
    model = _graph()
    del model.graph.node[-1].input[2]
    result = _account(model)
    assert (result.unaccounted, result.unused) == (("predict.b",), ("predict.bias",))
    assert "no constant at /out has the shape (), predict.bias needs (4,)" in result.findings


def test_a_constant_among_the_data_needs_a_source():
    weights = {**_weights(), "twice": np.float32(2)}
    extra = [helper.make_node("Mul", ["head1", "twice"], ["doubled"]), _conv("doubled", "predict", "out")]
    model = _graph(weights, extra=extra)
    del model.graph.node[-1]
    result = _account(model)
    assert result.unaccounted == ("twice",)
    assert "'twice' of the graph has no source in the checkpoint" in result.findings


def test_a_constant_that_reaches_nothing_needs_a_source_too():
    assert _account(_graph({**_weights(), "spare": np.ones(3)})).unaccounted == ("spare",)


def test_a_tensor_of_the_checkpoint_that_has_no_place_is_unused():
    result = _account(_graph(), {**CHECKPOINT, "neck.weight": np.ones(3, np.float32)})
    assert result.unused == ("neck.weight",)
    assert result.findings == ("neck.weight of the checkpoint is nowhere in the graph",)


def test_weights_of_another_shape_are_found_and_leave_a_finite_error():
    weights = {**_weights(), "predict.w": np.ones((4, 2, 1, 1))}
    result = _account(_graph(weights))
    assert result.findings[0] == "'predict.w' at /out has the shape (4, 2, 1, 1), predict.weight needs (4, 4, 1, 1)"
    assert result.fold_error < TOLERANCE


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["stem@stem_bn.w", "w0"])
def test_values_that_are_not_finite_are_found_and_leave_a_finite_error(name, value):
    weights = _weights()
    weights[name] = weights[name] * np.float32(value)
    result = _account(_graph(weights))
    assert name in result.unaccounted
    assert np.isfinite(result.fold_error)


def test_a_graph_with_another_number_of_convolutions_breaks_its_contract():
    order = CallOrder(ORDER.convolutions[1:], ORDER.fusions)
    with pytest.raises(ContractViolationError, match=r"has 5 convolutions\n  required: 4, as the network calls"):
        _account(_graph(), order=order)


def test_a_fusion_with_another_number_of_inputs_breaks_its_contract():
    tensors = {**CHECKPOINT, "fuse.edge_weights": np.ones(3, np.float32)}
    with pytest.raises(ContractViolationError, match=r"has 2 inputs of /fuse\n  required: 3"):
        _account(_graph(), tensors)


def test_the_call_order_names_convolutions_with_the_batch_norm_right_behind_them():
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = torch.nn.Conv2d(3, 3, 1)
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(3, eps=eps) for eps in (0.1, 0.2, 0.3))
            self.edge_weights = torch.nn.Parameter(torch.ones(2))

        def forward(self, image):
            first = self.norms[1](self.shared(image))
            second = self.norms[0](self.shared(first).relu())
            return first + self.norms[2](second)

    order = call_order(torch.nn.Sequential(Network()).eval(), image_size=4)
    assert order == CallOrder(
        convolutions=(
            Convolution("0.shared.weight", "0.shared.bias", norm="0.norms.1", epsilon=0.2),
            Convolution("0.shared.weight", "0.shared.bias"),
        ),
        fusions=("0.edge_weights",),
    )
