"""The simulated ``npu-smi``: tables and lists in the form of the driver's own formats."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from support.simulator.state import DeviceState

__all__ = ["main"]

WIDTH = 106
MEMORY = {"310": 7759, "310P3": 21527, "310B1": 11577}
#: Watts; drivers since 22.0.2 tell none of a 310P3.
POWER = {"310": "12.8", "310P3": "NA", "310B1": "9.5"}
IDLE_MEMORY, MODEL_MEMORY = 931, 640
#: A process of somebody else, and what it does to the device.
FOREIGN, FOREIGN_NAME, FOREIGN_LOAD = 999_983, "python3", 87
#: MHz of a 310P at work, idle, and too hot.
CLOCK, IDLE_CLOCK, SLOW_CLOCK = 1080, 960, 720
#: Runs after which the job of somebody else starts.
JOB_AFTER = 3
#: Processes the table lists for each chip at most.
LISTED = 8


def main(arguments: Sequence[str]) -> int:
    """Run as ``npu-smi``; returns the exit status."""
    folder = Path(os.environ["ASCEND_SIMULATED_HOST"])
    host: Mapping[str, Any] = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    chips = [Shown(host, folder, device) for device in host["devices"]]
    chips = [chip for chip in chips if not chip.state.vanished]
    printed = _answer(list(arguments), host, chips)
    if printed is None:
        print("Command or option is not found.")  # noqa: T201 - it is a command-line tool
        return 1
    print("\n".join(printed))  # noqa: T201
    return 0


class Shown:
    """One chip as it is shown now."""

    def __init__(self, host: Mapping[str, Any], folder: Path, device: Mapping[str, Any]) -> None:
        self.host, self.device = host, device
        self.state = DeviceState(folder, device["logic_id"])
        faults = host["faults"]
        self.foreign = "busy" in faults or ("job-starts" in faults and self.state.runs >= JOB_AFTER)
        self.health = "Alarm" if "alarm" in faults else "OK"

    @property
    def load(self) -> int:
        """Utilisation of the AI core, in percent."""
        return FOREIGN_LOAD if self.foreign else 45 if self.state.at_work else 0

    @property
    def clock(self) -> int:
        """Clock of the AI core, in MHz."""
        if not self.load:
            return IDLE_CLOCK
        return SLOW_CLOCK if "throttled" in self.host["faults"] else CLOCK

    @property
    def memory(self) -> int:
        """Memory in use, in MB."""
        used = IDLE_MEMORY + MODEL_MEMORY * (len(self.state.clients) + self.foreign)
        return min(used, MEMORY[self.host["chip"]])

    @property
    def processes(self) -> list[tuple[int, str]]:
        """Who holds the device."""
        own = [(pid, "python") for pid in self.state.clients]
        return own + ([(FOREIGN, FOREIGN_NAME)] if self.foreign else [])


def _answer(arguments: list[str], host: Mapping[str, Any], chips: Sequence[Shown]) -> list[str] | None:
    if arguments == ["info"]:
        return [*_table(host, chips), *_process_table(host, chips)]
    if arguments == ["info", "-m"]:
        return _mapping(chips)
    if arguments == ["info", "-l"]:
        return _list(chips)
    if arguments[:3] == ["info", "-t", "board"]:
        return _board(arguments[3:], host, chips)
    if arguments[:3] == ["info", "-t", "usages"]:
        return _usages(arguments[3:], chips)
    if arguments[:3] == ["info", "-t", "common"]:
        return _common(arguments[3:], chips)
    return None


def _rule(fill: str = "-") -> str:
    return f"+{fill * 31}+{fill * 17}+{fill * (WIDTH - 52)}+"


def _table(host: Mapping[str, Any], chips: Sequence[Shown]) -> Iterator[str]:
    yield f"+{'-' * (WIDTH - 2)}+"
    title = f"npu-smi {host['driver']}"
    yield f"| {title:<40} Version: {host['driver']:<{WIDTH - 53}}|"
    yield _rule()
    yield "| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |"
    yield "| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |"
    yield _rule("=")
    power = POWER[host["chip"]]
    for place, chip in enumerate(chips):
        device = chip.device
        last = place + 1 == len(chips) or chips[place + 1].device["npu_id"] != device["npu_id"]
        yield f"| {device['npu_id']:<7} {host['chip']:<22}| {chip.health:<15} | {power:<12} {45:<17} {0:<6}/ {0:<13} |"
        memory = f"{chip.memory:<5}/ {MEMORY[host['chip']]:<32}"
        yield f"| {device['chip_id']:<7} {device['logic_id']:<22}| {device['bus_id']:<15} | {chip.load:<12} {memory} |"
        yield _rule("=" if last else "-")


def _process_table(host: Mapping[str, Any], chips: Sequence[Shown]) -> Iterator[str]:
    if not host["process_table"] or "no-process-table" in host["faults"]:
        return
    yield _rule()
    yield f"| {'NPU     Chip':<30}| {'Process id':<16}| {'Process name':<25}| {'Process memory(MB)':<25} |"
    yield _rule("=")
    for npu_id, card in groupby(chips, key=lambda chip: chip.device["npu_id"]):
        none = f"| {f'No running processes found in NPU {npu_id}':<{WIDTH - 4}} |"
        yield from [row for chip in card for row in _process_rows(chip)] or [none]
        yield _rule("=")


def _process_rows(chip: Shown) -> Iterator[str]:
    where = f"{chip.device['npu_id']:<8}{chip.device['chip_id']}"
    for pid, name in chip.processes[:LISTED]:
        yield f"| {where:<30}| {pid:<16}| {name[:15]:<25}| {MODEL_MEMORY:<25} |"


def _mapping(chips: Sequence[Shown]) -> list[str]:
    lines = [f"\t{'NPU ID':<31}{'Chip ID':<31}{'Chip Logic ID':<31}Chip Name"]
    for chip in chips:
        device, name = chip.device, "MiniD" if chip.host["chip"] == "310" else f"Ascend {chip.host['chip']}"
        lines.append(f"\t{device['npu_id']:<31}{device['chip_id']:<31}{device['logic_id']:<31}{name}")
    return lines


def _line(key: str, value: object) -> str:
    return f"\t{key:<30} : {value}"


def _list(chips: Sequence[Shown]) -> list[str]:
    cards = {chip.device["npu_id"]: chip for chip in chips}
    if not cards:
        return ["\tThere is no NPU card on this server."]
    key = "Card Count" if chips[0].host["chip"] in ("310", "310B1") else "Total Count"
    lines = [_line(key, len(cards))]
    for number, chip in cards.items():
        count = sum(other.device["npu_id"] == number for other in chips)
        lines += [
            "",
            _line("NPU ID", number),
            _line("Serial Number", chip.device["serial"]),
            _line("Chip Count", count),
        ]
    return lines


def _asked(arguments: Sequence[str], chips: Sequence[Shown]) -> list[Shown]:
    wanted = dict(zip(arguments[::2], arguments[1::2], strict=False))
    return [
        chip
        for chip in chips
        if str(chip.device["npu_id"]) == wanted.get("-i") and wanted.get("-c") in (None, str(chip.device["chip_id"]))
    ]


def _board(arguments: Sequence[str], host: Mapping[str, Any], chips: Sequence[Shown]) -> list[str] | None:
    found = _asked(arguments, chips)
    if not found:
        return None
    chip = found[0]
    number = _line("NPU ID", chip.device["npu_id"])
    if "-c" in arguments:
        return [
            number,
            _line("Chip ID", chip.device["chip_id"]),
            _line("Chip Type", "Ascend"),
            _line("Chip Name", host["chip"]),
            _line("PCIe Bus Info", chip.device["bus_id"]),
            _line("Firmware Version", host["firmware"]),
        ]
    return [
        number,
        _line("Product Name", "Simulated"),
        _line("Manufacturer", "Simulated"),
        _line("Serial Number", chip.device["serial"]),
        _line("Software Version", host["driver"]),
        _line("Firmware Version", host["firmware"]),
        _line("PCIe Bus Info", chip.device["bus_id"]),
        _line("Chip Count", len(found)),
    ]


def _usages(arguments: Sequence[str], chips: Sequence[Shown]) -> list[str] | None:
    found = _asked(arguments, chips)
    if not found:
        return None
    lines = [_line("NPU ID", found[0].device["npu_id"]), _line("Chip Count", len(found))]
    for chip in found:
        kind = "Memory" if chip.host["chip"] in ("310", "310B1") else "DDR"
        total = MEMORY[chip.host["chip"]]
        lines += [
            "",
            _line(f"{kind} Capacity(MB)", total),
            _line(f"{kind} Usage Rate(%)", 100 * chip.memory // total),
            _line("Aicore Usage Rate(%)", chip.load),
            _line("Aicpu Usage Rate(%)", 0),
            _line("Ctrlcpu Usage Rate(%)", 1),
            _line("Chip ID", chip.device["chip_id"]),
        ]
    return lines


def _common(arguments: Sequence[str], chips: Sequence[Shown]) -> list[str] | None:
    found = _asked(arguments, chips)
    if not found:
        return None
    lines = [_line("NPU ID", found[0].device["npu_id"]), _line("Chip Count", len(found))]
    for chip in found:
        lines += [
            "",
            _line("Chip ID", chip.device["chip_id"]),
            _line("Memory Usage Rate(%)", 100 * chip.memory // MEMORY[chip.host["chip"]]),
            _line("Aicore Usage Rate(%)", chip.load),
            _line("Aicore Freq(MHZ)", CLOCK),
            _line("Aicore curFreq(MHZ)", chip.clock),
            _line("Temperature(C)", 46),
        ]
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
