from types import SimpleNamespace

import numpy as np
import pytest

import support.faults.kept_heads
from support.backends.base import Backend, TensorInfo
from support.faults.kept_heads import KeptHeads, ReplayBackend
from support.heads import head_shapes
from support.spec import load_spec
from support.stages.onnx_from_pth import output_names

MODEL = load_spec("shapes_d0").model.model_copy(update={"image_size": 128})
IMAGES = 5


class Network(Backend):
    """Heads that are the mean of their image."""

    timer, includes_copies = "a test", True

    def _open(self):
        self._names = output_names(MODEL)
        outputs = zip(self._names, head_shapes(MODEL, 2), strict=True)
        return TensorInfo("x", (2, 3, 128, 128), "float32"), tuple(TensorInfo(*out, "float32") for out in outputs)

    def _run(self, tensor):
        means = tensor.mean(axis=(1, 2, 3), keepdims=True)
        return {info.name: np.zeros(info.shape, np.float32) + means for info in self.outputs}

    def _close(self):
        pass


class Inputs:
    def __len__(self):
        return IMAGES

    def tensors(self, rows):
        return np.stack([np.full((3, 128, 128), row, np.float32) for row in rows])


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(support.faults.kept_heads, "OnnxCpuBackend", lambda path: Network())
    heads = KeptHeads(tmp_path, MODEL)
    heads.record(Inputs(), SimpleNamespace())
    return heads


def test_kept_heads_are_those_of_their_inputs_in_any_batch_size(kept):
    with ReplayBackend(kept, 3) as device:
        outputs = device.infer(Inputs().tensors([4, 0, 2]))
    assert [value.shape for value in outputs.values()] == list(head_shapes(MODEL, 3))
    assert all(value[:, 0, 0, 0].tolist() == [4, 0, 2] for value in outputs.values())


def test_an_input_nobody_recorded_has_no_heads(kept):
    with ReplayBackend(kept, 1) as device, pytest.raises(ValueError, match="no heads are kept of this network input"):
        device.infer(Inputs().tensors([9]))


def test_a_device_may_alter_what_it_gives_but_not_what_is_kept(kept):
    seen = []

    def alter(outputs, keys, call):
        seen.append((len(keys), call))
        for value in outputs.values():
            value += 1
        return outputs

    with ReplayBackend(kept, 2, alter) as device:
        for _ in range(2):
            assert device.infer(Inputs().tensors([1, 3]))["class_p3"][:, 0, 0, 0].tolist() == [2, 4]
    assert seen == [(2, 0), (2, 1)]


def test_a_device_may_tell_its_own_time(kept):
    with ReplayBackend(kept, 1, pace=lambda call: 0.5 + call) as device:
        device.infer(Inputs().tensors([0]))
        device.infer(Inputs().tensors([1]))
        assert device.samples == [0.5, 1.5]
