import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import support.backends.ascend
import support.backends.onnx_runtime
import support.backends.torch_eager
from support.ascend.acl_python import AclPython
from support.backends.ascend import AclBackend
from support.backends.base import Backend, TensorInfo, only_input
from support.backends.onnx_runtime import CudaBackend, OnnxCpuBackend
from support.backends.torch_eager import TorchBackend
from support.deadline import deadline
from support.errors import (
    ContractViolationError,
    NoDeviceError,
    SuiteTimeoutError,
    ToolError,
    WrongDataError,
    WrongDeviceError,
)
from support.heads import head_shapes
from support.spec import load_spec
from unit.simulator import stand_in

SMALL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": 128, "classes": 3})
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BATCH = 2


class Arithmetic(Backend):
    timer = "nothing"
    includes_copies = False

    def _open(self):
        outputs = TensorInfo("sum", (BATCH,), "float32"), TensorInfo("twice", (BATCH, 3, 4, 4), "float32")
        return TensorInfo("x", (BATCH, 3, 4, 4), "float32"), outputs

    def _run(self, tensor):
        return {"sum": tensor.sum(axis=(1, 2, 3)), "twice": tensor * 2}

    def _close(self):
        self.closed = True


# ONNX Runtime on a machine with a GPU, as far as the backend can see.
class CudaRuntime:
    __version__ = "1.32.0"

    def __init__(self, used=(CUDA, CPU), available=(CUDA, CPU)):
        self.used, self.available, self.sessions = used, available, []

    def get_available_providers(self):
        return list(self.available)

    def SessionOptions(self):  # noqa: N802 - the runtime's name
        return pytest.importorskip("onnxruntime").SessionOptions()

    def InferenceSession(self, path, sess_options, providers):  # noqa: N802 - the runtime's name
        real = pytest.importorskip("onnxruntime").InferenceSession(path, providers=[CPU])
        self.sessions.append((sess_options, providers))
        return CudaSession(real, self.used)


class CudaSession:
    def __init__(self, real, used):
        self.get_inputs, self.get_outputs, self.run = real.get_inputs, real.get_outputs, real.run
        self.get_providers = lambda: list(used)


def graph(path, nodes, inputs, outputs, initializers=()):
    onnx = pytest.importorskip("onnx")
    values = [[onnx.helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    made = onnx.helper.make_graph(nodes, "tiny", *values, list(initializers))
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, path)
    return path


@pytest.fixture
def tiny(tmp_path):
    helper = pytest.importorskip("onnx").helper
    nodes = [helper.make_node("Relu", ["x.1"], ["relu"]), helper.make_node("ReduceMean", ["relu"], ["mean"], axes=[1])]
    shape = [BATCH, 3, 4, 4]
    return graph(
        tmp_path / "tiny.onnx", nodes, [("x.1", 1, shape)], [("relu", 1, shape), ("mean", 1, [BATCH, 1, 4, 4])]
    )


@pytest.fixture
def network():
    torch = pytest.importorskip("torch")
    shapes = head_shapes(SMALL, BATCH)

    class Network(torch.nn.Module):
        def forward(self, x):
            heads = [x.mean(dim=(1, 2, 3)).reshape(BATCH, 1, 1, 1).expand(shape).contiguous() for shape in shapes]
            return heads[:5], heads[5:]

    return Network().eval()


def on_a_simulated_host(folder):
    return AclBackend(
        stand_in.model(folder / "small.om"),
        host=stand_in.host(folder / "host", "sim:310P3"),
        python=AclPython(Path(sys.executable), "", "V3", ""),
        device_id=0,
        scratch=None,
        load_seconds=60,
        call_seconds=60,
    )


MAKERS = {
    AclBackend: lambda request: on_a_simulated_host(request.getfixturevalue("tmp_path")),
    Arithmetic: lambda request: Arithmetic(),
    OnnxCpuBackend: lambda request: OnnxCpuBackend(request.getfixturevalue("tiny")),
    CudaBackend: lambda request: CudaBackend(request.getfixturevalue("tiny"), device_id=0),
    TorchBackend: lambda request: TorchBackend(request.getfixturevalue("network"), SMALL, BATCH),
}


@pytest.fixture(params=MAKERS, ids=lambda kind: kind.__name__)
def backend(request, monkeypatch):
    if request.param is OnnxCpuBackend:
        pytest.importorskip("onnxruntime")
    if request.param is CudaBackend:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
        monkeypatch.setattr(support.backends.onnx_runtime, "_import_runtime", CudaRuntime)
    return MAKERS[request.param](request)


def tensor_for(backend, seed=0):
    return np.random.default_rng(seed).normal(0, 1, backend.input.shape).astype(np.float32)


# -- what every backend keeps ------------------------------------------------------------------------------------------


def test_every_backend_of_the_suite_is_under_contract():
    modules = [support.backends.ascend, support.backends.onnx_runtime, support.backends.torch_eager]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    assert {kind for kind in found if issubclass(kind, Backend) and not kind.__name__.startswith("_")} == (
        set(MAKERS) - {Arithmetic} | {Backend}
    )


def test_a_backend_says_what_it_takes_and_gives(backend):
    assert backend.timer
    with backend as opened:
        assert opened is backend
        assert backend.batch == BATCH
        assert backend.input.shape[:2] == (BATCH, 3)
        assert len({info.name for info in backend.outputs}) == len(backend.outputs) > 1


def test_outputs_are_those_that_were_declared(backend):
    with backend:
        outputs = backend.infer(tensor_for(backend))
        found = [TensorInfo(name, value.shape, value.dtype.name) for name, value in outputs.items()]
        assert found == list(backend.outputs)


def test_the_same_input_gives_the_same_outputs_and_another_one_others(backend):
    with backend:
        # Outputs last until those of the next call.
        one, again, other = (
            {name: value.copy() for name, value in backend.infer(tensor_for(backend, seed)).items()}
            for seed in (0, 0, 1)
        )
        for name in one:
            np.testing.assert_array_equal(one[name], again[name])
        assert any((one[name] != other[name]).any() for name in one)


def test_outputs_stay_as_they_are_while_the_next_are_computed_and_after_the_end(backend):
    with backend:
        outputs = backend.infer(tensor_for(backend))
        kept = {name: value.copy() for name, value in outputs.items()}
        backend.compute(tensor_for(backend, seed=1))
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, kept[name])


def copied(fetched):
    return {name: value.copy() for name, value in fetched().items()}


def test_outputs_may_be_fetched_while_the_next_are_computed_and_waited_for_in_another_thread(backend):
    inputs = [0, 1, 2, 3]
    with backend:
        alone = [{name: value.copy() for name, value in backend.infer(tensor_for(backend, i)).items()} for i in inputs]
        found = []
        places = backend.places()
        with ThreadPoolExecutor(1) as other:
            waiting = None
            for place, seed in enumerate(inputs):
                places[place % 2][:] = tensor_for(backend, seed)
                backend.compute(places[place % 2])
                if waiting is not None:
                    found.append(waiting.result())
                waiting = other.submit(copied, backend.fetch())
            found.append(waiting.result())
    for left, right in zip(alone, found, strict=True):
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name])


def test_outputs_are_fetched_once(backend):
    with backend:
        with pytest.raises(ValueError, match="there are no outputs to fetch"):
            backend.fetch()
        backend.infer(tensor_for(backend))
        with pytest.raises(ValueError, match="there are no outputs to fetch"):
            backend.fetch()


def test_any_array_is_an_input_beside_those_the_backend_gives(backend):
    with backend:
        given = backend.places()
        assert [(place.shape, place.dtype) for place in given] == [(backend.input.shape, np.float32)] * 2
        own = tensor_for(backend, seed=5)
        expected = {name: value.copy() for name, value in backend.infer(own).items()}
        for place in given:
            place[:] = own
            for name, value in backend.infer(place).items():
                np.testing.assert_array_equal(value, expected[name])


def test_every_call_leaves_one_sample_and_each_context_begins_anew(backend):
    with backend:
        assert backend.samples == []
        for calls in (1, 2, 3):
            backend.infer(tensor_for(backend))
            assert len(backend.samples) == calls
        assert all(0 <= seconds < 60 for seconds in backend.samples)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:1], r"\[1, 3, .*\], the model takes .*\[2, 3, "),
        (lambda x: x[..., :2].copy(), r"the model takes"),
        (lambda x: x.transpose(1, 0, 2, 3).copy(), r"\[3, 2, .*the model takes"),
        (lambda x: x[0], r"the model takes"),
        (lambda x: x.astype(np.float64), "float64.*the model takes .*float32"),
        (lambda x: x.astype(">f4"), "must be C-contiguous and of native byte order"),
        (lambda x: np.asfortranarray(x), "must be C-contiguous and of native byte order"),
        (lambda x: np.repeat(x, 2, axis=3)[..., ::2], "must be C-contiguous and of native byte order"),
    ],
)
def test_an_input_that_does_not_fit_never_reaches_the_runtime(backend, monkeypatch, spoil, message):
    with backend:
        tensor = tensor_for(backend)
        monkeypatch.setattr(backend, "_run", lambda tensor: pytest.fail("the runtime was called"))
        with pytest.raises(ValueError, match=message):
            backend.infer(spoil(tensor))
        assert backend.samples == []


@pytest.mark.parametrize("spoil", ["drop", "rename", "shape", "type"])
def test_an_output_that_was_not_declared_violates_the_contract(backend, monkeypatch, spoil):
    with backend:
        tensor = tensor_for(backend)
        outputs = dict(backend.infer(tensor))
        name, value = outputs.popitem()
        spoiled = {
            "drop": {},
            "rename": {"other": value},
            "shape": {name: value[:1]},
            "type": {name: value.astype("f8")},
        }
        monkeypatch.setattr(backend, "_run", lambda tensor: outputs | spoiled[spoil])
        with pytest.raises(ContractViolationError, match=r"the runtime gave .*\n  required: as declared: "):
            backend.infer(tensor)


def test_the_device_is_given_back_also_after_an_error(backend, monkeypatch):
    closed, close = [], backend._close
    monkeypatch.setattr(backend, "_close", lambda: (closed.append(True), close()))
    with pytest.raises(ZeroDivisionError), backend:
        raise ZeroDivisionError
    assert closed == [True]


def test_the_device_is_given_back_if_it_cannot_be_opened(backend, monkeypatch):
    closed = []
    monkeypatch.setattr(backend, "_close", lambda: closed.append(True))
    monkeypatch.setattr(backend, "_open", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), backend:
        pytest.fail("the context was entered")
    assert closed == [True]


# -- PyTorch -----------------------------------------------------------------------------------------------------------


def test_a_network_that_fails_is_a_failure_of_the_tool(network):
    torch = pytest.importorskip("torch")
    network.forward = lambda x: torch.zeros(2, 3) @ x.reshape(-1)
    with TorchBackend(network, SMALL, BATCH) as backend, pytest.raises(ToolError, match=r"PyTorch failed: .*size"):
        backend.infer(tensor_for(backend))


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x06"])
def test_a_damaged_model_is_wrong_data_and_named(tmp_path, content):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(WrongDataError, match=r"broken\.onnx is damaged"), OnnxCpuBackend(path):
        pytest.fail("the context was entered")


@pytest.mark.parametrize("shape", [["batch", 3, 4, 4], [None, 3, 4, 4]])
def test_a_dynamic_shape_is_refused(tmp_path, shape):
    pytest.importorskip("onnxruntime")
    nodes = [pytest.importorskip("onnx").helper.make_node("Relu", ["x"], ["y"])]
    path = graph(tmp_path / "dynamic.onnx", nodes, [("x", 1, shape)], [("y", 1, shape)])
    with (
        pytest.raises(
            ContractViolationError, match=r"dynamic\.onnx: x is tensor\(float\).*\n  required: a static shape"
        ),
        OnnxCpuBackend(path),
    ):
        pytest.fail("the context was entered")


def test_whole_numbers_are_no_input(tmp_path):
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    path = graph(
        tmp_path / "cast.onnx", [helper.make_node("Cast", ["x"], ["y"], to=1)], [("x", 7, [1])], [("y", 1, [1])]
    )
    with pytest.raises(ContractViolationError, match=r"x is tensor\(int64\)"), OnnxCpuBackend(path):
        pytest.fail("the context was entered")


def test_two_inputs_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    path = graph(tmp_path / "two.onnx", nodes, [("a", 1, [1]), ("b", 1, [1])], [("y", 1, [1])])
    with (
        pytest.raises(ContractViolationError, match=r"two\.onnx has 2 inputs: a float32\[1\], b"),
        OnnxCpuBackend(path),
    ):
        pytest.fail("the context was entered")
    with pytest.raises(ContractViolationError, match="a model has 0 inputs: none"):
        only_input((), "a model")


def test_a_call_that_fails_is_a_failure_of_the_tool(tiny, monkeypatch):
    pytest.importorskip("onnxruntime")
    with OnnxCpuBackend(tiny) as backend:
        monkeypatch.setattr(backend, "outputs", (TensorInfo("nowhere", (1,), "float32"),))
        with pytest.raises(ToolError, match=r"ONNX Runtime running tiny\.onnx failed: .*nowhere"):
            backend.infer(tensor_for(backend))


def test_a_call_that_takes_too_long_is_not_taken_for_a_failure_of_the_tool(tiny, monkeypatch):
    pytest.importorskip("onnxruntime")

    class Slow:
        def run(self, names, feeds):
            time.sleep(10)

    with OnnxCpuBackend(tiny) as backend:
        monkeypatch.setattr(backend, "_session", Slow())
        with pytest.raises(SuiteTimeoutError, match="the call took longer"), deadline(0.05, "the call"):
            backend.infer(tensor_for(backend))


def test_a_missing_runtime_is_named_with_what_brings_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with (
        pytest.raises(ToolError, match=r"onnxruntime cannot be imported: .*\n  what to do: pip install '\.\[cpu\]'"),
        OnnxCpuBackend(tiny),
    ):
        pytest.fail("the context was entered")


# -- CUDA --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(tiny, monkeypatch):
    def cuda(**facts):
        runtime = CudaRuntime(**facts)
        monkeypatch.setattr(support.backends.onnx_runtime, "_import_runtime", lambda: runtime)
        return CudaBackend(tiny, device_id=1), runtime

    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    return cuda


def test_the_gpu_is_taken_by_its_id_in_pci_order_and_no_node_may_fall_back(cuda, monkeypatch):
    backend, runtime = cuda()
    with backend:
        backend.infer(tensor_for(backend))
    ((options, providers),) = runtime.sessions
    assert providers == [(CUDA, {"device_id": 1})]
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert support.backends.onnx_runtime.os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_runtime_without_cuda_has_no_device(cuda):
    backend, runtime = cuda(available=(CPU,))
    with (
        pytest.raises(NoDeviceError, match=r"ONNX Runtime 1\.32\.0 has no CUDAExecutionProvider: \['CPUExec"),
        backend,
    ):
        pytest.fail("the context was entered")
    assert runtime.sessions == []


@pytest.mark.parametrize("used", [(CPU,), (CPU, CUDA), ()])
def test_a_silent_fall_back_to_the_cpu_is_another_device(cuda, used):
    backend, _ = cuda(used=used)
    with (
        pytest.raises(
            WrongDeviceError, match=r"ONNX Runtime fell back to \[.*\n  required: CUDAExecutionProvider first"
        ),
        backend,
    ):
        pytest.fail("the context was entered")
    assert backend._session is None
