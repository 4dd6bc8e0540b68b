import json
import sys

import pytest

from support.backends.onnx_runtime import OnnxCpuBackend
from support.capabilities import Capabilities, Gpu
from support.errors import DeviceBusyError, NoDataError, NoDeviceError, UsageError, WrongDataError, WrongDeviceError
from support.spec import Baseline, load_spec
from support.t4_protocol import CALLS, Request, as_toml, main, measure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FULL = load_spec("efficientdet_d0")
SPEC = FULL.model_copy(
    update={"batch_sizes": (1, 4), "model": FULL.model.model_copy(update={"image_size": 128})},
)


def machine(*names, utilisation=0):
    gpus = tuple(
        Gpu(index=place, name=name, uuid=f"GPU-{place}", driver="535.1", memory=15360, utilisation=utilisation)
        for place, name in enumerate(names)
    )
    return Capabilities(
        host="rack7",
        cpu="Xeon",
        cores=2,
        memory_gib=8,
        system="Linux",
        python="3.11",
        packages={"onnxruntime-gpu": "1.20.1"},
        gpus=gpus,
        gpu_problem="" if gpus else "nvidia-smi is not on PATH",
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("models")
    # The last two are not what their names say.
    for name, (batch, size) in {1: (1, 128), 4: (4, 128), 8: (8, 64), 16: (1, 128)}.items():
        image = onnx.helper.make_tensor_value_info("x.1", onnx.TensorProto.FLOAT, [batch, 3, size, size])
        mean = onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [batch, 3, 1, 1])
        node = onnx.helper.make_node("GlobalAveragePool", ["x.1"], ["mean"])
        graph = onnx.helper.make_graph([node], "tiny", [image], [mean])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
        onnx.save(model, folder / f"d0_bs{name}.onnx")
    return f"{folder}/d0_bs{{batch}}.onnx"


@pytest.fixture
def cuda(monkeypatch):
    pytest.importorskip("onnxruntime")
    opened = []

    class Stand(OnnxCpuBackend):
        timer = "wall time of session.run, copies included"

        def __init__(self, path, device_id):
            super().__init__(path)
            opened.append(device_id)

    monkeypatch.setattr("support.t4_protocol.CudaBackend", Stand)
    return opened


def test_a_t4_measured_under_the_protocol_gives_a_whole_passport(models, cuda):
    measured = measure(Request(models, (1, 4), device_id=1), SPEC, machine("NVIDIA A2", "Tesla T4"))
    passport = measured.baseline
    assert measured.departures == ()
    assert cuda == [1, 1]
    assert (passport.chip, passport.driver, passport.runtime) == ("T4", "535.1", "ONNX Runtime GPU 1.20.1")
    assert (passport.warm_up, passport.count) == ("none, the first call counts", f"{CALLS} calls")
    assert passport.includes_copies
    assert passport.input.startswith("random")


def test_the_figure_is_batch_size_over_the_mean_of_all_calls(models, cuda):
    measured = measure(Request(models, (4,), calls=7), SPEC, machine("Tesla T4"))
    seconds = [call.seconds for call in measured.timings[0].calls]
    assert len(seconds) == 7
    assert measured.baseline.images_per_second[4] == pytest.approx(4 * 7 / sum(seconds), abs=1e-3)


def test_every_departure_from_the_protocol_is_named(models, cuda):
    measured = measure(Request(models, (1,), any_gpu=True, calls=3), SPEC, machine("NVIDIA A2"))
    assert measured.baseline.chip == "NVIDIA A2"
    assert measured.departures == (
        "measured on NVIDIA A2, not on a T4",
        "3 calls instead of 200",
        "no figure for batch 4",
    )
    assert as_toml("a2", measured).startswith("# not the guide's T4 protocol: measured on NVIDIA A2, not on a T4\n")


def test_the_table_is_a_baseline_of_a_spec(models, cuda):
    measured = measure(Request(models, (1, 4), calls=3), SPEC, machine("Tesla T4"))
    table = tomllib.loads(as_toml("t4-measured", measured))["baselines"]["t4-measured"]
    assert Baseline.model_validate(table) == measured.baseline


@pytest.mark.parametrize("name", ["NVIDIA T400", "NVIDIA T4G", "NVIDIA A100-SXM4-40GB"])
def test_another_gpu_is_refused(models, cuda, name):
    with pytest.raises(WrongDeviceError, match=f"GPU 0 is a {name}, not a T4"):
        measure(Request(models, (1,)), SPEC, machine(name))


@pytest.mark.parametrize("any_gpu", [False, True])
def test_a_host_without_a_gpu_is_refused(models, any_gpu):
    with pytest.raises(NoDeviceError, match="nvidia-smi is not on PATH"):
        measure(Request(models, (1,), any_gpu=any_gpu), SPEC, machine())


def test_a_runtime_without_cuda_is_refused_and_does_not_fall_back(models):
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    with pytest.raises(NoDeviceError, match="no CUDAExecutionProvider"):
        measure(Request(models, (1,)), SPEC, machine("Tesla T4"))


def test_a_busy_gpu_is_refused(models, cuda):
    with pytest.raises(DeviceBusyError, match=r"GPU 0 \(Tesla T4\) is 3 % busy"):
        measure(Request(models, (1,)), SPEC, machine("Tesla T4", utilisation=3))


def test_a_model_of_another_batch_size_is_refused(models, cuda):
    with pytest.raises(WrongDataError, match=r"d0_bs16.onnx: the input is x.1 float32\[1, 3, 128, 128\]"):
        measure(Request(models, (16,)), SPEC, machine("Tesla T4"))


def test_a_model_of_another_input_size_is_refused(models, cuda):
    with pytest.raises(WrongDataError, match=r"required: shape \[8, 3, 128, 128\]"):
        measure(Request(models, (8,)), SPEC, machine("Tesla T4"))


def test_a_missing_model_is_named_before_anything_is_measured(models, cuda):
    with pytest.raises(NoDataError, match=r"d0_bs2\.onnx does not exist"):
        measure(Request(models, (1, 2)), SPEC, machine("Tesla T4"))
    assert cuda == []


def test_one_file_for_several_batch_sizes_is_refused(models):
    with pytest.raises(UsageError, match="one file for several batch sizes"):
        measure(Request(models.replace("{batch}", "1"), (1, 4)), SPEC, machine("Tesla T4"))


@pytest.fixture
def command(models, monkeypatch):
    monkeypatch.setattr("support.t4_protocol.load_spec", lambda name: SPEC)

    def run(*arguments):
        return main([f"--onnx={models}", *arguments])

    return run


def test_the_command_prints_the_table_and_writes_what_stands_behind_it(command, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert command("--provider=cpu", "--calls=5", "--name=dry-run", f"--json={tmp_path / 'cpu.json'}") == 0
    table = tomllib.loads(capsys.readouterr().out)["baselines"]["dry-run"]
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert table["chip"] == record["baseline"]["chip"] == "cpu"
    assert [len(timing["calls"]) for timing in record["timings"]] == [5, 5]
    assert {"p50_ms", "p90_ms", "p99_ms", "machine"} <= record["throughput"][0].keys()
    assert "not on a T4" in record["departures"][0]
    assert len(record["models"]["4"]) == 64


def test_the_command_without_a_gpu_ends_undetermined(command, monkeypatch, capsys):
    monkeypatch.setattr("support.t4_protocol.probe", lambda timeout: machine())
    assert command() == 10
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no T4 on this host" in captured.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--name=t 4", "not a bare TOML key"),
        ("--calls=0", "out of range"),
        ("--device-id=-1", "out of range"),
        ("--batch-sizes=many", "not a list of positive integers"),
        ("--json=nowhere/t4.json", "no such folder"),
    ],
)
def test_nonsense_on_the_command_line_is_a_usage_error(command, capsys, argument, message):
    assert command(argument) == 2
    assert message in capsys.readouterr().err
