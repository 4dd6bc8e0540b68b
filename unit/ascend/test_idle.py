import threading
import time

import pytest

from support.ascend import idle as idle_module
from support.ascend.devices import Npu
from support.ascend.idle import Watch, require_idle
from support.ascend.npu_smi import ChipRow, InfoTable, ProcessRow, Usage
from support.errors import DeviceBusyError, DeviceLostError, NoDeviceError, ToolError, WrongDeviceError

OURS, THEIRS = 100, 999


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    monkeypatch.setattr(idle_module, "_pids_are_of_the_host", lambda: True)


@pytest.fixture
def in_a_container(monkeypatch):
    monkeypatch.setattr(idle_module, "_pids_are_of_the_host", lambda: False)


def npu(number=0):
    return Npu(
        name="310P3",
        npu_id=number,
        chip_id=0,
        logic_id=number,
        device_id=number,
        bus_id=None,
        health="OK",
        memory_total=None,
        driver="",
        firmware="",
        serial="",
    )


def table(*, aicore=0, processes=(), listed=(0, 1), problems=()):
    chips = tuple(
        ChipRow(npu_id=number, chip_id=0, logic_id=number, name="310P3", health="OK", bus_id=None, aicore=aicore)
        for number in listed
    )
    rows = processes and tuple(ProcessRow(npu_id=n, chip_id=0, pid=p, name="python3", memory=1) for n, p in processes)
    return InfoTable(tool_version="", driver_version="", chips=chips, processes=rows, problems=problems)


class Smi:
    """Gives one answer after the other, the last again and again."""

    def __init__(self, *answers, usages=None):
        self.answers, self.calls, self._usages = answers, 0, usages

    def info(self):
        found = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(found, Exception):
            raise found
        return found

    def usages(self, npu_id):
        if self._usages is None:
            raise ToolError("no such option")
        return [Usage(chip_id=0, values={"Aicore Usage Rate(%)": self._usages})]


def idle(smi, **options):
    return require_idle(smi, npu(), interval=0, **options)


def test_an_idle_chip_is_looked_at_several_times():
    smi = Smi(table())
    assert idle(smi, samples=4) == ()
    assert smi.calls == 4


def test_what_a_driver_does_not_tell_is_a_finding():
    assert idle(Smi(table(processes=None))) == ("this driver lists no processes: only the AI core was looked at",)
    assert idle(Smi(table(aicore=None))) == ("this driver tells no utilisation of the AI core",)
    assert idle(Smi(table(problems=["cut row"]))) == ("npu-smi: cut row",)


def test_utilisation_is_asked_for_where_the_table_does_not_tell_it():
    assert idle(Smi(table(aicore=None), usages=0)) == ()
    with pytest.raises(DeviceBusyError, match="AI core 30 %"):
        idle(Smi(table(aicore=None), usages=30))


@pytest.mark.parametrize("busy_look", [0, 1, 2])
def test_a_chip_at_work_in_any_look_is_busy(busy_look):
    looks = [table()] * 3
    looks[busy_look] = table(aicore=87)
    with pytest.raises(DeviceBusyError, match=r"device 0 310P3 .* in use: AI core 87 %, no process listed\n"):
        idle(Smi(*looks))


def test_a_process_on_the_chip_is_named():
    with pytest.raises(DeviceBusyError, match=r"999 python3\n.*\n.*--allow-busy"):
        idle(Smi(table(processes=[(0, THEIRS)])))
    with pytest.raises(DeviceBusyError, match="unknown pid python3"):
        idle(Smi(table(processes=[(0, None)])))
    assert idle(Smi(table(processes=[(1, THEIRS)]))) == ()


def test_a_chip_that_is_not_listed_is_lost():
    with pytest.raises(DeviceLostError, match=r"lists device 0 310P3 \(NPU 0, chip 0\) no longer \(cut row\)\n"):
        idle(Smi(table(listed=(1,), problems=["cut row"])))


# -- while it runs -----------------------------------------------------------------------------------------------------


def watch(*answers, npus=(0,), own=lambda: (OURS,), interval=0.002, looks=None):
    """Use a chip until every answer was given once, or the watch has seen enough."""
    smi = Smi(*answers)
    looks = len(answers) if looks is None else looks
    with Watch(smi, [npu(number) for number in npus], own, interval=interval) as watch:
        deadline = time.monotonic() + 10
        while smi.calls < looks and watch._thread.is_alive():
            assert time.monotonic() < deadline, "the watch does not look"
            time.sleep(0.002)
    return smi


def test_our_own_work_disturbs_nobody():
    watch(table(aicore=90, processes=[(0, OURS)]), looks=3)


def test_a_process_of_somebody_else_beside_ours_is_seen():
    with pytest.raises(DeviceBusyError, match="AI core 0 %, 999 python3"):
        watch(table(processes=[(0, OURS)]), table(processes=[(0, OURS), (0, THEIRS)]))


def test_on_the_host_an_unknown_process_is_somebody_else():
    with pytest.raises(DeviceBusyError, match="999 python3"):
        watch(table(processes=[(0, THEIRS)]))


@pytest.mark.usefixtures("in_a_container")
def test_in_a_container_one_unknown_process_may_be_ours_and_two_are_not():
    watch(table(processes=[(0, THEIRS)]), table(processes=[(0, None)]))
    with pytest.raises(DeviceBusyError, match="999 python3, 998 python3"):
        watch(table(processes=[(0, THEIRS), (0, THEIRS - 1)]))
    with pytest.raises(DeviceBusyError, match="in use: AI core 0 %, 999 python3"):
        watch(table(processes=[(0, OURS), (0, THEIRS)]))


def test_a_process_of_ours_that_has_ended_is_still_ours():
    pids = iter([(OURS,), (OURS,)])
    watch(table(processes=[(0, OURS)]), table(processes=[(0, OURS)]), own=lambda: next(pids, ()))


def test_an_unknown_process_that_is_seen_once_may_be_one_of_ours_that_has_ended():
    watch(table(processes=[(0, THEIRS)]), table(), table(processes=[(0, THEIRS)]), table())


def test_our_process_on_another_chip_is_the_wrong_device():
    with pytest.raises(WrongDeviceError, match=r"our process 100 is on NPU 1, chip 0\n  required: on 0 310P3"):
        watch(table(processes=[(1, OURS)]))
    watch(table(processes=[(0, OURS), (1, OURS)]), npus=(0, 1))


def test_a_chip_that_vanishes_is_lost_but_one_answer_without_it_says_nothing():
    gone = table(listed=(1,), problems=["cut row"])
    watch(gone, table(), gone, table())
    with pytest.raises(DeviceLostError, match=r"lists device 0 310P3 .* no longer \(cut row\)"):
        watch(table(), gone, gone)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolError("the driver failed"), ToolError),
        # A driver that knows no device is how a lost one shows where it is the only one.
        (NoDeviceError("no card"), DeviceLostError),
    ],
)
def test_npu_smi_may_fail_once_but_not_twice(error, kind):
    watch(error, table(), error, table())
    with pytest.raises(kind, match=error.found):
        watch(table(), error, error)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([table(processes=[(0, THEIRS)])], DeviceBusyError),
        # What is doubtful at the end is asked again.
        ([table(listed=(1,))], DeviceLostError),
        ([ToolError("no answer")], ToolError),
    ],
)
def test_a_use_that_is_shorter_than_the_interval_is_looked_at_once_at_its_end(answers, kind):
    assert watch(table(), interval=0.5, looks=0).calls == 1
    with pytest.raises(kind):
        watch(*answers, interval=0.5, looks=0)
    assert watch(table(listed=(1,)), table(), interval=0.5, looks=0).calls == 2


def test_an_error_of_the_body_comes_first():
    smi = Smi(table(processes=[(0, THEIRS)]))
    watch = Watch(smi, [npu()], tuple, interval=0.002)
    with pytest.raises(ZeroDivisionError), watch:
        _ = watch._thread.join(10) or 1 / 0
    assert isinstance(watch._found, DeviceBusyError)


def test_after_an_error_of_the_body_nobody_is_asked_any_more():
    smi = Smi(table())
    with pytest.raises(ZeroDivisionError), Watch(smi, [npu()], tuple, interval=0.5):
        _ = 1 / 0
    assert smi.calls == 0


def test_an_unforeseen_error_is_raised_where_the_watch_ends():
    with pytest.raises(ZeroDivisionError):
        watch(table(), own=lambda: 1 / 0)


def test_no_thread_is_left():
    watch(table())
    assert not [thread for thread in threading.enumerate() if thread.name == "npu watch"]


@pytest.mark.parametrize(
    ("target", "expected"), [("pid:[4026531836]", True), ("pid:[4026532281]", False), (None, False)]
)
def test_the_namespace_tells_whether_pids_are_of_the_host(monkeypatch, tmp_path, target, expected):
    monkeypatch.undo()
    if target:
        (tmp_path / "pid").symlink_to(target)
    monkeypatch.setattr(idle_module, "NAMESPACE", tmp_path / "pid")
    assert idle_module._pids_are_of_the_host() is expected
