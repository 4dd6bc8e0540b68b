import dataclasses
import errno
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from support.artifacts import ArtifactStore
from support.checkpoint import build_model
from support.errors import BuildFailedError, ContractViolationError, NoSpaceError
from support.heads import head_shapes
from support.onnx_files import input_shapes, load_onnx, opset_of, output_shapes, save_onnx
from support.progress import SilentProgress
from support.stages import onnx_from_pth as stage
from support.stages.onnx_from_pth import onnx_from_pth, output_names

BATCH = 2


@pytest.fixture(scope="session")
def graph_file(raw):
    return load_onnx(raw.path)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store", lock_seconds=30)


def test_the_graph_has_the_opset_and_names_and_shapes_asked_for(graph_file, spec):
    assert opset_of(graph_file) == 11
    assert dict(input_shapes(graph_file)) == {"x.1": (2, 3, 512, 512)}
    assert list(output_shapes(graph_file)) == list(output_names(spec.model))
    assert tuple(output_shapes(graph_file).values()) == head_shapes(spec.model, BATCH)


def test_every_operator_is_one_the_compiler_takes(graph_file, spec):
    assert {node.op_type for node in graph_file.graph.node} <= set(spec.graph.allowed_operators)


def test_the_raw_graph_keeps_its_pads_and_says_so(raw):
    assert len(raw.made_by["facts"]["kept_pads"]) == 14


def test_nothing_of_this_machine_is_in_the_graph(raw, graph_file):
    assert not any(node.doc_string for node in graph_file.graph.node)
    assert b"site-packages" not in raw.path.read_bytes()


def test_the_artifact_tells_weights_options_and_tools(raw, checkpoint):
    recipe = raw.made_by["recipe"]
    assert recipe["inputs"]["checkpoint"] == checkpoint.sha256
    assert recipe["options"]["opset"] == 11
    assert recipe["options"]["input"] == {"x.1": [2, 3, 512, 512]}
    assert recipe["tools"].keys() == {"effdet", "onnx", "timm", "torch"}
    assert checkpoint.sha256 in raw.parents


def test_a_second_call_exports_nothing(raw, stage_store, checkpoint, spec, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", None)
    for batch in (1, BATCH):
        again = onnx_from_pth(stage_store, checkpoint, spec.model, spec.graph, batch, SilentProgress())
        assert not again.built
    assert again.sha256 == raw.sha256


def test_the_graph_computes_what_the_network_computes(raw, checkpoint, spec):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(7).normal(size=(BATCH, 3, 512, 512)).astype(np.float32)
    computed = onnxruntime.InferenceSession(raw.path, providers=["CPUExecutionProvider"]).run(None, {"x.1": images})
    with torch.inference_mode():
        classes, boxes = build_model(checkpoint, spec.model)(torch.from_numpy(images))
    for output, head in zip(computed, [*classes, *boxes], strict=True):
        np.testing.assert_allclose(output, head.numpy(), atol=1e-3)


def test_tracing_another_batch_gives_the_very_bytes_of_the_restated_graph(raw, store, checkpoint, spec, monkeypatch):
    monkeypatch.setattr(stage, "_TRACED_BATCH", BATCH)
    traced = onnx_from_pth(store, checkpoint, spec.model, spec.graph, BATCH, SilentProgress())
    assert traced.parents != raw.parents
    assert traced.sha256 == raw.sha256


def export_with(graph_file, change=lambda model: None):
    def export(network, arguments, path, **options):
        model = onnx.ModelProto()
        model.CopyFrom(graph_file)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        change(model)
        save_onnx(model, Path(path))

    return export


def test_the_warnings_of_the_exporter_are_kept_and_not_shown(
    checkpoint, spec, store, graph_file, monkeypatch, capfd, recwarn
):
    def noisy(model):
        sys.stdout.write("noise")
        for _ in range(2):
            warnings.warn("an old exporter", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(torch.onnx, "export", export_with(graph_file, noisy))
    made = onnx_from_pth(store, checkpoint, spec.model, spec.graph, 1, SilentProgress())
    assert made.made_by["facts"]["warnings"] == ["an old exporter"]
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def set_opset_18(model):
    model.opset_import[0].version = 18


def rename_input(model):
    model.graph.input[0].name = "images"


def free_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def swap_outputs(model):
    heads = [*model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(reversed(heads))


def drop_an_output(model):
    del model.graph.output[9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_opset_18, "asked for opset 11 and wrote 18"),
        (rename_input, r"asked for inputs \{'x\.1': .*\} and wrote \{'images': "),
        (free_batch, r"wrote \{'x\.1': \('batch', 3, 512, 512\)\}"),
        (swap_outputs, r"asked for outputs \[\('class_p3', 810\).* and wrote \[\('box_p7', 36\)"),
        (drop_an_output, "asked for outputs"),
    ],
)
def test_another_graph_than_the_one_asked_for_is_a_failed_build(
    change, message, checkpoint, spec, store, graph_file, monkeypatch
):
    monkeypatch.setattr(torch.onnx, "export", export_with(graph_file, change))
    with pytest.raises(BuildFailedError, match=message):
        onnx_from_pth(store, checkpoint, spec.model, spec.graph, 1, SilentProgress())
    assert not list(store.root.rglob("*.onnx"))


def test_an_exporter_that_fails_is_a_failed_build_with_its_words(checkpoint, spec, store, monkeypatch):
    def fails(*arguments, **options):
        sys.stdout.write("while exporting node 7")
        raise TypeError("export() got an unexpected keyword argument 'dynamo'")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(BuildFailedError, match=r"could not export tf_efficientdet_d0: TypeError: .*'dynamo'\n.*node 7"):
        onnx_from_pth(store, checkpoint, spec.model, spec.graph, 1, SilentProgress())


def test_a_disk_that_fills_up_during_the_export_is_told(checkpoint, spec, store, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(NoSpaceError, match="is full"):
        onnx_from_pth(store, checkpoint, spec.model, spec.graph, 1, SilentProgress())


def test_weights_of_another_architecture_are_not_exported(checkpoint, spec, store):
    tensors = dict(checkpoint.tensors)
    del tensors["class_net.predict.conv_pw.bias"]
    bad = dataclasses.replace(checkpoint, tensors=tensors)
    with pytest.raises(ContractViolationError, match=r"shapes_d0\.pth: missing class_net\.predict\.conv_pw\.bias"):
        onnx_from_pth(store, bad, spec.model, spec.graph, 1, SilentProgress())
