import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.artifacts import Artifact, ArtifactStore
from support.backends.onnx_runtime import CudaBackend, OnnxCpuBackend
from support.candidate import BuiltModels, given_model, open_on_chip, pads_edited
from support.capabilities import Chip
from support.errors import BuildFailedError, NoDataError
from support.progress import SilentProgress
from support.spec import load_spec

SPEC = load_spec("shapes_d0")

# -- a model that is given ---------------------------------------------------------------------------------------------


def test_a_given_model_is_found_by_its_batch_size_and_known_by_its_content(tmp_path):
    for batch in (1, 16):
        (tmp_path / f"d0_bs{batch}.onnx").write_bytes(b"model %d" % batch)
    template = f"{tmp_path}/d0_bs{{batch}}.onnx"
    models = [given_model(template, batch) for batch in (1, 16)]
    assert [model.path.name for model in models] == ["d0_bs1.onnx", "d0_bs16.onnx"]
    assert [model.sha256 for model in models] == [hashlib.sha256(b"model %d" % batch).hexdigest() for batch in (1, 16)]
    assert all(model.made_by == {"given": template} and not model.built for model in models)


def test_other_braces_of_a_path_mean_nothing(tmp_path):
    (tmp_path / "{0}{x}_4.onnx").write_bytes(b"model")
    assert given_model(f"{tmp_path}/{{0}}{{x}}_{{batch}}.onnx", 4).path.is_file()


def test_a_given_model_that_is_missing_is_named_with_its_option(tmp_path):
    (tmp_path / "d0_bs4.onnx").mkdir()
    for batch in (4, 8):
        with pytest.raises(NoDataError, match=rf"there is no model .*d0_bs{batch}\.onnx\n.*--onnx=.*\{{batch\}}"):
            given_model(f"{tmp_path}/d0_bs{{batch}}.onnx", batch)


def test_the_runtime_follows_the_chip(tmp_path):
    model = Artifact("onnx", tmp_path / "d0.onnx", "0" * 64, {}, ())
    cpu = Chip(name="cpu", device_id=0, model="", serial="", driver="")
    assert type(open_on_chip(model, cpu)) is OnnxCpuBackend
    gpu = open_on_chip(model, cpu.model_copy(update={"name": "T4", "device_id": 1}))
    assert type(gpu) is CudaBackend
    assert gpu._device_id == 1


# -- a model that is built ---------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path, monkeypatch):
    asked = []

    def stage(name, source_at):
        def build(store, *arguments):
            source, batch = arguments[source_at], next(value for value in arguments if type(value) is int)
            asked.append((name, batch))
            path = Path(f"{source.path if isinstance(source, Artifact) else source}/{name}")
            return Artifact(name, path, "0" * 64, {}, ())

        monkeypatch.setattr(f"support.stages.{name}.{name}", build)

    for name in ("onnx_from_pth", "simplified_onnx", "modified_onnx"):
        stage(name, 0)

    def checkpoint():
        asked.append("checkpoint")
        return "d0.pth"

    models = BuiltModels(ArtifactStore(tmp_path, lock_seconds=1), checkpoint, SPEC, SilentProgress())
    models.asked = asked
    return models


def test_each_stage_takes_the_product_of_the_one_before(built):
    assert built.asked == []
    assert str(built.modified(4).path) == "d0.pth/onnx_from_pth/simplified_onnx/modified_onnx"
    assert str(built.raw_edited(4).path) == "d0.pth/onnx_from_pth/modified_onnx"
    assert [built.stage(name, 4) for name in ("raw onnx", "simplified onnx", "raw onnx, Pads edited")] == [
        built.raw(4),
        built.simplified(4),
        built.raw_edited(4),
    ]


def test_each_stage_is_built_once_for_each_batch_size(built):
    for _ in range(3):
        for batch in (1, 4):
            built.modified(batch)
    assert sorted(map(str, built.asked)) == sorted(
        map(
            str,
            ["checkpoint"] * 2
            + [(name, batch) for name in ("onnx_from_pth", "simplified_onnx", "modified_onnx") for batch in (1, 4)],
        )
    )


def test_a_stage_that_fails_fails_once_for_all_that_follow(built, monkeypatch):
    tried = []

    def fail(*arguments):
        tried.append(arguments)
        raise BuildFailedError("the exporter is broken")

    monkeypatch.setattr("support.stages.onnx_from_pth.onnx_from_pth", fail)
    for build in (built.raw, built.simplified, built.modified, built.raw_edited):
        with pytest.raises(BuildFailedError, match="the exporter is broken"):
            build(8)
    assert len(tried) == 1


# -- Pads --------------------------------------------------------------------------------------------------------------


def pooled(fill, op="MaxPool", computed=False):
    """Pad an image and pool it."""
    nodes = [
        *([helper.make_node("Identity", ["given"], ["fill"])] if computed else []),
        helper.make_node("Pad", ["x", "pads", "fill"], ["padded"]),
        helper.make_node(op, ["padded"], ["y"], kernel_shape=[3, 3]),
    ]
    constants = [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])]
    if computed:
        inputs.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, []))
    else:
        constants.append(numpy_helper.from_array(np.array(fill, np.float32), "fill"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])]
    graph = helper.make_graph(nodes, "pooled", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


@pytest.mark.parametrize(
    ("model", "edited"),
    [
        (pooled(0.0), True),
        (pooled(-1.0), True),
        (pooled(-np.inf), False),
        (pooled(0.0, op="AveragePool"), False),
        (pooled(0.0, computed=True), False),
    ],
    ids=["zero", "another number", "minus infinity", "an average", "a computed value"],
)
def test_a_pad_before_a_max_pooling_is_edited_unless_it_fills_with_minus_infinity(model, edited):
    assert pads_edited(model) is edited


def test_the_edit_of_the_committed_example_is_seen():
    from support.stages.modified_onnx import zero_pads
    from support.stages.pad_example import pad_example

    model = onnx.load(pad_example().path)
    assert not pads_edited(model)
    zero_pads(model)
    assert pads_edited(model)
