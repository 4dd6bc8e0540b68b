import json
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.artifacts import ArtifactStore, Recipe
from support.backends.onnx_runtime import OnnxCpuBackend
from support.errors import SuiteError, WrongDataError
from support.graph_contract import violations
from support.onnx_files import load_onnx
from support.spec import load_spec
from unit.hostile.loaders import small_onnx

SPEC = load_spec("shapes_d0")


def with_weights_elsewhere(folder, location):
    """Write a model that takes its weights from a file it names."""
    model = small_onnx()
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "12"}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "inner" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "beside", "/etc/passwd", "../../../../../../../../etc/passwd"])
def test_no_runtime_opens_a_model_that_names_other_files(location, tmp_path):
    path = with_weights_elsewhere(tmp_path, location)
    for secret in (tmp_path / "secret", tmp_path / "inner/beside"):
        np.ones(3, np.float32).tofile(secret)
    with pytest.raises(WrongDataError, match="1 tensors lie in other files"), OnnxCpuBackend(path):
        pass


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_model_that_can_be_read_is_judged_or_refused(tmp_path_factory, choose):
    good = small_onnx().SerializeToString()
    place, bit = choose.draw(st.integers(0, len(good) - 1)), choose.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
    try:
        model = load_onnx(path)
    except SuiteError:
        return
    assert violations(model, SPEC.graph, SPEC.model, 1, pads_allowed=False)


# -- the manifest of an artifact ---------------------------------------------------------------------------------------

RECIPE = Recipe("onnx", 1, {"source": "a"})


def built(store):
    def write(path):
        path.write_bytes(b"model")
        return {}

    return store.get(RECIPE, "model.onnx", write)


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: "[" * 100_000,
        lambda facts: "9" * 5000,
        lambda facts: json.dumps({**facts, "files": {"../../../etc/passwd": {"bytes": 1, "sha256": None}}}),
        lambda facts: json.dumps({**facts, "files": {**facts["files"], "pipe": {"bytes": 0, "sha256": "0" * 64}}}),
        lambda facts: json.dumps({**facts, "facts": []}),
        lambda facts: json.dumps({**facts, "recipe": None}),
    ],
    ids=["nesting", "digits", "a file outside", "a pipe", "other facts", "no recipe"],
)
def test_a_hostile_manifest_is_built_over(tmp_path, edit):
    store = ArtifactStore(tmp_path, lock_seconds=5)
    entry = built(store).path.parent
    manifest = entry / "artifact.json"
    os.mkfifo(entry / "pipe")
    manifest.write_text(edit(json.loads(manifest.read_text())))
    again = built(ArtifactStore(tmp_path, lock_seconds=5))
    assert again.path.read_bytes() == b"model"
    assert again.built
