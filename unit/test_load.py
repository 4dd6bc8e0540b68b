import time
from types import SimpleNamespace

import psutil
import pytest

import support.load
from support.errors import ToolError
from support.load import GpuProbe, HostProbe, LoadSample, LoadWatch, NpuProbe, load_findings, parse_gpu, throttled


class Smi:
    """Answers look after look with a clock and a load of chip 1."""

    def __init__(self, *looks):
        self._looks = iter(looks)

    def common(self, npu_id):
        look = next(self._looks)
        if isinstance(look, Exception):
            raise look
        clock, busy = look
        other = SimpleNamespace(chip_id=0, values={"Aicore curFreq(MHZ)": 1})
        values = {"Aicore curFreq(MHZ)": clock, "Aicore Usage Rate(%)": busy, "Temperature(C)": 60}
        return (other, SimpleNamespace(chip_id=1, values=values))


NPU = SimpleNamespace(npu_id=4, chip_id=1)


def looks_at(*looks, when=("before", "during", "after")):
    probe = NpuProbe(Smi(*looks), NPU)
    return [probe(which) for which in when[: len(looks)]]


def test_a_host_tells_how_much_others_used_since_the_last_look():
    probe = HostProbe()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    found = probe("during")
    assert 0 < found.busy <= 100
    assert 0 <= found.others <= 100
    assert found.load_average == pytest.approx(psutil.getloadavg()[0], abs=1)


def test_two_looks_within_a_tick_of_the_clock_tell_nothing(monkeypatch):
    monkeypatch.setattr(support.load, "_processor_seconds", lambda: (5.0, 1.0, 9.0))
    assert (HostProbe()("after").busy, HostProbe()("after").others) == (None, None)


def test_thermal_slowdowns_of_a_processor_are_counted_since_the_last_look(monkeypatch):
    counts = iter((7, 7, 10))
    monkeypatch.setattr(support.load, "_throttle_count", lambda: next(counts))
    probe = HostProbe()
    assert [probe(when).throttled for when in ("before", "after")] == ["", "3 thermal slowdowns of the processor"]


def test_a_platform_without_sensors_is_no_error(monkeypatch):
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    found = HostProbe()("before")
    assert (found.clock, found.temperature) == (None, None)


@pytest.mark.parametrize(
    ("bits", "slowed"),
    [
        ("0x0000000000000000", ""),
        ("0x0000000000000001", ""),  # idle
        ("0x0000000000000004", ""),  # at its power limit, as every T4 under load
        ("0x0000000000000048", "hardware slowdown, thermal, by hardware"),
        ("0x0000000000000080", "power brake"),
        ("[N/A]", ""),
    ],
)
def test_a_gpu_is_throttled_when_it_is_slowed_down_against_its_will(bits, slowed):
    assert parse_gpu(f"1590, 71, 98, {bits}\n", "during") == LoadSample(
        "during", clock=1590, temperature=71, busy=98, throttled=slowed
    )


@pytest.mark.parametrize("text", ["", "No devices were found", "1590, 71"])
def test_a_gpu_that_tells_nothing_is_unknown(text):
    assert parse_gpu(text, "after") == LoadSample("after")


def test_a_gpu_whose_tool_is_missing_is_unknown_and_its_host_is_not(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = GpuProbe("GPU-1a2b", timeout=1)("before")
    assert found.clock is None
    assert found.load_average is not None


def test_an_npu_tells_clock_and_temperature_of_the_right_chip():
    (found,) = looks_at((960, 0))
    assert (found.clock, found.temperature, found.busy, found.throttled) == (960, 60, 0, "")


def test_an_npu_at_work_is_throttled_when_its_clock_falls_below_that_before():
    assert [look.throttled for look in looks_at((960, 0), (720, 98), (960, 0))] == [
        "",
        "the clock fell from 960 to 720 MHz",
        "",
    ]
    assert [look.throttled for look in looks_at((960, 0), (1080, 98), (960, 0))] == ["", "", ""]


def test_an_idle_npu_may_lower_its_clock():
    assert [look.throttled for look in looks_at((1080, 0), (960, 0), (960, 0))] == ["", "", ""]


def test_an_npu_that_cannot_be_asked_does_not_end_the_pass():
    assert [look.clock for look in looks_at(ToolError("no such query"), (960, 0))] == [None, 960]


def watched(seconds, interval=0.02):
    with LoadWatch(LoadSample, interval=interval) as watch:
        time.sleep(seconds)
    return [sample.when for sample in watch.samples]


def test_a_watch_looks_before_during_and_after():
    found = watched(0.2)
    assert (found[0], found[-1]) == ("before", "after")
    assert set(found[1:-1]) == {"during"}
    assert watched(0, interval=60) == ["before", "after"]


def test_a_watch_ends_with_the_error_of_what_it_watches():
    with pytest.raises(ToolError, match="the device is gone"), LoadWatch(LoadSample, interval=60) as watch:
        raise ToolError("the device is gone")
    assert [sample.when for sample in watch.samples] == ["before"]


def test_throttling_before_a_pass_is_none_of_it():
    assert throttled([LoadSample("before", throttled="hot"), LoadSample("during"), LoadSample("after")]) == ""
    assert throttled([LoadSample("during", throttled="hot"), LoadSample("after", throttled="hot")]) == "hot"


def test_findings_tell_the_range_of_all_looks():
    clocks = (960, 1080, 1075, 1080, 970)
    when = ("before", "during", "during", "during", "after")
    samples = [LoadSample(place, clock=clock, others=5.0) for place, clock in zip(when, clocks, strict=True)]
    assert load_findings(samples) == (
        "machine: clock 960 to 1080 MHz; others used 5 % of the processors (before, during, after)",
    )


def test_a_machine_that_tells_nothing_has_no_findings():
    assert load_findings([LoadSample("before"), LoadSample("after")]) == ()
