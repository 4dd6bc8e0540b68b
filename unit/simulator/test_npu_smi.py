import os
import subprocess

import pytest

from support.ascend.npu_smi import parse_board, parse_info, parse_mapping, parse_usages
from support.simulator.host import Simulation, simulated_host
from support.simulator.npu_smi import CLOCK, FOREIGN, IDLE_CLOCK, JOB_AFTER, LISTED, MEMORY, SLOW_CLOCK, main
from support.simulator.state import DeviceState

CHIPS = ("310", "310P3", "310B1")


class Smi:
    def __init__(self, folder, text, capsys):
        self.folder, self._capsys = folder, capsys
        self.host = simulated_host(folder, Simulation.parse(text))

    def __call__(self, *arguments, status=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ASCEND_SIMULATED_HOST", str(self.folder))
            assert main(arguments) == status
        return self._capsys.readouterr().out

    def table(self):
        table = parse_info(self("info"))
        assert table.problems == ()
        return table


@pytest.fixture
def smi(tmp_path, capsys):
    return lambda text: Smi(tmp_path / "host", text, capsys)


@pytest.mark.parametrize("generation", ["v1", "v2", "v3"])
@pytest.mark.parametrize("chip", CHIPS)
def test_the_table_of_an_idle_host_can_be_read_whole(smi, chip, generation):
    ask = smi(f"sim:{chip},{generation},devices=6")
    table = ask.table()
    assert [row.logic_id for row in table.chips] == list(range(6))
    assert {(row.name, row.health, row.aicore) for row in table.chips} == {(chip, "OK", 0)}
    assert all(0 < row.memory_used < row.memory_total == MEMORY[chip] for row in table.chips)
    # No capture of these drivers up to 22.0.4 lists processes, and on-board chips never do.
    assert table.processes == (() if generation == "v3" and chip != "310B1" else None)


@pytest.mark.parametrize("chip", CHIPS)
def test_its_lines_are_as_wide_as_those_of_the_driver(smi, chip):
    assert {len(line) for line in smi(f"sim:{chip},devices=5")("info").splitlines()} == {106}


def test_four_chips_of_a_310_share_a_card(smi):
    chips = smi("sim:310,devices=6").table().chips
    assert [row.chip_id for row in chips] == [0, 1, 2, 3, 0, 1]
    assert len({row.npu_id for row in chips}) == 2
    assert len({row.bus_id for row in chips}) == 6


def test_ids_of_cards_are_no_device_ids(smi):
    table = smi("sim:310P3,devices=2").table()
    assert not {row.npu_id for row in table.chips} & {row.logic_id for row in table.chips}


@pytest.mark.parametrize("chip", CHIPS)
def test_the_mapping_and_the_list_agree_with_the_table(smi, chip):
    ask = smi(f"sim:{chip},devices=5")
    rows = [(row.npu_id, row.chip_id, row.logic_id) for row in ask.table().chips]
    assert [(row.npu_id, row.chip_id, row.logic_id) for row in parse_mapping(ask("info", "-m"))] == rows
    cards = dict.fromkeys(npu_id for npu_id, _, _ in rows)
    listed = ask("info", "-l")
    assert [line.split(" : ")[1] for line in listed.splitlines() if "NPU ID" in line] == [str(npu) for npu in cards]
    assert ("Card Count" in listed) == (chip != "310P3")


def test_a_card_tells_its_driver_firmware_and_serial(smi):
    ask = smi("sim:310P3,v2")
    board = parse_board(ask("info", "-t", "board", "-i", "2144"))
    assert board["Software Version"] == "22.0.4"
    assert board["Serial Number"]
    assert board["Firmware Version"]
    chip = parse_board(ask("info", "-t", "board", "-i", "2144", "-c", "0"))
    assert chip["Chip Name"] == "310P3"
    assert "Serial Number" not in chip


def test_usages_are_those_of_every_chip_of_a_card(smi):
    ask = smi("sim:310,devices=6")
    found = parse_usages(ask("info", "-t", "usages", "-i", "2144"))
    assert [usage.chip_id for usage in found] == [0, 1, 2, 3]
    assert {usage.values["Aicore Usage Rate(%)"] for usage in found} == {0}
    assert found[0].values["Memory Capacity(MB)"] == MEMORY["310"]


@pytest.mark.parametrize("arguments", [(), ("info", "-x"), ("info", "-t", "board", "-i", "7")])
def test_what_it_does_not_know_is_refused(smi, arguments):
    assert "Command or option is not found." in smi("sim:310P3")(*arguments, status=1)


def test_a_process_on_a_device_shows_with_its_memory(smi):
    ask = smi("sim:310P3,devices=2")
    idle = ask.table().chips[1].memory_used
    state = DeviceState(ask.folder, 1)
    state.opened(client=os.getpid())
    table = ask.table()
    (process,) = table.processes
    assert (process.npu_id, process.chip_id, process.pid) == (2176, 0, os.getpid())
    assert table.chips[1].memory_used == idle + process.memory
    assert table.chips[0].memory_used == idle
    with state.running():
        assert [row.aicore for row in ask.table().chips] == [0, 45]
    state.closed()
    assert ask.table().processes == ()


def test_a_process_that_was_killed_is_gone(smi):
    ask = smi("sim:310P3")
    child = subprocess.Popen(["/bin/true"])
    DeviceState(ask.folder, 0).opened(client=child.pid)
    child.wait()
    assert ask.table().processes == ()


def test_no_more_processes_of_a_chip_are_listed_than_the_driver_lists(smi, monkeypatch):
    ask = smi("sim:310,devices=4")
    monkeypatch.setattr(DeviceState, "clients", property(lambda _: tuple(range(100, 120))))
    assert [row.chip_id for row in ask.table().processes] == [chip for chip in range(4) for _ in range(LISTED)]


def test_a_card_without_processes_has_one_line(smi):
    assert smi("sim:310,devices=8")("info").count("No running processes found in NPU") == 2


def test_a_busy_host_shows_the_process_of_somebody_else(smi):
    table = smi("sim:310P3,fault=busy").table()
    assert [row.pid for row in table.processes] == [FOREIGN]
    assert table.chips[0].aicore == 87


def test_a_job_starts_after_the_first_runs(smi):
    ask = smi("sim:310P3,fault=job-starts")
    state = DeviceState(ask.folder, 0)
    for _ in range(JOB_AFTER):
        assert ask.table().processes == ()
        with state.running():
            pass
    assert [row.pid for row in ask.table().processes] == [FOREIGN]


def test_a_driver_without_the_table_of_processes_still_shows_the_load(smi):
    table = smi("sim:310P3,fault=no-process-table,fault=busy").table()
    assert table.processes is None
    assert table.chips[0].aicore == 87


def test_an_alarm_shows_as_health(smi):
    assert {row.health for row in smi("sim:310P3,devices=2,fault=alarm").table().chips} == {"Alarm"}


def test_a_device_that_vanished_is_listed_no_longer(smi):
    ask = smi("sim:310P3,devices=2")
    DeviceState(ask.folder, 0).vanish()
    assert [row.logic_id for row in ask.table().chips] == [1]
    assert [row.logic_id for row in parse_mapping(ask("info", "-m"))] == [1]
    DeviceState(ask.folder, 1).vanish()
    assert "There is no NPU card on this server." in ask("info", "-l")


def test_the_command_of_the_host_answers(tmp_path):
    host = simulated_host(tmp_path / "host", Simulation.parse("sim:310P3"))
    done = subprocess.run(
        [host.tool("npu-smi"), "info"], env=dict(host.env), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert parse_info(done.stdout).chips[0].name == "310P3"


@pytest.mark.parametrize(("fault", "clock"), [("", CLOCK), (",fault=throttled", SLOW_CLOCK)])
def test_a_chip_at_work_tells_the_clock_it_works_at(smi, fault, clock):
    ask = smi(f"sim:310P3{fault}")
    state = DeviceState(ask.folder, 0)

    def clocks():
        (chip,) = parse_usages(ask("info", "-t", "common", "-i", str(ask.table().chips[0].npu_id)))
        return chip.values["Aicore curFreq(MHZ)"], chip.values["Aicore Usage Rate(%)"]

    assert clocks() == (IDLE_CLOCK, 0)
    state.opened(client=os.getpid())
    with state.running():
        assert clocks() == (clock, 45)
