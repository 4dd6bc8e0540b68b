"""NPUs as a process finds them: which chip a device id means, and whether it is fit for use."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from support.ascend.npu_smi import ChipRow, InfoTable, Mapped, NpuSmi
from support.errors import NoDeviceError, ToolError, WrongDeviceError

__all__ = ["Npu", "choose", "visible_npus"]

HEALTHY = "OK"
#: The guide's tables do not tell the members of this family apart.
FAMILY = "310P"
#: What some lists print instead of a name or a number.
NONE = ("", "NA", "-")
#: Names of the mapping that differ from those of the table.
CODE_NAMES = {"MiniD": "310"}

#: NPU id and chip id.
Place: TypeAlias = tuple[int, int]


class Npu(BaseModel):
    """
    One chip.

    `npu_id` and `chip_id` are what ``npu-smi -i`` and ``-c`` want, `logic_id` is the host's device id, `device_id` the
    one this process must use. `memory_total` in MB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    npu_id: int
    chip_id: int
    logic_id: int
    device_id: int
    bus_id: str | None
    health: str
    memory_total: int | None
    driver: str
    firmware: str
    serial: str

    @property
    def soc_version(self) -> str:
        """Name of the chip for atc: "Ascend" and the name npu-smi prints."""
        return f"Ascend{self.name.removeprefix('Ascend')}"

    @property
    def identity(self) -> str:
        """What identifies the chip: serial number of its card, else its bus, else its host; and its place there."""
        if self.serial or self.bus_id:
            # The chips of one card share its serial number, and on some cards its bus.
            return f"{self.serial or self.bus_id}/{self.chip_id}"
        return f"{platform.node()} npu {self.npu_id} chip {self.chip_id}"

    @property
    def title(self) -> str:
        """Device id and place, for messages."""
        return f"{self.device_id} {self.name} (NPU {self.npu_id}, chip {self.chip_id})"


def visible_npus(smi: NpuSmi, visible: str | None) -> tuple[Npu, ...]:
    """
    Find the NPUs of this process, in the order of its device ids.

    A chip that is mapped but whose row cannot be read is among them, with the reason as its health.

    Parameters
    ----------
    smi : NpuSmi
        Asked for the table, the mapping and every card.
    visible : str or None
        ``ASCEND_RT_VISIBLE_DEVICES``: the logic ids that are visible; they are renumbered from 0.

    Raises
    ------
    WrongDeviceError
        If it cannot be told which chip a device id means.
    SuiteError
        What keeps npu-smi from answering.
    """
    table = smi.info()
    mapping = _mapping(smi)
    logic = _logic_ids(table, mapping)
    order = _all_visible(logic, table) if visible is None else _visible(visible, logic.values())
    boards = {npu_id: _board(smi, npu_id) for npu_id in dict.fromkeys(npu_id for npu_id, _ in logic)}
    chips = {logic[chip.npu_id, chip.chip_id]: chip for chip in (*table.chips, *_unread(table, mapping))}
    return tuple(
        _npu(chips[logic_id], logic_id, device_id, boards[chips[logic_id].npu_id], table)
        for device_id, logic_id in enumerate(order)
    )


def _mapping(smi: NpuSmi) -> tuple[Mapped, ...]:
    """Chips that have a device id, by ``-m``; none where this driver does not know the query."""
    try:
        return tuple(row for row in smi.mapping() if row.logic_id is not None)
    except ToolError:
        return ()


def _logic_ids(table: InfoTable, mapping: Sequence[Mapped]) -> dict[Place, int]:
    """Device ids of the host by place: those of ``-m``, which is right where the two disagree, else the column."""
    column = {(chip.npu_id, chip.chip_id): chip.logic_id for chip in table.chips}
    listed = {(row.npu_id, row.chip_id): row.logic_id for row in mapping}
    found = {**column, **listed}
    disagree = any(column.get(place) not in (None, number) for place, number in listed.items())
    known = {place: number for place, number in found.items() if number is not None}
    if len(set(known.values())) < len(found) or (disagree and not column.keys() <= listed.keys()):
        raise _not_proven(
            f"npu-smi does not tell which device id a chip has: info {column}, info -m {listed}",
            "one device id for every chip, from npu-smi info -m or npu-smi info",
            "run npu-smi info -m by hand and check the driver",
            table,
        )
    return known


def _not_proven(found: str, required: str, remedy: str, table: InfoTable) -> WrongDeviceError:
    unread = f"; not readable: {'; '.join(table.problems)}" if table.problems else ""
    return WrongDeviceError(f"{found}{unread}", required=required, remedy=remedy)


def _all_visible(logic: Mapping[Place, int], table: InfoTable) -> list[int]:
    ids = sorted(logic.values())
    # A process counts its devices from 0, so of a single one the number is known even if a container has renumbered it.
    alone = len(ids) == 1 and not table.problems
    if not alone and ids != list(range(len(ids))):
        raise _not_proven(
            f"npu-smi lists the device ids {ids}: it cannot be told how this process counts them",
            "device ids from 0 without a gap",
            "a container may see some of the chips only: give it one of them, or all; or check the driver",
            table,
        )
    return ids


def _visible(text: str, known: Collection[int]) -> list[int]:
    """
    Read ``ASCEND_RT_VISIBLE_DEVICES``.

    The runtime stops reading at the first character that is neither digit nor comma, a blank too, and at the first
    unknown id; ids in ascending order are the only ones it supports. Source: "ASCEND_RT_VISIBLE_DEVICES" in the
    environment variable reference of CANN 8.0 and 8.5. The reference of CANN 6.3 allows any order.
    """
    parts = text.split(",")
    ids = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    if [str(number) for number in ids] != parts or ids != sorted(set(ids)) or not set(ids) <= set(known):
        raise WrongDeviceError(
            f"ASCEND_RT_VISIBLE_DEVICES={text}: it cannot be told which chip a device id means",
            required=f"different device ids in ascending order, with commas and no blanks, out of {sorted(known)}",
            remedy="correct the variable, or unset it and choose with --device-id",
        )
    return ids


def _board(smi: NpuSmi, npu_id: int) -> Mapping[str, str]:
    try:
        return smi.board(npu_id)
    except (ToolError, NoDeviceError):
        # Old drivers do not know the query; what it tells is recorded, not needed.
        return {}


def _unread(table: InfoTable, mapping: Sequence[Mapped]) -> list[ChipRow]:
    """Chips of the mapping without a row in the table that can be read."""
    read = {(chip.npu_id, chip.chip_id) for chip in table.chips}
    health = f"not readable ({'; '.join(table.problems) or 'no row in npu-smi info'})"
    return [
        ChipRow(
            npu_id=row.npu_id,
            chip_id=row.chip_id,
            logic_id=row.logic_id,
            name=CODE_NAMES.get(row.name, row.name.removeprefix("Ascend").strip()),
            health=health,
            bus_id=None,
        )
        for row in mapping
        if (row.npu_id, row.chip_id) not in read
    ]


def _npu(chip: ChipRow, logic_id: int, device_id: int, board: Mapping[str, str], table: InfoTable) -> Npu:
    told = {key: value for key, value in board.items() if value not in NONE}
    return Npu(
        name=chip.name,
        npu_id=chip.npu_id,
        chip_id=chip.chip_id,
        logic_id=logic_id,
        device_id=device_id,
        bus_id=chip.bus_id,
        health=chip.health,
        memory_total=chip.memory_total,
        driver=told.get("Software Version", table.driver_version),
        firmware=told.get("Firmware Version", ""),
        serial=told.get("Serial Number", ""),
    )


def choose(npus: Sequence[Npu], name: str, device_ids: tuple[int, ...] | None) -> tuple[Npu, ...]:
    """
    Choose the devices of a run.

    Parameters
    ----------
    npus : sequence of Npu
        All there are.
    name : str
        Chip asked for, such as ``310P3``; ``310P`` is any of its family, as the guide names it.
    device_ids : tuple of int or None
        Devices asked for; None for the first healthy one of that name.

    Raises
    ------
    NoDeviceError
        If there is none, or one asked for is not healthy or not there.
    WrongDeviceError
        If a device asked for is another chip.
    """
    if device_ids is None:
        fitting = [npu for npu in npus if _is(npu, name)]
        healthy = [npu for npu in fitting if npu.health == HEALTHY]
        if not healthy:
            raise _none_fits(npus, name, fitting)
        return (healthy[0],)
    return tuple(_chosen(npus, name, device_id) for device_id in device_ids)


def _is(npu: Npu, name: str) -> bool:
    return npu.name == name or (name == FAMILY and npu.name.startswith(FAMILY))


def _none_fits(npus: Sequence[Npu], name: str, fitting: Sequence[Npu]) -> NoDeviceError:
    if fitting:
        states = ", ".join(f"device {npu.device_id}: {npu.health}" for npu in fitting)
        return NoDeviceError(
            f"no healthy {name}: {states}",
            required="health OK",
            remedy=f"look at npu-smi info -t health -i {fitting[0].npu_id}, and at dmesg",
        )
    return NoDeviceError(
        f"no {name} on this host: {', '.join(npu.title for npu in npus)}", remedy="give --chip one of these names"
    )


def _chosen(npus: Sequence[Npu], name: str, device_id: int) -> Npu:
    found = next((npu for npu in npus if npu.device_id == device_id), None)
    names = ", ".join(npu.title for npu in npus)
    if found is None:
        raise NoDeviceError(f"no device {device_id}: {names}", remedy="give --device-id some of these")
    if not _is(found, name):
        raise WrongDeviceError(
            f"device {device_id} is a {found.name}, not a {name}", remedy=f"--device-id=N with one of: {names}"
        )
    if found.health != HEALTHY:
        raise NoDeviceError(
            f"device {device_id} ({found.title}) reports health {found.health}",
            required="health OK",
            remedy=f"look at npu-smi info -t health -i {found.npu_id}, or choose another --device-id",
        )
    return found
