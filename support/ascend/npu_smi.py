"""What ``npu-smi`` prints: tables and lists of every driver since 20.2, read by their words, never by their columns."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.errors import DeviceBusyError, NoDeviceError, SuiteError, ToolError

__all__ = [
    "ChipRow",
    "InfoTable",
    "Mapped",
    "NpuSmi",
    "ProcessRow",
    "Usage",
    "explain",
    "parse_board",
    "parse_info",
    "parse_mapping",
    "parse_usages",
]

HEALTH = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")
BUS_ID = re.compile(r"NA|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]+")
TITLE = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
PAIR = re.compile(r"(\d+|NA|-)\s*/\s*(\d+|NA|-)")
UNKNOWN = ("NA", "-", "")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChipRow(_Record):
    """
    One chip of the table; None where the driver tells nothing.

    Memory in MB, of the HBM where the table has it; `aicore` in percent, `power` in W, `temperature` in degrees C.
    `logic_id` is the "Device" column, which tables with HBM do not have.
    """

    npu_id: int
    chip_id: int
    logic_id: int | None
    name: str
    health: str
    bus_id: str | None
    aicore: int | None
    memory_used: int | None
    memory_total: int | None
    power: float | None
    temperature: int | None


class ProcessRow(_Record):
    """One process on a chip; memory in MB. In a container the pid is the host's, or missing."""

    npu_id: int
    chip_id: int
    pid: int | None
    name: str
    memory: int | None


class InfoTable(_Record):
    """
    The output of ``npu-smi info``.

    `processes` is None where this driver prints no table of them, which is not the same as an empty one. `problems` are
    the rows that could not be read.
    """

    tool_version: str
    driver_version: str
    chips: tuple[ChipRow, ...]
    processes: tuple[ProcessRow, ...] | None
    problems: tuple[str, ...]


class Mapped(_Record):
    """One row of ``npu-smi info -m``: which device id a chip has; None for a management chip."""

    npu_id: int
    chip_id: int
    logic_id: int | None
    name: str


class Usage(_Record):
    """One chip's block of ``npu-smi info -t usages``: rates in percent, capacities in MB, by their printed names."""

    chip_id: int
    values: Mapping[str, int]


def parse_info(text: str) -> InfoTable:
    """
    Read the table of ``npu-smi info``.

    Every number is optional, and a row that cannot be read whole becomes a problem instead of a guess.

    Raises
    ------
    ToolError
        If there is no such table, or no chip in it can be read.
    """
    reader = _InfoReader()
    for line in text.splitlines():
        reader.take(line.strip())
    return reader.finished(text)


class _InfoReader:
    """Reads row after row; each row means what the headers above it say."""

    def __init__(self) -> None:
        self.versions = ("", "")
        self.chips: list[ChipRow] = []
        self.processes: list[ProcessRow] | None = None
        self.problems: list[str] = []
        self._card: list[str] = []
        self._has_device = False
        self._columns: list[str] = []

    def take(self, line: str) -> None:
        title = TITLE.search(line)
        if title:
            self.versions = title[1], title[2]
        elif line.startswith("|"):
            # A cut line may end in the middle of a number.
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            whole = line.endswith("|") and len(line) > 1
            self._row(cells) if whole else self.problems.append(f"cut row: {line[:80]}")

    def _row(self, cells: list[str]) -> None:
        if any(cell.startswith("Process id") for cell in cells):
            self.processes, self._columns = self.processes or [], cells
        elif cells[0].startswith("NPU"):
            pass
        elif cells[0].startswith("Chip"):
            self._has_device = "Device" in cells[0]
        elif cells[0].startswith("No running processes"):
            self.processes = self.processes or []
        elif self.processes is not None:
            self._process(cells)
        elif len(cells) == 3 and cells[1] in HEALTH:
            self._begin_card(cells)
        elif len(cells) == 3 and BUS_ID.fullmatch(cells[1]):
            self._end_card(cells)
        else:
            self.problems.append(f"unknown row: {' | '.join(cells)[:80]}")

    def _begin_card(self, cells: list[str]) -> None:
        if self._card:
            self.problems.append(f"card without a chip: {self._card[0]}")
        self._card = cells

    def _end_card(self, cells: list[str]) -> None:
        card, self._card = self._card, []
        try:
            if not card:
                raise ValueError("chip without its card")
            self.chips.append(_chip(card, cells, has_device=self._has_device))
        except ValueError as error:
            self.problems.append(f"{error}: {' | '.join(cells)[:80]}")

    def _process(self, cells: list[str]) -> None:
        found = dict(zip(self._columns, cells, strict=False))
        try:
            npu_id, chip_id = (int(part) for part in cells[0].split())
            row = ProcessRow(
                npu_id=npu_id,
                chip_id=chip_id,
                pid=_whole(found.get("Process id", "")),
                name=found.get("Process name", ""),
                memory=_whole(found.get("Process memory(MB)", "")),
            )
        except ValueError:
            self.problems.append(f"unknown process row: {' | '.join(cells)[:80]}")
            return
        self.processes = [*(self.processes or []), row]

    def finished(self, text: str) -> InfoTable:
        if self._card:
            self.problems.append(f"card without a chip: {self._card[0]}")
        if not self.chips:
            printed = "; ".join(self.problems) or text.strip()[:300] or "nothing"
            raise ToolError(
                f"npu-smi printed no chip that can be read: {printed}",
                required="the table of npu-smi info",
                remedy="run npu-smi info by hand; another version of the driver may print another table",
            )
        return InfoTable(
            tool_version=self.versions[0],
            driver_version=self.versions[1],
            chips=tuple(self.chips),
            processes=None if self.processes is None else tuple(self.processes),
            problems=tuple(self.problems),
        )


def _chip(card: Sequence[str], chip: Sequence[str], *, has_device: bool) -> ChipRow:
    npu, name = card[0].split()
    ids = [int(part) for part in chip[0].split()]
    if not 1 <= len(ids) <= 2:
        raise ValueError("chip row with other columns")
    rates = PAIR.sub(" ", card[2]).split()
    power, temperature = rates if len(rates) == 2 else ("", "")
    load = PAIR.sub(" ", chip[2]).split()
    used, total = _memory(chip[2])
    return ChipRow(
        npu_id=int(npu),
        chip_id=ids[0],
        logic_id=ids[1] if has_device and len(ids) == 2 else None,
        name=name,
        health=card[1],
        bus_id=None if chip[1] == "NA" else chip[1].upper(),
        aicore=_percent(load[0]) if len(load) == 1 else None,
        memory_used=used,
        memory_total=total,
        power=None if power in UNKNOWN else float(power),
        temperature=_whole(temperature),
    )


def _memory(cell: str) -> tuple[int | None, int | None]:
    pairs = PAIR.findall(cell)
    if not pairs:
        return None, None
    used, total = (_whole(part) for part in pairs[-1])
    if used is not None and total is not None and used > total:
        raise ValueError(f"{used} of {total} MB in use")
    return used, total


def _whole(text: str) -> int | None:
    return None if text in UNKNOWN else int(text)


def _percent(text: str) -> int | None:
    value = _whole(text)
    if value is not None and not 0 <= value <= 100:
        raise ValueError(f"a rate of {value} %")
    return value


def parse_mapping(text: str) -> tuple[Mapped, ...]:
    """
    Read ``npu-smi info -m``.

    Raises
    ------
    ToolError
        If it is no such list.
    """
    rows = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s+(\d+|-)\s+(\S.*?)\s*", line)
        if match:
            npu_id, chip_id, logic_id, name = match.groups()
            rows.append(Mapped(npu_id=int(npu_id), chip_id=int(chip_id), logic_id=_whole(logic_id), name=name))
    if "Chip Logic ID" not in text or not rows:
        raise ToolError(f"npu-smi info -m printed {text.strip()[:200]!r}", required="NPU, chip and logic ids")
    return tuple(rows)


def parse_board(text: str) -> Mapping[str, str]:
    """
    Read ``npu-smi info -t board``: values by their printed names.

    Raises
    ------
    ToolError
        If there is no such value.
    """
    found = dict(_fields(text))
    if "NPU ID" not in found:
        raise ToolError(f"npu-smi info -t board printed {text.strip()[:200]!r}", required="lines of key : value")
    return found


def parse_usages(text: str) -> tuple[Usage, ...]:
    """
    Read ``npu-smi info -t usages``; the line of the chip id ends a block.

    Raises
    ------
    ToolError
        If no block is whole.
    """
    found: list[Usage] = []
    block: dict[str, int] = {}
    for key, value in _fields(text):
        if key == "Chip ID" and value.isdecimal():
            found.append(Usage(chip_id=int(value), values=block))
            block = {}
        elif value.isdecimal() and key not in ("NPU ID", "Chip Count"):
            block[key] = int(value)
    if not found:
        raise ToolError(
            f"npu-smi info -t usages printed {text.strip()[:200]!r}", required="blocks that end in a Chip ID"
        )
    return tuple(found)


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(" : ")
        if colon and not line.startswith("#"):
            yield key.strip(), value.strip()


#: What npu-smi says when it fails, as (text, error, remedy).
FAILURES: tuple[tuple[str, type[SuiteError], str], ...] = (
    (
        "-8005",
        NoDeviceError,
        "install the driver, or let this user use it: group HwHiAiUser; in a container, mount the devices",
    ),
    ("-8020", DeviceBusyError, "a container has the devices: run inside it, or stop it"),
    ("-8001", ToolError, "the driver refuses the parameters: its version may be older than 20.2"),
    ("-8002", ToolError, "not permitted: run as a user of the group HwHiAiUser, or as root"),
    ("-8007", NoDeviceError, "the driver knows no device of this id: run npu-smi info -l"),
    ("-8008", NoDeviceError, "the device is not there any more: look at dmesg, restart the host"),
    ("-8255", ToolError, "this device or driver does not support the query"),
    ("Command or option is not found", ToolError, "the driver is too old, or an argument is wrong: npu-smi -h"),
    ("There is no NPU card", NoDeviceError, "no card is plugged in, or the driver does not see it: lspci -d 19e5:"),
)


def explain(status: int, output: str) -> SuiteError:
    """
    Say what a failed ``npu-smi`` means.

    Parameters
    ----------
    status : int
        Its exit status; the driver's codes come as their last byte.
    output : str
        What it printed.
    """
    text = output.strip()[:300] or "nothing"
    # The exit status is the driver's code, cut to a byte: -8005 is 187.
    code = next((f"-{number}" for number in (8005, 8020) if status == -number & 0xFF), "")
    for needle, kind, remedy in FAILURES:
        if needle in output or needle == code:
            return kind(f"npu-smi ended with {status}: {text}", remedy=remedy)
    return ToolError(f"npu-smi ended with {status}: {text}", remedy="run npu-smi info by hand and check the driver")


class NpuSmi:
    """
    The tool itself, one call at a time: calls side by side are known to disturb each other.

    Parameters
    ----------
    host : AscendHost
        Where it is.
    timeout : float
        Seconds a call may take.
    """

    def __init__(self, host: AscendHost, *, timeout: float) -> None:
        self._host, self._timeout, self._lock = host, timeout, threading.Lock()

    def info(self) -> InfoTable:
        """Table of chips and processes."""
        return parse_info(self._ask())

    def mapping(self) -> tuple[Mapped, ...]:
        """Device ids of all chips."""
        return parse_mapping(self._ask("-m"))

    def board(self, npu_id: int) -> Mapping[str, str]:
        """Versions and serial number of a card."""
        return parse_board(self._ask("-t", "board", "-i", str(npu_id)))

    def usages(self, npu_id: int) -> tuple[Usage, ...]:
        """Utilisation of the chips of a card."""
        return parse_usages(self._ask("-t", "usages", "-i", str(npu_id)))

    def _ask(self, *arguments: str) -> str:
        command = [str(self._host.tool("npu-smi")), "info", *arguments]
        with self._lock:
            done = run_tool(command, env=self._host.env, timeout=self._timeout)
        if done.status != 0 or "There is no NPU card" in done.output:
            raise explain(done.status, done.output)
        return done.output
