import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from support.artifacts import Artifact, ArtifactStore, file_sha256
from support.checkpoint import load_checkpoint
from support.errors import WrongDataError
from support.measurements.stages import checkpoint_contract, modified_edit, pad_edit
from support.onnx_files import load_onnx, save_onnx
from support.progress import SilentProgress
from support.spec import load_spec
from support.stages.modified_onnx import modified_onnx, zero_pads
from support.stages.pad_example import make_pad_example, pad_example
from support.verdict import judge

SPEC = load_spec("shapes_d0")
KIT = Path(__file__).resolve().parents[2] / SPEC.checkpoint.path
KEY = "class_net.predict.conv_pw.bias"


def judged(name, measurement):
    return judge(name, SPEC.clauses[name], measurement)


@pytest.fixture(scope="module")
def kit():
    return load_checkpoint(KIT, SPEC.model, SPEC.checkpoint)


@pytest.fixture
def edited(tmp_path):
    return modified_onnx(ArtifactStore(tmp_path, lock_seconds=30), pad_example(), 1, SilentProgress())


@pytest.fixture
def candidate(tmp_path):
    def make(change):
        model = make_pad_example()
        change(model)
        save_onnx(model, tmp_path / "candidate.onnx")
        return Artifact("modified_onnx", tmp_path / "candidate.onnx", file_sha256(tmp_path / "candidate.onnx"), {}, ())

    return make


def test_the_kit_keeps_its_contract(kit):
    verdict = judged("checkpoint_contract", checkpoint_contract(kit, SPEC.model))
    assert (verdict.word, verdict.count, verdict.expected) == ("accepted", 784, 784)
    assert verdict.origin["checkpoint"] == SPEC.checkpoint.sha256
    assert verdict.origin["architecture"] == "tf_efficientdet_d0"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({KEY: torch.zeros(90)}, f"{KEY} has shape (90,), required (810,)"),
        ({KEY: torch.full((810,), torch.nan)}, f"{KEY} has 810 of 810 values that are not finite"),
        ({"extra": torch.zeros(1)}, "surplus extra (1,)"),
    ],
)
def test_a_checkpoint_with_a_wrong_tensor_is_rejected(change, finding, kit):
    bad = dataclasses.replace(kit, tensors={**kit.tensors, **change})
    verdict = judged("checkpoint_contract", checkpoint_contract(bad, SPEC.model))
    assert (verdict.word, verdict.findings) == ("rejected", (finding,))


def test_a_checkpoint_that_lacks_a_tensor_is_rejected(kit):
    tensors = {name: tensor for name, tensor in kit.tensors.items() if name != KEY}
    verdict = judged("checkpoint_contract", checkpoint_contract(dataclasses.replace(kit, tensors=tensors), SPEC.model))
    assert (verdict.word, verdict.findings) == ("rejected", (f"missing {KEY} (810,)",))


def test_an_empty_checkpoint_is_rejected_with_the_first_findings_and_the_number_of_the_rest(kit):
    tensors = {"weight": torch.zeros(1)}
    verdict = judged("checkpoint_contract", checkpoint_contract(dataclasses.replace(kit, tensors=tensors), SPEC.model))
    assert verdict.word == "rejected"
    assert verdict.readings[0].value == 785
    assert len(verdict.findings) == 11
    assert verdict.findings[-1] == "and 775 more"


def test_the_edit_of_the_stage_is_accepted(edited):
    for verdict in (
        judged("modified_edit", modified_edit(pad_example(), edited)),
        judged("pad_edit", pad_edit(pad_example(), edited)),
    ):
        assert verdict.word == "accepted"
        assert verdict.findings == ()
        assert verdict.origin == {"before": pad_example().sha256, "after": edited.sha256}


def test_what_was_compared_is_counted(edited):
    assert modified_edit(pad_example(), edited).count == 9 + 8
    assert pad_edit(pad_example(), edited).count == 2


def write_half_precision_zeros(model):
    zero_pads(model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("/zero"):
            tensor.CopyFrom(numpy_helper.from_array(np.float16(0), tensor.name))


def change_another_weight(model):
    zero_pads(model)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))


def leave_one_pad(model):
    model.graph.node[5].input[2] = "zero"


def add_a_node(model):
    zero_pads(model)
    model.graph.node.append(helper.make_node("Relu", ["y"], ["unused"], "extra"))


def do_nothing(model):
    pass


@pytest.mark.parametrize(
    "change", [write_half_precision_zeros, change_another_weight, leave_one_pad, add_a_node, do_nothing]
)
def test_a_wrong_edit_is_rejected_by_both_clauses(change, candidate):
    after = candidate(change)
    for verdict in (
        judged("modified_edit", modified_edit(pad_example(), after)),
        judged("pad_edit", pad_edit(pad_example(), after)),
    ):
        assert verdict.word == "rejected"
        assert verdict.findings


def test_a_pad_that_was_left_is_named(candidate):
    measurement = pad_edit(pad_example(), candidate(leave_one_pad))
    assert measurement.values["kept_pads"] == 1
    assert measurement.findings[0] == "Pad pad_shared is not edited"


def test_a_graph_without_infinite_pads_tests_nothing(edited):
    with pytest.raises(WrongDataError, match="has no Pad that fills with -inf"):
        pad_edit(edited, edited)
    assert load_onnx(edited.path).graph.node
