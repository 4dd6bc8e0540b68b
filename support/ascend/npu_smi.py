"""What ``npu-smi`` prints: tables and lists of every driver since 20.2, read by their words, never by their columns."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

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
    "parse_list",
    "parse_mapping",
    "parse_usages",
]

HEALTH = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")
BUS_ID = re.compile(r"NA|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]+")
TITLE = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
NO_PROCESS = re.compile(r"No running processes found in NPU ([0-9]+)\b.*")
UNKNOWN = ("NA", "-", "")
#: int() and float() alone would also take 1_000, nan, and the digits of other scripts.
WHOLE = re.compile(r"-?[0-9]+")
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
#: Used / total; no blank stands before the slash when the number fills its field.
PAIR = re.compile(r"(?<!\S)([0-9]+|NA|-)\s*/\s*([0-9]+|NA|-)(?!\S)")
QUOTED = 80


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
    aicore: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power: float | None = None
    temperature: int | None = None


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
    the rows and values that could not be read, and what is missing.
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

    Every number is optional: what cannot be read becomes None and a problem instead of a guess, and a row that does not
    tell which chip it is about becomes a problem alone.

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
        #: Values of the form used / total in card rows and chip rows; None as long as no header has told.
        self._card_pairs: int | None = None
        self._chip_pairs: int | None = None
        self._columns: list[str] = []
        self._told_processes_of: set[int] = set()

    def take(self, line: str) -> None:
        if line.startswith("+"):
            # The two rows of a chip stand together: what a border parts belongs to different chips.
            self._drop_card()
        elif line.startswith("|"):
            # A cut line may end in the middle of a number.
            whole = line.endswith("|") and len(line) > 1
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            self._row(cells) if whole else self._problem("cut row", cells)

    def _problem(self, what: object, cells: Sequence[str]) -> None:
        self.problems.append(f"{what}: {' | '.join(cells)[:QUOTED]}")

    def _row(self, cells: list[str]) -> None:
        title, none = TITLE.fullmatch(cells[0]), NO_PROCESS.fullmatch(cells[0])
        if title:
            self.versions = title[1], title[2]
        elif none:
            self.processes = self.processes or []
            self._told_processes_of.add(int(none[1]))
        elif "Process id" in cells:
            self.processes, self._columns = self.processes or [], cells
        elif cells[0].startswith("NPU"):
            self._card_pairs = cells[-1].count("-Usage(")
        elif cells[0].startswith("Chip"):
            self._has_device, self._chip_pairs = "Device" in cells[0], cells[-1].count("-Usage(")
        elif self.processes is not None:
            self._process(cells)
        else:
            self._chip_table(cells)

    def _chip_table(self, cells: list[str]) -> None:
        if len(cells) == 3 and cells[1] in HEALTH:
            self._drop_card()
            self._card = cells
        elif len(cells) == 3 and BUS_ID.fullmatch(cells[1]):
            card, self._card = self._card, []
            self._chip(card, cells)
        else:
            self._drop_card()
            self._problem("unknown row", cells)

    def _drop_card(self) -> None:
        if self._card:
            self._problem("card without its chip", self._card)
        self._card = []

    def _chip(self, card: list[str], cells: list[str]) -> None:
        if not card:
            self._problem("chip without its card", cells)
            return
        try:
            place = _place(card, cells, has_device=self._has_device)
        except ValueError as error:
            self._problem(error, [*card, *cells])
            return
        rates = {**self._read(_card_rates, card, self._card_pairs), **self._read(_chip_rates, cells, self._chip_pairs)}
        self.chips.append(ChipRow(**place, **rates))

    def _read(
        self, read: Callable[[str, int | None], dict[str, Any]], cells: list[str], pairs: int | None
    ) -> dict[str, Any]:
        try:
            return read(cells[2], pairs)
        except ValueError as error:
            self._problem(error, cells)
            return {}

    def _process(self, cells: list[str]) -> None:
        try:
            if len(cells) != len(self._columns):
                raise ValueError("row with other columns")
            npu_id, chip_id = _ids(cells[0], 2)
        except ValueError as error:
            self._problem(error, cells)
            return
        self._told_processes_of.add(npu_id)
        found = dict(zip(self._columns, cells, strict=True))
        try:
            pid, memory = _whole(found["Process id"]), _whole(found.get("Process memory(MB)", ""))
        except ValueError as error:
            # The process is there all the same.
            self._problem(error, cells)
            pid, memory = None, None
        row = ProcessRow(npu_id=npu_id, chip_id=chip_id, pid=pid, name=found.get("Process name", ""), memory=memory)
        self.processes = [*(self.processes or []), row]

    def finished(self, text: str) -> InfoTable:
        self._drop_card()
        chips = self._consistent()
        if not chips:
            printed = "; ".join(self.problems) or text.strip()[:300] or "nothing"
            raise ToolError(
                f"npu-smi printed no chip that can be read: {printed}",
                required="the table of npu-smi info",
                remedy="run npu-smi info by hand; another version of the driver may print another table",
            )
        if self.processes is not None:
            untold = dict.fromkeys(chip.npu_id for chip in chips if chip.npu_id not in self._told_processes_of)
            self.problems += [f"the table of processes says nothing about NPU {npu_id}" for npu_id in untold]
        return InfoTable(
            tool_version=self.versions[0],
            driver_version=self.versions[1],
            chips=tuple(chips),
            processes=None if self.processes is None else tuple(self.processes),
            problems=tuple(self.problems),
        )

    def _consistent(self) -> list[ChipRow]:
        """Chips that are listed once; without device ids where these are not in the order every driver lists them."""
        places = Counter((chip.npu_id, chip.chip_id) for chip in self.chips)
        twice = [place for place, count in places.items() if count > 1]
        self.problems += [f"NPU {npu_id}, chip {chip_id} is listed more than once" for npu_id, chip_id in twice]
        chips = [chip for chip in self.chips if (chip.npu_id, chip.chip_id) not in twice]
        ids = [chip.logic_id for chip in chips if chip.logic_id is not None]
        if ids == sorted(set(ids)):
            return chips
        self.problems.append(f"device ids are not in ascending order: {ids}")
        return [chip.model_copy(update={"logic_id": None}) for chip in chips]


def _place(card: Sequence[str], chip: Sequence[str], *, has_device: bool) -> dict[str, Any]:
    npu, *name = card[0].split()
    if len(name) != 1:
        raise ValueError("card row with other columns")
    (npu_id,) = _ids(npu, 1)
    # Tables with HBM have one id here, or a second that is no device id.
    ids = _ids(chip[0], 1, 2)
    return {
        "npu_id": npu_id,
        "chip_id": ids[0],
        "logic_id": ids[1] if has_device and len(ids) == 2 else None,
        "name": name[0],
        "health": card[1],
        "bus_id": None if chip[1] == "NA" else chip[1].upper(),
    }


def _ids(cell: str, *counts: int) -> list[int]:
    parts = cell.split()
    if len(parts) not in counts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError("ids that cannot be read")
    return [int(part) for part in parts]


def _values(cell: str, singles: int, pairs: int | None) -> tuple[list[str], list[tuple[str, str]]]:
    """Split a cell into its single values and those of the form used / total."""
    found, single = PAIR.findall(cell), PAIR.sub(" ", cell).split()
    if len(single) != singles or pairs not in (None, len(found)):
        raise ValueError("row with other columns")
    return single, found


def _card_rates(cell: str, pairs: int | None) -> dict[str, Any]:
    (power, temperature), _ = _values(cell, 2, pairs)
    if power not in UNKNOWN and not DECIMAL.fullmatch(power):
        raise ValueError(f"a power of {power}")
    return {"power": None if power in UNKNOWN else float(power), "temperature": _whole(temperature)}


def _chip_rates(cell: str, pairs: int | None) -> dict[str, Any]:
    (aicore,), found = _values(cell, 1, pairs)
    # HBM comes last where there is one.
    used, total = (_whole(part) for part in found[-1]) if found else (None, None)
    if used is not None and total is not None and used > total:
        raise ValueError(f"{used} of {total} MB in use")
    return {"aicore": _percent(aicore), "memory_used": used, "memory_total": total}


def _whole(text: str) -> int | None:
    if text in UNKNOWN:
        return None
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{text} is no number")
    return int(text)


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
        If it is no such list, or lists a chip twice.
    """
    rows = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*([0-9]+)\s+([0-9]+)\s+([0-9]+|-)\s+(\S.*?)\s*", line)
        if match:
            npu_id, chip_id, logic_id, name = match.groups()
            rows.append(Mapped(npu_id=int(npu_id), chip_id=int(chip_id), logic_id=_whole(logic_id), name=name))
    if "Chip Logic ID" not in text or not rows or len({(row.npu_id, row.chip_id) for row in rows}) < len(rows):
        raise _unreadable("-m", text, "the NPU, chip and logic id of every chip, once")
    return tuple(rows)


def parse_list(text: str) -> tuple[Mapping[str, str], ...]:
    """
    Read ``npu-smi info -l``: for each card its values by their printed names.

    Raises
    ------
    ToolError
        If there are not as many cards as it counts.
    """
    blocks = [dict(block) for block in _blocks(text)]
    counted = [block.get("Card Count", block.get("Total Count")) for block in blocks[:1]]
    cards = tuple(block for block in blocks if "NPU ID" in block)
    if not cards or counted != [str(len(cards))]:
        raise _unreadable("-l", text, "a count of cards, and as many cards")
    return cards


def parse_board(text: str) -> Mapping[str, str]:
    """
    Read ``npu-smi info -t board``: values by their printed names.

    Raises
    ------
    ToolError
        If there is no such value, or one is there twice.
    """
    fields = [field for block in _blocks(text) for field in block]
    found = dict(fields)
    if "NPU ID" not in found or len(found) < len(fields):
        raise _unreadable("-t board", text, "lines of key : value, each key once")
    return found


def parse_usages(text: str) -> tuple[Usage, ...]:
    """
    Read ``npu-smi info -t usages``, and the chips of ``-t common``.

    Blank lines part the chips; their id ends a block of the one command and starts that of the other. A block without
    an id is no chip, or was cut.

    Raises
    ------
    ToolError
        If no block is whole, or one has two chips or the same value twice.
    """
    found = []
    for block in _blocks(text):
        values = dict(block)
        if len(values) < len(block):
            raise _unreadable("-t usages", text, "each value of a chip once, and blank lines between chips")
        if values.get("Chip ID", "").isdecimal():
            numbers = {key: int(value) for key, value in values.items() if _is_usage(key, value)}
            found.append(Usage(chip_id=int(values["Chip ID"]), values=numbers))
    if not found:
        raise _unreadable("-t usages", text, "blocks with a Chip ID")
    return tuple(found)


def _is_usage(key: str, value: str) -> bool:
    whole = value.isascii() and value.isdecimal()
    return whole and key not in ("NPU ID", "Chip Count", "Chip ID") and not ("%" in key and int(value) > 100)


def _blocks(text: str) -> Iterator[list[tuple[str, str]]]:
    """Lines of the form key : value, between blank lines."""
    # A last line without its end may be cut in the middle of a value.
    lines = (line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        parts = [line.partition(" : ") for line in group]
        fields = [(key.strip(), value.strip()) for key, colon, value in parts if colon]
        if fields and not blank:
            yield fields


def _unreadable(query: str, text: str, required: str) -> ToolError:
    return ToolError(
        f"npu-smi info {query} printed {text.strip()[:200]!r}",
        required=required,
        remedy=f"run npu-smi info {query} by hand; another version of the driver may print another list",
    )


#: Code of the driver or text npu-smi prints, error, cause, remedy.
Failure: TypeAlias = tuple[int | str, type[SuiteError], str, str]
FAILURES: tuple[Failure, ...] = (
    (
        -8005,
        NoDeviceError,
        "the driver cannot be used: it is not installed, or this user has no permission",
        "install the driver, or let this user use it: group HwHiAiUser; in a container, mount the devices",
    ),
    (
        -8020,
        DeviceBusyError,
        "a container has taken the devices",
        "run inside that container, or stop it",
    ),
    (-8001, ToolError, "the driver refuses the parameters", "its version may be older than 20.2: npu-smi -v"),
    (-8002, ToolError, "not permitted", "run as a user of the group HwHiAiUser, or as root"),
    (-8007, NoDeviceError, "the driver knows no device of this id", "see which there are: npu-smi info -l"),
    (-8008, NoDeviceError, "the device is not there", "look at dmesg; reset the device or restart the host"),
    (-8255, ToolError, "this device or driver does not support the query", "update the driver"),
    (
        "Command or option is not found",
        ToolError,
        "npu-smi does not know the query",
        "the driver is too old for it: update it, or see npu-smi info -h",
    ),
    (
        "There is no NPU card",
        NoDeviceError,
        "no card",
        "no card is plugged in, or the driver does not see it: lspci -d 19e5:",
    ),
    (
        "error while loading shared libraries",
        ToolError,
        "the libraries of the driver are missing",
        "add /usr/local/Ascend/driver/lib64/{common,driver} to LD_LIBRARY_PATH; in a container, mount them",
    ),
    ("Failed to execute npu-smi info", ToolError, "the driver failed", "look at dmesg; restart the driver or the host"),
)
UNKNOWN_FAILURE: Failure = ("", ToolError, "unknown cause", "run npu-smi info by hand and check the driver: dmesg")
#: Output that is a failure whatever the exit status is.
FAILED = re.compile("|".join((r"\bret is -?[1-9]", *(str(row[0]) for row in FAILURES if isinstance(row[0], str)))))


def explain(status: int, output: str) -> SuiteError:
    """
    Say what a failed ``npu-smi`` means.

    Parameters
    ----------
    status : int
        Its exit status, which is the driver's code cut to a byte: -8005 is 187. Negative for a signal.
    output : str
        What it printed.
    """
    ended = f"npu-smi {f'was ended by signal {-status}' if status < 0 else f'ended with {status}'}"
    text = output.strip()[:300] or "nothing printed"
    told = re.search(r"\bret is (-?[0-9]+)", output)
    # The code that is printed says more than its last byte.
    code = int(told[1]) if told else None
    key, kind, cause, remedy = next((row for row in FAILURES if _fits(row[0], code, status, output)), UNKNOWN_FAILURE)
    return kind(f"{ended}: {cause}{f' ({key})' if isinstance(key, int) else ''}: {text}", remedy=remedy)


def _fits(key: int | str, code: int | None, status: int, output: str) -> bool:
    if isinstance(key, str):
        return key in output
    return key & 0xFF == status if code is None else key == code


class NpuSmi:
    """
    The tool itself, one call at a time: calls side by side are known to disturb each other.

    Every method raises what `explain` makes of a failure, ToolError where the tool is missing or its answer cannot be
    read, and SuiteTimeoutError where it does not answer.

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

    def common(self, npu_id: int) -> tuple[Usage, ...]:
        """Utilisation, clock and temperature of the chips of a card."""
        return parse_usages(self._ask("-t", "common", "-i", str(npu_id)))

    def _ask(self, *arguments: str) -> str:
        command = [str(self._host.tool("npu-smi")), "info", *arguments]
        with self._lock:
            done = run_tool(command, env=self._host.env, timeout=self._timeout)
        if done.status != 0 or FAILED.search(done.output):
            raise explain(done.status, done.output)
        return done.output
