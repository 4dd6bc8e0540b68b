import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from support.artifacts import ArtifactStore
from support.candidate import BuiltModels
from support.checkpoint import build_model, load_checkpoint
from support.measurements import graph
from support.onnx_files import load_onnx
from support.progress import SilentProgress
from support.spec import load_spec
from support.stages.modified_onnx import zero_pads
from support.verdict import judge

torch = pytest.importorskip("torch")
for module in ("effdet", "onnxsim"):
    pytest.importorskip(module)

SPEC = load_spec("shapes_d0")
CLASS_HEAD, BOX_HEAD = (f"/{net}/conv_rep.0/conv_pw/Conv" for net in ("class_net", "box_net"))


# Threads that wait for each other make small operators slow where other processes are busy.
@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(Path(__file__).resolve().parents[2] / SPEC.checkpoint.path, SPEC.model, SPEC.checkpoint)


@pytest.fixture(scope="module")
def models(tmp_path_factory, checkpoint):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"), lock_seconds=300)
    built = BuiltModels(store, lambda: checkpoint, SPEC, SilentProgress())
    return {name: load_onnx(getattr(built, name)(1).path) for name in ("raw", "simplified", "modified")}


# The network calls the same every time, so that noting it once is enough for all corrupted graphs.
@pytest.fixture
def noted(monkeypatch, order):
    monkeypatch.setattr(graph, "build_model", lambda checkpoint, model: None)
    monkeypatch.setattr(graph, "call_order", lambda network, image_size: order)


@pytest.fixture(scope="module")
def order(checkpoint):
    return graph.call_order(build_model(checkpoint, SPEC.model), SPEC.model.image_size)


def _contract(model, batch=1):
    return judge("graph_contract", SPEC.clauses["graph_contract"], graph.graph_contract(model, SPEC, batch))


def _account(checkpoint, model):
    measured = graph.weights_account(checkpoint, model, SPEC)
    return judge("weights_account", SPEC.clauses["weights_account"], measured)


def _readings(verdict):
    return {reading.name: reading.value for reading in verdict.readings}


def _weight(model, node_name, slot=1):
    (node,) = (node for node in model.graph.node if node.name == node_name)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[slot])
    return tensor


def _copy(model):
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _set(tensor, values):
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _with(model, change, *node_names):
    copied = _copy(model)
    tensors = [_weight(copied, name) for name in node_names]
    for tensor, values in zip(tensors, change(*map(numpy_helper.to_array, tensors)), strict=True):
        _set(tensor, values)
    return copied


def _first_channel_zero(values):
    values = values.copy()
    values[0] = 0
    return [values]


def test_the_deployed_graph_is_accepted_on_both_counts(checkpoint, models):
    contract, account = _contract(models["modified"]), _account(checkpoint, models["modified"])
    assert (contract.word, account.word, account.findings) == ("accepted", "accepted", ())
    # 214 convolutions, 64 of them without bias, and 57 inputs of fusions, 5 of them moved into a convolution.
    assert account.count == 2 * 214 - 64 + 57 - 5


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize("stage", ["raw", "simplified"])
def test_the_stages_before_it_balance_too(checkpoint, models, stage):
    verdict = _account(checkpoint, models[stage])
    assert (verdict.word, verdict.findings) == ("accepted", ())


@pytest.mark.usefixtures("noted")
def test_a_graph_whose_pads_were_kept_and_edited_is_accepted_on_both_counts(checkpoint, models):
    kept = _copy(models["raw"])
    assert len(zero_pads(kept)) == 14
    assert (_contract(kept).word, _account(checkpoint, kept).word) == ("accepted", "accepted")


def test_a_graph_that_was_not_modified_is_rejected(models):
    verdict = _contract(models["raw"])
    assert verdict.word == "rejected"
    assert "14 Pads may fill with -inf" in verdict.findings[0]


def test_a_graph_of_another_batch_size_is_rejected_with_every_shape(models):
    verdict = _contract(models["modified"], batch=4)
    assert (verdict.word, verdict.readings[0].value) == ("rejected", 11)
    assert "(1, 3, 512, 512); required: 'x.1' float (4, 3, 512, 512)" in verdict.findings[0]


@pytest.mark.usefixtures("noted")
def test_the_weights_of_another_checkpoint_are_rejected(checkpoint, models):
    flipped = {name: value.flip(0) if value.dim() else value for name, value in checkpoint.tensors.items()}
    verdict = _account(dataclasses.replace(checkpoint, tensors=flipped), models["modified"])
    assert verdict.word == "rejected"
    assert min(_readings(verdict).values()) > 0.1


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(
    ("change", "fold_error"),
    [
        (lambda values: [values * np.float32(1.01)], pytest.approx(0.01, rel=1e-3)),
        (_first_channel_zero, pytest.approx(0.5, abs=0.5)),
    ],
    ids=["one percent off", "a channel zeroed"],
)
def test_one_changed_weight_is_rejected_and_named(checkpoint, models, change, fold_error):
    verdict = _account(checkpoint, _with(models["modified"], change, CLASS_HEAD))
    assert verdict.word == "rejected"
    assert _readings(verdict) == {"unaccounted": 1, "unused": 0, "fold_error": fold_error}
    assert f"at {CLASS_HEAD} is not class_net.conv_rep.0.conv_pw.weight" in verdict.findings[0]


@pytest.mark.usefixtures("noted")
def test_two_layers_that_swapped_their_weights_are_rejected_and_named(checkpoint, models):
    swapped = _with(models["modified"], lambda first, second: [second, first], CLASS_HEAD, BOX_HEAD)
    verdict = _account(checkpoint, swapped)
    assert (verdict.word, _readings(verdict)["unaccounted"]) == ("rejected", 2)
    told = "\n".join(verdict.findings)
    assert "is not class_net.conv_rep.0.conv_pw.weight" in told
    assert "nearest is box_net.conv_rep.0.conv_pw.weight" in told


@pytest.mark.usefixtures("noted")
def test_batch_norm_folded_with_the_statistics_of_a_batch_is_rejected(checkpoint, models):
    variance = checkpoint.tensors["backbone.bn1.running_var"].numpy()
    # The variance of one batch wanders around the running one.
    of_a_batch = variance * np.random.default_rng(0).uniform(0.9, 1.1, variance.shape)
    change = np.sqrt((variance + 1e-3) / (of_a_batch + 1e-3))[:, None, None, None]
    graph_of_a_batch = _with(models["modified"], lambda values: [values * change], "/backbone/conv_stem/Conv")
    verdict = _account(checkpoint, graph_of_a_batch)
    assert verdict.word == "rejected"
    assert "is not backbone.conv_stem.weight with backbone.bn1.weight" in verdict.findings[0]


@pytest.mark.usefixtures("noted")
def test_a_fusion_weight_that_changed_is_rejected_and_named(checkpoint, models):
    changed = _copy(models["modified"])
    fusion = "/fpn/cell/cell.0/fnode.0/combine"
    tensor = _weight(changed, f"{fusion}/Mul", slot=1)
    _set(tensor, numpy_helper.to_array(tensor) * np.float32(1.01))
    verdict = _account(checkpoint, changed)
    assert verdict.word == "rejected"
    assert (
        f"at input 0 of {fusion}/ReduceSum_1 is not fpn.cell.0.fnode.0.combine.edge_weights[0]" in verdict.findings[0]
    )
