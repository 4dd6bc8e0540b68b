import platform

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.ascend.devices import Npu, choose, visible_npus
from support.ascend.npu_smi import ChipRow, InfoTable, Mapped
from support.errors import NoDeviceError, SuiteTimeoutError, ToolError, WrongDeviceError


def row(npu_id, chip_id=0, logic_id=None, name="310P3", health="OK", bus_id=None):
    numbers = {"aicore": 0, "memory_used": 900, "memory_total": 21527, "power": None, "temperature": 45}
    return ChipRow(
        npu_id=npu_id, chip_id=chip_id, logic_id=logic_id, name=name, health=health, bus_id=bus_id, **numbers
    )


class Smi:
    def __init__(self, *chips, mapping=None, board=None, problems=()):
        self._chips, self._mapping, self._board, self._problems = chips, mapping, board, problems

    def info(self):
        return InfoTable(
            tool_version="23", driver_version="23.0", chips=self._chips, processes=None, problems=self._problems
        )

    def mapping(self):
        if self._mapping is None:
            raise ToolError("Command or option is not found.")
        return [Mapped(npu_id=n, chip_id=c, logic_id=i, name="Ascend 310P3") for n, c, i in self._mapping]

    def board(self, npu_id):
        if self._board is None:
            raise ToolError("Command or option is not found.")
        return {"Serial Number": f"S{npu_id}", "Software Version": "23.0.1", "Firmware Version": "1.2", **self._board}


TWO = row(24, 0, 1), row(2144, 0, 0)


def test_npus_come_in_the_order_of_their_device_ids_whatever_their_npu_ids():
    found = visible_npus(Smi(*TWO), None)
    assert [(npu.npu_id, npu.logic_id, npu.device_id) for npu in found] == [(2144, 0, 0), (24, 1, 1)]


def test_a_device_is_described_by_its_board():
    first, _ = visible_npus(Smi(*TWO, board={}), None)
    assert (first.driver, first.firmware, first.serial, first.identity) == ("23.0.1", "1.2", "S2144", "S2144/0")
    assert first.soc_version == "Ascend310P3"


@pytest.mark.parametrize(
    ("board", "bus_id", "identity"),
    [
        (None, "0000:5E:00.0", "0000:5E:00.0/1"),
        ({"Serial Number": "NA"}, "0000:5E:00.0", "0000:5E:00.0/1"),
        ({"Serial Number": ""}, None, f"{platform.node()} npu 24 chip 1"),
    ],
)
def test_without_a_serial_number_the_bus_or_the_place_identifies_a_chip(board, bus_id, identity):
    (npu,) = visible_npus(Smi(row(24, 1, 0, bus_id=bus_id), board=board), None)
    assert npu.identity == identity


def test_chips_of_one_card_are_told_apart_even_on_one_bus():
    chips = row(1, 0, 0, bus_id="0000:01:00.0"), row(1, 1, 1, bus_id="0000:01:00.0")
    for board in (None, {}):
        assert len({npu.identity for npu in visible_npus(Smi(*chips, board=board), None)}) == 2


def test_what_a_board_prints_as_unknown_is_unknown():
    (npu,) = visible_npus(Smi(row(0, 0, 0), board={"Software Version": "NA", "Firmware Version": "-"}), None)
    assert (npu.driver, npu.firmware) == ("23.0", "")


@pytest.mark.parametrize("query", ["mapping", "board"])
def test_a_query_that_hangs_is_not_taken_for_one_the_driver_does_not_know(monkeypatch, query):
    def hang(*_):
        raise SuiteTimeoutError("npu-smi had not ended")

    monkeypatch.setattr(Smi, query, hang)
    with pytest.raises(SuiteTimeoutError):
        visible_npus(Smi(*TWO), None)


def test_where_the_two_lists_disagree_the_mapping_is_right():
    found = visible_npus(Smi(row(6, 0, 3), row(6, 1, 4), mapping=[(6, 0, 0), (6, 1, 1), (6, 4, None)]), None)
    assert [(npu.chip_id, npu.device_id) for npu in found] == [(0, 0), (1, 1)]


def test_where_the_table_has_no_device_ids_the_mapping_tells():
    found = visible_npus(Smi(row(0), row(1), mapping=[(0, 0, 1), (1, 0, 0)]), None)
    assert [npu.npu_id for npu in found] == [1, 0]


@pytest.mark.parametrize("chips", [(row(0), row(1)), (row(0, logic_id=0), row(1, logic_id=0))])
def test_a_device_id_nobody_tells_or_two_chips_have_is_refused(chips):
    with pytest.raises(WrongDeviceError, match="npu-smi does not tell which device id a chip has"):
        visible_npus(Smi(*chips, problems=["cut row"]), None)


def test_a_mapping_that_disagrees_and_is_not_whole_is_refused():
    chips = row(6, 0, 3), row(6, 1, 4)
    with pytest.raises(WrongDeviceError, match=r"info -m \{\(6, 0\): 0\}"):
        visible_npus(Smi(*chips, mapping=[(6, 0, 0)]), "0")


def test_device_ids_with_a_gap_prove_nothing_but_where_there_is_one_chip():
    with pytest.raises(WrongDeviceError, match=r"the device ids \[3, 4\].*; not readable: cut row\n.*without a gap"):
        visible_npus(Smi(row(6, 0, 3), row(6, 1, 4), problems=["cut row"]), None)
    (npu,) = visible_npus(Smi(row(6, 0, 3)), None)
    assert (npu.logic_id, npu.device_id) == (3, 0)
    with pytest.raises(WrongDeviceError, match=r"the device ids \[3\]"):
        visible_npus(Smi(row(6, 0, 3), problems=["cut row"]), None)


def test_a_chip_whose_row_cannot_be_read_keeps_its_device_id_and_is_not_healthy():
    smi = Smi(row(24, 0, 1), mapping=[(2144, 0, 0), (24, 0, 1)], problems=["unknown row: | 2144 |"])
    unread, found = visible_npus(smi, None)
    assert (unread.device_id, unread.npu_id, unread.name) == (0, 2144, "310P3")
    assert choose((unread, found), "310P3", None) == (found,)
    with pytest.raises(NoDeviceError, match=r"device 0 .* reports health not readable \(unknown row: \| 2144 \|\)"):
        choose((unread, found), "310P3", (0,))


FOUR = tuple(row(100 + place, 0, place) for place in range(4))


def test_visible_devices_are_renumbered_from_0():
    found = visible_npus(Smi(*FOUR), "1,3")
    assert [(npu.logic_id, npu.device_id) for npu in found] == [(1, 0), (3, 1)]


# The runtime stops reading at a blank, so "1, 3" is the same to it as "1".
@pytest.mark.parametrize(
    "visible", ["", "a", "1,", ",1", "3,1", "1,1", "7", "-1", "0;1", "NPU-7", "²", "1, 3", " 1", "1 ", "01", "0,1,9"]
)
def test_a_renumbering_that_cannot_be_proven_is_refused(visible):
    with pytest.raises(WrongDeviceError, match=f"ASCEND_RT_VISIBLE_DEVICES={visible}: .*\n.*ascending"):
        visible_npus(Smi(*FOUR), visible)


@settings(max_examples=200, deadline=None)
@given(visible=st.one_of(st.text(max_size=12), st.text(alphabet="0123,", max_size=8)))
def test_whatever_is_visible_each_device_id_is_proven_or_refused(visible):
    try:
        found = visible_npus(Smi(*FOUR), visible)
    except WrongDeviceError:
        return
    assert ",".join(str(npu.logic_id) for npu in found) == visible
    assert [npu.device_id for npu in found] == list(range(len(found)))
    assert all(npu.npu_id == 100 + npu.logic_id for npu in found)


# -- choosing ----------------------------------------------------------------------------------------------------------

MIXED = visible_npus(Smi(row(1, 0, 0, "310"), row(2, 0, 1, health="Alarm"), row(3, 0, 2), row(4, 0, 3)), None)


def test_by_default_the_first_healthy_chip_of_the_name_is_taken():
    assert [npu.device_id for npu in choose(MIXED, "310P3", None)] == [2]
    assert [npu.device_id for npu in choose(MIXED, "310", None)] == [0]


def test_the_devices_asked_for_are_taken_in_their_order():
    assert [npu.device_id for npu in choose(MIXED, "310P3", (3, 2))] == [3, 2]


def test_another_chip_is_the_wrong_device():
    with pytest.raises(WrongDeviceError, match=r"device 0 is a 310, not a 310P3\n.*--device-id=N with one of: 0 310"):
        choose(MIXED, "310P3", (2, 0))


@pytest.mark.parametrize("device_ids", [(1,), (2, 1)])
def test_a_chip_that_is_not_healthy_is_refused(device_ids):
    with pytest.raises(NoDeviceError, match=r"device 1 .*reports health Alarm\n  required: health OK"):
        choose(MIXED, "310P3", device_ids)


def test_a_device_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(NoDeviceError, match=r"no device 9: 0 310 \(NPU 1, chip 0\), 1 310P3"):
        choose(MIXED, "310P3", (9,))


def test_a_name_without_a_chip_is_answered_with_the_names_there_are():
    with pytest.raises(NoDeviceError, match="no 310B1 on this host: 0 310 "):
        choose(MIXED, "310B1", None)
    with pytest.raises(NoDeviceError, match="no healthy 310P3: device 1: Alarm"):
        choose(MIXED[:2], "310P3", None)


def test_a_device_survives_json():
    assert Npu.model_validate_json(MIXED[0].model_dump_json()) == MIXED[0]


def test_the_family_of_the_guide_is_any_of_its_chips():
    npus = visible_npus(Smi(row(1, 0, 0, "310"), row(2, 0, 1, "310P3"), row(3, 0, 2, "310B1")), None)
    assert [npu.name for npu in choose(npus, "310P", None)] == ["310P3"]
    assert [npu.name for npu in choose(npus, "310P", (1,))] == ["310P3"]
    for device_id in (0, 2):
        with pytest.raises(WrongDeviceError):
            choose(npus, "310P", (device_id,))
