import ctypes
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.ascend.cann import cann_version
from support.errors import ToolError, UsageError
from support.simulator.host import FAULTS, TIMES, Simulation, _make, simulated_host
from support.simulator.state import DeviceState
from unit.simulator import stand_in


def test_a_chip_alone_has_the_newest_generation_and_computes():
    assert Simulation.parse("sim:310P3") == Simulation("310P3", "V3", "compute", 1, ())


def test_every_part_is_read():
    found = Simulation.parse("sim:310,v1,paced,devices=4,fault=hang,fault=busy,fault=hang")
    assert found == Simulation("310", "V1", "paced", 4, ("hang", "busy"))
    assert found.label == "simulated 310 (aclruntime V1, paced mode, hang, busy)"


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_in_the_label(name):
    assert name in Simulation.parse(f"sim:310B1,fault={name}").label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sim:910B", "'910B' cannot be simulated"),
        ("sim:", "'' cannot be simulated"),
        ("sim:310P3,v4", "'v4' is not known"),
        ("sim:310P3,", "'' is not known"),
        ("sim:310P3,devices=0", "'devices=0' is not known"),
        ("sim:310P3,devices=many", "'devices=many' is not known"),
        ("sim:310P3,fault=fire", "'fault=fire' is not known"),
        ("sim:310P3,v1,v3", "'v3' is one too many"),
        ("sim:310P3,paced,compute", "'compute' is one too many"),
    ],
)
def test_what_is_not_known_or_contradicts_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        Simulation.parse(text)


def test_what_is_known_is_listed():
    with pytest.raises(UsageError) as raised:
        Simulation.parse("sim:310P3,fault=fire")
    assert all(name in str(raised.value) for name in (*FAULTS, "v1", "paced", "devices=N"))


@pytest.fixture
def host(tmp_path):
    return lambda text="sim:310P3": simulated_host(tmp_path / "host", Simulation.parse(text))


def described(host):
    return json.loads(Path(host.env["ASCEND_SIMULATED_HOST"], "host.json").read_text())


def test_the_tools_of_the_host_are_found_first(host, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("atc", "npu-smi"):
        (other / name).write_text("#!/bin/sh\n")
        (other / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(other), prepend=":")
    found = host()
    assert {found.tool(name).parent for name in ("atc", "npu-smi")} == {tmp_path / "host" / "bin"}


def test_a_compiler_of_the_real_host_does_not_stand_in_for_the_missing_one(host, tmp_path, monkeypatch):
    (tmp_path / "atc").write_text("#!/bin/sh\n")
    (tmp_path / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ToolError, match="atc is not on PATH"):
        host("sim:310P3,fault=no-atc").tool("atc")


def test_what_the_environment_says_of_real_devices_is_left_out(host, monkeypatch):
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_OPP_PATH"):
        monkeypatch.setenv(name, "real")
    assert "real" not in host().env.values()
    assert host().env["LC_ALL"] == "C"


def test_a_host_that_is_not_sourced_names_no_toolkit(host):
    assert "ASCEND_TOOLKIT_HOME" not in host("sim:310P3,fault=not-sourced").env


def test_a_host_can_be_renumbered(host):
    assert host("sim:310P3,fault=renumbered").env["ASCEND_RT_VISIBLE_DEVICES"] == "NPU-7"


@pytest.mark.parametrize("generation", TIMES)
def test_versions_are_those_of_the_time_of_the_generation(host, generation):
    cann, driver, _, wheel = TIMES[generation]
    found = host(f"sim:310P3,{generation.lower()}")
    assert cann_version(found.env).startswith(cann)
    assert described(found)["driver"] == driver
    (record,) = Path(found.env["PYTHONPATH"]).glob("aclruntime-*.dist-info")
    assert record.name == f"aclruntime-{wheel}.dist-info"


def test_only_the_first_generation_has_the_script_of_2022(host):
    found = host("sim:310P3,v1")
    assert found.tool("ais_infer.py").is_file()
    assert not Path(found.env["PYTHONPATH"], "ais_bench").exists()


def test_newer_generations_have_the_package(host):
    found = host("sim:310P3,v2")
    assert Path(found.env["PYTHONPATH"], "ais_bench", "__main__.py").is_file()
    with pytest.raises(ToolError, match=r"ais_infer\.py is not on PATH"):
        found.tool("ais_infer.py")


def test_chips_have_ids_of_their_own(host):
    devices = described(host("sim:310,devices=6"))["devices"]
    assert [device["logic_id"] for device in devices] == list(range(6))
    assert len({(device["npu_id"], device["chip_id"]) for device in devices}) == 6
    # A serial number is a card's.
    serials = [device["serial"] for device in devices]
    assert [serial[-4:] for serial in serials] == ["0000"] * 4 + ["0001"] * 2


def test_two_hosts_have_no_card_in_common(tmp_path):
    hosts = [simulated_host(tmp_path / name, Simulation("310P3")) for name in ("one", "two")]
    first, second = (described(found)["devices"][0]["serial"] for found in hosts)
    assert first != second


def test_the_host_that_is_there_is_used_again(host):
    folder = Path(host().env["ASCEND_SIMULATED_HOST"])
    DeviceState(folder, 0).vanish()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "host.lock"}
    assert host().env == host().env
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert DeviceState(folder, 0).vanished


def test_another_host_in_the_same_folder_is_refused(host):
    host("sim:310P3,v3")
    with pytest.raises(UsageError, match="holds another simulated host"):
        host("sim:310P3,v1")


def test_workers_that_come_at_once_make_one_host(host, monkeypatch):
    made = []

    def slowly(*arguments):
        made.append(arguments)
        time.sleep(0.05)
        _make(*arguments)

    monkeypatch.setattr("support.simulator.host._make", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: host(), range(4)))
    assert len(made) == 1
    assert len({json.dumps(dict(one.env)) for one in found}) == 1


def test_a_compiled_model_runs_in_the_process_of_the_device(toolchain, small, monkeypatch):
    tools = toolchain("sim:310P3,v1")
    om = tools.compile(small())
    host = simulated_host(tools.folder, Simulation.parse("sim:310P3,v1"))
    # A package of the same name in the working directory is not taken for ours.
    (tools.folder / "elsewhere" / "support").mkdir(parents=True)
    (tools.folder / "elsewhere" / "support" / "__init__.py").touch()
    monkeypatch.chdir(tools.folder / "elsewhere")
    runtime = stand_in.runtime_of(host)
    try:
        session = runtime.InferenceSession(str(om), 0, runtime.session_options())
        names = [desc.name for desc in session.get_outputs()]
        (shape,) = [desc.shape for desc in session.get_inputs()]
        outputs = session.run(names, [runtime.Tensor(np.ones(shape, np.float32))])
        for output in outputs:
            output.to_host()
        assert [np.array(output).shape for output in outputs] == [(2, 6, 8, 8), (2, 2, 8, 8)]
        assert all(np.isfinite(np.array(output)).all() for output in outputs)
        assert DeviceState(tools.folder, 0).clients
        del session
    finally:
        ctypes.CDLL(None).fflush(None)
        runtime._Device.close_all()
    assert DeviceState(tools.folder, 0).clients == ()


def test_the_device_that_crashes_ends_the_process_that_uses_it(tmp_path):
    host = simulated_host(tmp_path / "host", Simulation.parse("sim:310P3,fault=crash-at-load"))
    (tmp_path / "small.om").touch(0o600)
    code = "import aclruntime, sys; aclruntime.InferenceSession(sys.argv[1], 0, aclruntime.session_options())"
    command = [sys.executable, "-c", code, str(tmp_path / "small.om")]
    done = subprocess.run(command, env=dict(host.env), cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode < 0
