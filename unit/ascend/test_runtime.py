from contextlib import contextmanager

import pytest

import support.ascend.runtime
from support.artifacts import Artifact
from support.ascend.busy import busy_notes, note_busy
from support.ascend.devices import Npu
from support.ascend.host import AscendHost
from support.ascend.runtime import AscendRuntime
from support.errors import DeviceBusyError
from support.options import RunOptions
from support.spec import load_spec

SPEC = load_spec("shapes_d0")


def npu(device_id, card):
    return Npu(
        name="310",
        npu_id=card,
        chip_id=device_id % 4,
        logic_id=device_id,
        device_id=device_id,
        bus_id=None,
        health="OK",
        memory_total=None,
        driver="",
        firmware="",
        serial="",
    )


CARDS = tuple(npu(device_id, device_id // 4) for device_id in range(8))


@pytest.fixture
def looked(monkeypatch):
    """Which devices were looked at, and which were watched, without a device."""
    found = {"idle": [], "watched": [], "busy": set(), "intervals": []}

    def require_idle(smi, device, *, interval):
        found["idle"].append(device.device_id)
        found["intervals"].append(interval)
        if device.device_id in found["busy"]:
            raise DeviceBusyError(f"device {device.device_id} is in use")

    @contextmanager
    def watch(smi, npus, own, *, interval):
        found["watched"].append([device.device_id for device in npus])
        found["intervals"].append(interval)
        yield
        if "while" in found["busy"]:
            raise DeviceBusyError("a job began")

    monkeypatch.setattr(support.ascend.runtime, "require_idle", require_idle)
    monkeypatch.setattr(support.ascend.runtime, "Watch", watch)
    return found


@pytest.fixture
def runtime(tmp_path):
    def runtime(*device_ids, simulation="", **options):
        host = AscendHost({"PATH": ""}, simulation)
        chosen = [CARDS[device_id] for device_id in device_ids]
        return AscendRuntime(host, chosen, CARDS, RunOptions(chip="310", **options), SPEC, tmp_path)

    return runtime


def test_the_other_chips_of_a_card_must_be_idle_too(runtime, looked):
    devices = runtime(1)
    with devices.in_use(devices.npus):
        assert looked["watched"] == [[1]]
    assert looked["idle"] == [1, 0, 2, 3]


def test_chips_this_run_uses_itself_need_not_be_idle(runtime, looked):
    devices = runtime(0, 1, 4)
    with devices.in_use(devices.npus):
        pass
    assert looked["idle"] == [0, 1, 4, 2, 3, 5, 6, 7]


def test_one_device_timed_alone_asks_its_card_and_not_those_it_shares_with_us(runtime, looked):
    devices = runtime(0, 1)
    with devices.in_use(devices.npus[:1]):
        pass
    assert looked["idle"] == [0, 2, 3]


@pytest.mark.parametrize("busy", [1, 3, "while"])
def test_a_busy_chip_or_neighbour_ends_the_use(runtime, looked, busy):
    looked["busy"] = {busy}
    devices = runtime(1)
    with pytest.raises(DeviceBusyError), devices.in_use(devices.npus):
        assert busy == "while"


@pytest.mark.parametrize("busy", [1, 3, "while"])
def test_a_busy_chip_that_is_allowed_is_noted(runtime, looked, tmp_path, busy):
    looked["busy"] = {busy}
    devices, used = runtime(1, allow_busy=True), False
    with devices.in_use(devices.npus):
        used = True
    assert used
    assert len(busy_notes(tmp_path)) == 1


def test_a_real_npu_smi_is_not_asked_more_than_once_a_second(runtime, looked):
    devices = runtime(1)
    with devices.in_use(devices.npus):
        pass
    assert min(looked["intervals"]) >= 1
    looked["intervals"].clear()
    devices = runtime(1, simulation="simulated 310")
    with devices.in_use(devices.npus):
        pass
    assert max(looked["intervals"]) <= 1


def test_notes_are_kept_once_and_for_the_session_alone(tmp_path):
    assert busy_notes(tmp_path / "none") == ()
    for text in ("device 0 is in use", "device 0 is in use", "device 1 is in use"):
        note_busy(tmp_path, text)
    assert busy_notes(tmp_path) == ("device 0 is in use", "device 1 is in use")


def test_without_a_compiler_a_model_tells_no_facts(runtime, tmp_path):
    assert runtime(0).facts(Artifact("om", tmp_path / "d0.om", "0", {}, ())) is None
