"""NPUs as a process finds them: which chip a device id means, and whether it is fit for use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from support.ascend.npu_smi import ChipRow, InfoTable, NpuSmi
from support.errors import NoDeviceError, SuiteError, WrongDeviceError

__all__ = ["Npu", "choose", "visible_npus"]

HEALTHY = "OK"


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
        """What identifies the piece of hardware: serial number and chip, else its bus, else its place in this host."""
        if self.serial:
            return f"{self.serial}/{self.chip_id}"
        return self.bus_id or f"npu {self.npu_id} chip {self.chip_id}"

    @property
    def title(self) -> str:
        """Device id and place, for messages."""
        return f"{self.device_id} {self.name} (NPU {self.npu_id}, chip {self.chip_id})"


def visible_npus(smi: NpuSmi, visible: str | None) -> tuple[Npu, ...]:
    """
    Find the NPUs of this process, in the order of its device ids.

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
    logic = _logic_ids(smi, table)
    boards = {npu_id: _board(smi, npu_id) for npu_id in dict.fromkeys(chip.npu_id for chip in table.chips)}
    chips = {logic[chip.npu_id, chip.chip_id]: chip for chip in table.chips}
    order = sorted(chips) if visible is None else _visible(visible, chips)
    return tuple(
        _npu(chips[logic_id], logic_id, device_id, boards[chips[logic_id].npu_id], table)
        for device_id, logic_id in enumerate(order)
    )


def _logic_ids(smi: NpuSmi, table: InfoTable) -> dict[tuple[int, int], int]:
    """Device ids by (NPU id, chip id): those of ``-m``, which is right where the two disagree, else the column."""
    column = {(chip.npu_id, chip.chip_id): chip.logic_id for chip in table.chips}
    try:
        listed = {(row.npu_id, row.chip_id): row.logic_id for row in smi.mapping()}
    except SuiteError:
        listed = {}
    found = {place: listed.get(place, column[place]) for place in column}
    unknown = [place for place, logic_id in found.items() if logic_id is None]
    twice = [number for number, count in Counter(found.values()).items() if count > 1]
    if unknown or twice:
        raise WrongDeviceError(
            f"npu-smi does not tell which device id a chip has: {found}",
            required="one device id for every chip, from npu-smi info or npu-smi info -m",
            remedy="run npu-smi info -m by hand and check the driver",
        )
    return {place: logic_id for place, logic_id in found.items() if logic_id is not None}


def _board(smi: NpuSmi, npu_id: int) -> Mapping[str, str]:
    try:
        return smi.board(npu_id)
    except SuiteError:
        # Old drivers do not know the query; what it tells is recorded, not needed.
        return {}


def _visible(text: str, chips: Mapping[int, ChipRow]) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    ids = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    # The renumbering is documented for ascending ids alone.
    if len(ids) != len(parts) or ids != sorted(set(ids)) or not set(ids) <= chips.keys():
        raise WrongDeviceError(
            f"ASCEND_RT_VISIBLE_DEVICES={text}: it cannot be told which chip a device id means",
            required=f"different device ids in ascending order, out of {sorted(chips)}",
            remedy="correct the variable, or unset it and choose with --device-id",
        )
    return ids


def _npu(chip: ChipRow, logic_id: int, device_id: int, board: Mapping[str, str], table: InfoTable) -> Npu:
    serial = board.get("Serial Number", "")
    return Npu(
        name=chip.name,
        npu_id=chip.npu_id,
        chip_id=chip.chip_id,
        logic_id=logic_id,
        device_id=device_id,
        bus_id=chip.bus_id,
        health=chip.health,
        memory_total=chip.memory_total,
        driver=board.get("Software Version", "") or table.driver_version,
        firmware=board.get("Firmware Version", ""),
        serial="" if serial == "NA" else serial,
    )


def choose(npus: Sequence[Npu], name: str, device_ids: tuple[int, ...] | None) -> tuple[Npu, ...]:
    """
    Choose the devices of a run.

    Parameters
    ----------
    npus : sequence of Npu
        All there are.
    name : str
        Chip asked for, such as ``310P3``.
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
        fitting = [npu for npu in npus if npu.name == name]
        healthy = [npu for npu in fitting if npu.health == HEALTHY]
        if not healthy:
            raise _none_fits(npus, name, fitting)
        return (healthy[0],)
    return tuple(_chosen(npus, name, device_id) for device_id in device_ids)


def _none_fits(npus: Sequence[Npu], name: str, fitting: Sequence[Npu]) -> NoDeviceError:
    if fitting:
        states = ", ".join(f"device {npu.device_id}: {npu.health}" for npu in fitting)
        return NoDeviceError(
            f"no healthy {name}: {states}", required="health OK", remedy="npu-smi info -t health -i NPU"
        )
    return NoDeviceError(
        f"no {name} on this host: {', '.join(npu.title for npu in npus)}", remedy="give --chip one of these names"
    )


def _chosen(npus: Sequence[Npu], name: str, device_id: int) -> Npu:
    found = next((npu for npu in npus if npu.device_id == device_id), None)
    names = ", ".join(npu.title for npu in npus)
    if found is None:
        raise NoDeviceError(f"no device {device_id}: {names}", remedy="give --device-id some of these")
    if found.name != name:
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
