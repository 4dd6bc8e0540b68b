import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.ascend.npu_smi import (
    NpuSmi,
    explain,
    parse_board,
    parse_info,
    parse_list,
    parse_mapping,
    parse_usages,
)
from support.errors import DeviceBusyError, NoDeviceError, SuiteTimeoutError, ToolError

# In the widths of driver 23.0, with an NPU id that is no device id.
TABLE = """
+--------------------------------------------------------------------------------------------------------+
| npu-smi 23.0.0                                   Version: 23.0.1                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 2144    310P3                 | OK              | NA           52                0     / 0             |
| 0       5                     | 0000:5E:00.0    | 87           19435/ 21527                            |
+===============================+=================+======================================================+
| 2176    310P3                 | Alarm           | 12.8         47                0     / 0             |
| 0       6                     | NA              | 0            NA   / 21527                            |
+===============================+=================+======================================================+
"""
PROCESSES = """
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| 2144    0                     | 41277           | python3                  | 1502                      |
+===============================+=================+======================================================+
| No running processes found in NPU 2176                                                                 |
+===============================+=================+======================================================+
"""
CONTAINER = """
| NPU     Chip                  | Process id      | Process id in container | Process name | Process memory(MB) |
| 2144    0                     | 41277           | 12                      | python3      | 1502               |
"""
HBM = """
| npu-smi 23.0.2.1                 Version: 23.0.2.1                                             |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
| 0     910B2C              | OK            | -           51                0    / 0             |
| 0                         | 0000:5A:00.0  | 0           0    / 0          20701/ 65536         |
"""


def test_every_field_of_a_row_is_read():
    table = parse_info(TABLE)
    assert (table.tool_version, table.driver_version, table.problems) == ("23.0.0", "23.0.1", ())
    first, second = table.chips
    assert (first.npu_id, first.chip_id, first.logic_id, first.name) == (2144, 0, 5, "310P3")
    assert (first.health, first.bus_id, first.aicore, first.temperature) == ("OK", "0000:5E:00.0", 87, 52)
    assert (first.memory_used, first.memory_total, first.power) == (19435, 21527, None)
    assert (second.health, second.bus_id, second.power) == ("Alarm", None, 12.8)
    assert (second.memory_used, second.memory_total) == (None, 21527)


def test_no_table_of_processes_is_not_a_table_without_processes():
    assert parse_info(TABLE).processes is None
    (process,) = parse_info(TABLE + PROCESSES).processes
    assert (process.npu_id, process.chip_id, process.pid, process.name, process.memory) == (
        2144,
        0,
        41277,
        "python3",
        1502,
    )


def test_columns_of_processes_are_found_by_their_header():
    (process,) = parse_info(TABLE + CONTAINER).processes
    assert (process.pid, process.name, process.memory) == (41277, "python3", 1502)


def test_memory_is_that_of_the_hbm_where_there_is_one():
    (chip,) = parse_info(HBM).chips
    assert (chip.memory_used, chip.memory_total, chip.logic_id, chip.power) == (20701, 65536, None, None)


def with_row(place, row):
    lines = TABLE.splitlines()
    lines[place] = row
    return parse_info("\n".join(lines))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| 0       5                     | 0000:5E:00.0    | 87           19435/ 21", "cut row"),
        ("| 0       5       6             | 0000:5E:00.0    | 87           19435/ 21527         |", "ids that cannot"),
        ("| zero    5                     | 0000:5E:00.0    | 87           19435/ 21527         |", "ids that cannot"),
        ("| 0       ٥                     | 0000:5E:00.0    | 87           19435/ 21527         |", "ids that cannot"),
        ("| 0       5                     | somewhere       | 87           19435/ 21527         |", "unknown row"),
        ("| 0       5                     | 0000:5E:00.0    |", "unknown row"),
    ],
)
def test_a_row_that_does_not_tell_its_chip_is_a_problem_and_no_chip(row, problem):
    table = with_row(8, row)
    assert [chip.npu_id for chip in table.chips] == [2176]
    assert any(problem in found for found in table.problems), table.problems


@pytest.mark.parametrize(
    ("rates", "problem"),
    [
        ("870          19435/ 21527", "a rate of 870 %"),
        ("-1           19435/ 21527", "a rate of -1 %"),
        ("8_7          19435/ 21527", "8_7 is no number"),
        ("87           21528/ 21527", "21528 of 21527 MB in use"),
        ("87           19435", "other columns"),
        ("87", "other columns"),
        ("19435/ 21527", "other columns"),
        ("NA19435/ 21527", "other columns"),
        ("87           1 / 2          19435/ 21527", "other columns"),
        ("87           19435/ 21527M", "other columns"),
    ],
)
def test_rates_that_cannot_be_read_are_a_problem_and_unknown(rates, problem):
    table = with_row(8, f"| 0       5                     | 0000:5E:00.0    | {rates} |")
    chip = table.chips[0]
    assert (chip.npu_id, chip.logic_id, chip.aicore, chip.memory_used, chip.memory_total) == (2144, 5, None, None, None)
    assert problem in table.problems[0]


@pytest.mark.parametrize("rates", ["nan   52   0 / 0", "1e1   52   0 / 0", "12.8   5_2   0 / 0", "12.8   52", "52"])
def test_power_and_temperature_that_cannot_be_read_are_unknown(rates):
    table = with_row(7, f"| 2144    310P3                 | OK              | {rates} |")
    assert (table.chips[0].power, table.chips[0].temperature, table.chips[0].aicore) == (None, None, 87)
    assert len(table.problems) == 1


def test_memory_of_a_table_with_hbm_is_not_read_from_a_row_without_it():
    table = parse_info(HBM.replace("20701/ 65536", ""))
    assert table.chips[0].memory_total is None
    assert "other columns" in table.problems[0]


def test_a_chip_without_its_card_and_a_card_without_its_chip_are_problems():
    lines = TABLE.splitlines()
    without_card, without_chip = lines[:7] + lines[8:], lines[:8] + lines[9:]
    assert "chip without its card: 0" in parse_info("\n".join(without_card)).problems[0]
    assert "card without its chip: 2144" in parse_info("\n".join(without_chip)).problems[0]


def test_a_border_parts_a_card_from_the_chip_of_another():
    lines = TABLE.splitlines()
    # Without the chip of the first card and the card of the second chip.
    (problem, other), chips = parse_lost(lines[:8] + lines[9:10] + lines[11:] + ALONE)
    assert (problem[:21], other[:21]) == ("card without its chip", "chip without its card")
    assert [chip.npu_id for chip in chips] == [1]


ALONE = [
    "| 1       310P3                 | OK              | NA           52                0     / 0             |",
    "| 0       7                     | NA              | 0            900  / 21527                            |",
]


def parse_lost(lines):
    table = parse_info("\n".join(lines))
    return table.problems, table.chips


def test_a_chip_that_is_listed_twice_is_not_believed():
    problems, chips = parse_lost([*TABLE.splitlines(), *ALONE, *ALONE])
    assert [chip.npu_id for chip in chips] == [2144, 2176]
    assert problems == ("NPU 1, chip 0 is listed more than once",)


def test_device_ids_in_another_order_than_any_driver_prints_are_not_believed():
    lines = TABLE.splitlines()
    problems, chips = parse_lost(lines[:7] + lines[10:12] + lines[7:9])
    assert problems == ("device ids are not in ascending order: [6, 5]",)
    assert [chip.logic_id for chip in chips] == [None, None]


def test_versions_of_a_cut_title_are_unknown():
    table = parse_info(TABLE.replace("Version: 23.0.1                                       |", "Version: 23."))
    assert (table.tool_version, table.driver_version) == ("", "")
    assert "cut row" in table.problems[0]


@pytest.mark.parametrize(("pid", "memory"), [("4127x", "1502"), ("41277", "1 GB")])
def test_a_process_counts_even_if_its_numbers_cannot_be_read(pid, memory):
    table = parse_info((TABLE + PROCESSES).replace("41277", pid).replace("1502", memory))
    (process,) = table.processes
    assert (process.npu_id, process.pid, process.name, process.memory) == (2144, None, "python3", None)
    assert "is no number" in table.problems[0]


def test_npus_the_table_of_processes_does_not_tell_about_are_a_problem():
    rows = PROCESSES.splitlines()
    told = [line for line in rows if "41277" not in line], rows[:4]
    for lines, npus in zip(told, ([2144], [2144, 2176]), strict=True):
        table = parse_info("\n".join([TABLE, *lines]))
        assert table.processes == ()
        assert table.problems == tuple(f"the table of processes says nothing about NPU {npu}" for npu in npus)


@pytest.mark.parametrize("text", ["", "Segmentation fault", "\n".join(TABLE.splitlines()[:7])])
def test_a_table_without_a_chip_is_refused(text):
    with pytest.raises(ToolError, match=r"npu-smi printed no chip that can be read"):
        parse_info(text)


# -- damaged tables ----------------------------------------------------------------------------------------------------

WHOLE = parse_info(TABLE + PROCESSES)
#: Fields of a chip by the row of the table they are printed in.
IN_CARD_ROW = ("npu_id", "name", "health", "power", "temperature")
IN_CHIP_ROW = ("chip_id", "bus_id", "aicore", "memory_used", "memory_total")


def known(fields, chip, whole=WHOLE):
    """Whether a row of the whole table has these values, or fewer of them."""
    return any(
        all(getattr(chip, field) in (None, getattr(row, field)) for field in fields) for row in whole.chips
    ) and (chip.logic_id is None or chip.logic_id in {row.logic_id for row in whole.chips})


def assert_nothing_invented(text, whole=WHOLE):
    try:
        table = parse_info(text)
    except ToolError:
        return None
    assert table.driver_version in ("", whole.driver_version)
    assert all(known(IN_CARD_ROW, chip, whole) and known(IN_CHIP_ROW, chip, whole) for chip in table.chips)
    assert set(table.processes or ()) <= set(whole.processes or ())
    return table


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, len(TABLE + PROCESSES)))
def test_a_table_cut_anywhere_never_gives_another_number(cut):
    table = assert_nothing_invented((TABLE + PROCESSES)[:cut])
    if table:
        assert set(table.chips) <= set(WHOLE.chips)
        # A table of processes that is not whole does not pass for one without processes.
        assert table.processes in (None, WHOLE.processes) or table.problems


@settings(max_examples=200, deadline=None)
@given(order=st.permutations((TABLE + PROCESSES).splitlines()))
def test_a_table_in_another_order_never_gives_a_number_that_was_not_printed(order):
    assert_nothing_invented("\n".join(order))


@settings(max_examples=100, deadline=None)
@given(blocks=st.permutations([TABLE.splitlines()[7:10], TABLE.splitlines()[10:13]]), header=st.booleans())
def test_chips_in_another_order_keep_their_numbers(blocks, header):
    lines = [*TABLE.splitlines()[: 7 if header else 3], *blocks[0], *blocks[1]]
    table = assert_nothing_invented("\n".join(lines))
    numbers = {chip.model_copy(update={"logic_id": None}) for chip in WHOLE.chips}
    assert {chip.model_copy(update={"logic_id": None}) for chip in table.chips} == numbers


# Much like a row, but none: no health, no bus, and not the columns of a process.
ROW_LIKE = st.text(alphabet="|+-=/. 0123456789AOP", max_size=60).filter(lambda line: line.count("|") not in (3, 5))


@settings(max_examples=200, deadline=None)
@given(
    place=st.integers(0, len((TABLE + PROCESSES).splitlines()) - 1),
    garbage=st.one_of(st.text(max_size=80), ROW_LIKE, ROW_LIKE.map(lambda text: f"| {text} |")),
    instead=st.booleans(),
)
def test_a_line_of_garbage_is_a_problem_and_no_number(place, garbage, instead):
    lines = (TABLE + PROCESSES).splitlines()
    lines[place : place + instead] = [garbage]
    assert_nothing_invented("\n".join(lines))


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(st.text(), ROW_LIKE),
    parse=st.sampled_from((parse_info, parse_mapping, parse_list, parse_board, parse_usages)),
)
def test_garbage_alone_is_refused_by_every_parser(text, parse):
    with pytest.raises(ToolError):
        parse(text)


# -- the other lists ---------------------------------------------------------------------------------------------------

MAPPING = """
NPU ID                         Chip ID                        Chip Logic ID                  Chip Name
6                              0                              0                              MiniD
6                              1                              1                              Ascend 310P3
6                              4                              -                              Mcu
"""
USAGES = """
\tNPU ID                         : 1
\tChip Count                     : 2

\tDDR Capacity(MB)               : 44280
\tAicore Usage Rate(%)           : 7
\tChip ID                        : 0

\tDDR Capacity(MB)               : 43693
\tAicore Usage Rate(%)           : 0
\tChip ID                        : 1
"""


def test_a_management_chip_has_no_device_id():
    assert [(row.chip_id, row.logic_id, row.name) for row in parse_mapping(MAPPING)] == [
        (0, 0, "MiniD"),
        (1, 1, "Ascend 310P3"),
        (4, None, "Mcu"),
    ]


def test_the_chip_id_ends_a_block_of_usages():
    first, second = parse_usages(USAGES)
    assert (first.chip_id, first.values["Aicore Usage Rate(%)"], first.values["DDR Capacity(MB)"]) == (0, 7, 44280)
    assert (second.chip_id, second.values["DDR Capacity(MB)"]) == (1, 43693)


# Where the id starts the block, and a management chip has none.
COMMON = """
\tNPU ID                         : 1
\tChip Count                     : 2

\tChip ID                        : 0
\tAicore Usage Rate(%)           : 7

\tChip ID                        : 1
\tAicore Usage Rate(%)           : 9

\tChip Name                      : mcu
\tTemperature(C)                 : 48
"""


def test_the_chip_id_may_also_start_a_block():
    assert [(usage.chip_id, usage.values) for usage in parse_usages(COMMON)] == [
        (0, {"Aicore Usage Rate(%)": 7}),
        (1, {"Aicore Usage Rate(%)": 9}),
    ]


def test_rates_that_are_no_rates_are_left_out():
    text = USAGES.replace(" : 7", " : 700").replace("44280", "NA")
    assert parse_usages(text)[0].values == {}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("".join(f"{line}\n" for line in USAGES.splitlines() if line), id="without blank lines"),
        pytest.param(USAGES.replace("Aicore Usage Rate(%)", "DDR Capacity(MB)    "), id="a value twice"),
    ],
)
def test_usages_that_may_be_of_another_chip_are_refused(text):
    with pytest.raises(ToolError, match=r"-t usages printed .*\n  required: each value of a chip once"):
        parse_usages(text)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, len(USAGES)), text=st.sampled_from((USAGES, COMMON)))
def test_usages_cut_anywhere_never_give_another_number(cut, text):
    whole = {(usage.chip_id, *value) for usage in parse_usages(text) for value in usage.values.items()}
    try:
        found = parse_usages(text[:cut])
    except ToolError:
        return
    assert {(usage.chip_id, *value) for usage in found for value in usage.values.items()} <= whole


def test_values_of_a_board_are_split_at_the_first_colon():
    board = parse_board("\tNPU ID                         : 1\n\tPCIe Bus Info                  : 0000:81:00.0\n")
    assert board == {"NPU ID": "1", "PCIe Bus Info": "0000:81:00.0"}


def test_a_value_that_may_be_cut_is_left_out_and_one_that_is_there_twice_is_refused():
    assert parse_board("\tNPU ID                         : 1\n\tSerial Number                  : 033GW") == {
        "NPU ID": "1"
    }
    with pytest.raises(ToolError, match="each key once"):
        parse_board("\tNPU ID                         : 1\n" * 2)


CARDS = """
\tTotal Count                    : 2

\tNPU ID                         : 24
\tChip Count                     : 1

\tNPU ID                         : 32768
\tChip Count                     : 1
"""


def test_cards_are_listed_by_npu_id():
    assert [card["NPU ID"] for card in parse_list(CARDS)] == ["24", "32768"]
    assert [card["NPU ID"] for card in parse_list(CARDS.replace("Total", "Card"))] == ["24", "32768"]


@pytest.mark.parametrize(
    "text", [CARDS.replace(": 2\n", ": 3\n"), CARDS[: CARDS.index("\tNPU ID")], "".join(CARDS.split("\n\n", 1)[1:])]
)
def test_a_list_of_fewer_or_more_cards_than_it_counts_is_refused(text):
    with pytest.raises(ToolError, match=r"-l printed .*\n  required: a count of cards, and as many"):
        parse_list(text)


def test_a_chip_that_is_mapped_twice_is_refused():
    with pytest.raises(ToolError, match="of every chip, once"):
        parse_mapping(MAPPING + MAPPING.splitlines()[2])


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, len(MAPPING)))
def test_a_mapping_cut_anywhere_never_gives_another_id(cut):
    try:
        found = parse_mapping(MAPPING[:cut])
    except ToolError:
        return
    ids = {(row.npu_id, row.chip_id, row.logic_id) for row in parse_mapping(MAPPING)}
    assert {(row.npu_id, row.chip_id, row.logic_id) for row in found} <= ids


@pytest.mark.parametrize("parse", [parse_mapping, parse_usages, parse_board, parse_list])
def test_another_output_is_refused(parse):
    with pytest.raises(ToolError, match=r"printed 'Command or option is not found.'\n.*\n.*by hand"):
        parse("Command or option is not found.")


# -- published captures ------------------------------------------------------------------------------------------------

PARSER_OF = {
    "info": parse_info,
    "constructed-info": parse_info,
    "rows": parse_info,
    "l": parse_list,
    "m": parse_mapping,
    "t-board": parse_board,
    "t-usages": parse_usages,
    "t-common": parse_usages,
}


@pytest.fixture
def parsed(captures):
    found = {}
    for name, text in captures.items():
        kind = re.match("constructed-info|t-[a-z]+|[a-z]+", name)[0]
        found[name] = PARSER_OF[kind](text)
    return found


@pytest.fixture
def tables(parsed):
    return {name: found for name, found in parsed.items() if hasattr(found, "chips")}


def test_every_capture_is_read(captures, parsed):
    assert len(parsed) == len(captures) >= 39
    assert all(parsed.values())


def test_every_published_table_is_read_without_a_problem(tables):
    assert len(tables) >= 20
    assert {name: table.problems for name, table in tables.items() if table.problems} == {
        # Published without the end of its table of processes.
        "info-910B2C-v23.0.2.1-process.txt": ("the table of processes says nothing about NPU 1",)
    }
    assert {name: len(table.chips) for name, table in tables.items() if len(table.chips) > 2} == {
        "info-310-v20.2.0-4chip.txt": 4,
        "info-310-v21.0.4-4chip.txt": 4,
        "info-310P3-v24.1.0.1-8npu.txt": 8,
        "info-310P3-v25.5.1-duo-2npu.txt": 4,
        "info-910-A3-v25.2.0-process.txt": 4,
        "info-910-v24.1.RC2-processes-warning.txt": 8,
        "info-910A-v22.0.3.1-8npu.txt": 8,
    }
    assert all(chip.memory_total > 0 and chip.aicore is not None for table in tables.values() for chip in table.chips)


def test_published_tables_tell_what_is_printed_there(tables):
    first = {name: table.chips[0] for name, table in tables.items()}
    duo = first["info-310P3-v25.5.1-duo-2npu.txt"]
    assert (duo.npu_id, duo.logic_id, duo.name, duo.memory_used, duo.memory_total) == (1, 0, "310P3", 1448, 44278)
    assert (first["info-310B1-v23.0.rc3.txt"].bus_id, first["info-310B1-v23.0.rc3.txt"].power) == (None, 9.0)
    assert first["info-310B4-v23.0.0-alarm.txt"].health == "Alarm"
    assert first["info-310P3-v22.0.2-npu2144.txt"].npu_id == 2144
    assert [chip.npu_id for chip in tables["info-310P3-v24.1.0.1-8npu.txt"].chips][-1] == 32896
    assert first["info-910A-v22.0.3.1-8npu.txt"].memory_total == 32768
    assert first["rows-310P3-v25.2.1-memory-in-use.txt"].memory_used == 19435
    no_table = {name for name, table in tables.items() if table.processes is None}
    assert {"info-310P3-v22.0.0-1npu.txt", "info-310B1-v23.0.rc3.txt"} <= no_table
    assert tables["info-310P3-v23.0.0-no-process.txt"].processes == ()
    assert len(tables["info-910-v24.1.RC2-processes-warning.txt"].processes) == 32
    (busy,) = tables["constructed-info-310P3-busy-process.txt"].processes
    assert (busy.pid, busy.name, busy.memory) == (41277, "python3", 1502)


def test_published_lists_tell_what_is_printed_there(parsed):
    assert [row.logic_id for row in parsed["m-310P-duo-mcu.txt"]] == [0, 1, None, 2, 3, None, 4, 5, None, 6, 7, None]
    assert parsed["t-board-310.txt"]["Software Version"] == "22.0.4"
    assert parsed["t-board-i-c-310P.txt"]["PCIe Bus Info"] == "0000:81:00.0"
    assert [usage.values["DDR Capacity(MB)"] for usage in parsed["t-usages-310P-duo.txt"]] == [44280, 43693]
    assert [usage.values["Temperature(C)"] for usage in parsed["t-common-310P-duo.txt"]] == [60, 59]
    assert [card["Serial Number"] for card in parsed["l-310.txt"]] == ["033GWL10LB000840"]


def test_every_line_of_a_published_table_may_be_lost_or_cut_without_a_wrong_number(captures, tables):
    for name, whole in tables.items():
        lines = captures[name].splitlines()
        for place, line in enumerate(lines):
            for rest in ([], [line[: len(line) // 2]], [line[:-3]]):
                assert_nothing_invented("\n".join(lines[:place] + rest + lines[place + 1 :]), whole)


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "kind", "cause", "remedy"),
    [
        (
            187,
            "dcmi module initialize failed. ret is -8005",
            NoDeviceError,
            "not installed, or .* permission",
            "HwHiAi",
        ),
        (187, "", NoDeviceError, "not installed, or .* permission", "HwHiAi"),
        (187, "Failed to execute npu-smi info.", NoDeviceError, "not installed, or .* permission", "HwHiAi"),
        (
            172,
            "dcmi model initialized failed, because the device is used. ret is -8020",
            DeviceBusyError,
            "container has taken",
            "inside that container",
        ),
        (172, "", DeviceBusyError, "container has taken", "inside that container"),
        (1, "Command or option is not found.", ToolError, "does not know the query", "too old"),
        (191, "Failed to execute npu-smi info. ret is -8001.", ToolError, "refuses the parameters", "npu-smi -v"),
        (190, "Failed to execute npu-smi info. ret is -8002.", ToolError, "not permitted", "HwHiAiUser"),
        (190, "", ToolError, "not permitted", "HwHiAiUser"),
        (185, "Failed to execute npu-smi info. ret is -8007.", NoDeviceError, "no device of this id", "info -l"),
        (184, "Failed to execute npu-smi info. ret is -8008.", NoDeviceError, "is not there", "reset the device"),
        (193, "Failed to execute npu-smi info. ret is -8255.", ToolError, "not support the query", "update"),
        (193, "", ToolError, "not support the query", "update"),
        # The code that is printed counts, not its last byte.
        (187, "Failed to execute npu-smi info. ret is -9029.", ToolError, "the driver failed", "dmesg"),
        (0, "There is no NPU card on this server.", NoDeviceError, "no card", "plugged in"),
        (
            127,
            "npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object file",
            ToolError,
            "libraries of the driver",
            "LD_LIBRARY_PATH",
        ),
        (139, "", ToolError, "unknown cause", "by hand"),
        (-11, "", ToolError, "signal 11", "by hand"),
    ],
)
def test_every_failure_names_cause_and_remedy(status, output, kind, cause, remedy):
    error = explain(status, output)
    assert type(error) is kind
    assert re.search(cause, error.found), error.found
    assert (output or "nothing printed") in error.found
    assert f"ended with {status}" in error.found or status < 0
    assert remedy in error.remedy


@pytest.mark.parametrize("output", ["ret is -8005", "There is no NPU card on this server."])
def test_a_failure_is_one_even_if_the_tool_ends_well(tools, output):
    with pytest.raises(NoDeviceError, match=output):
        NpuSmi(tools(npu_smi=f"print({output!r})"), timeout=30).info()


def test_a_tool_that_fails_hangs_or_is_missing(tools):
    with pytest.raises(NoDeviceError, match="-8005"):
        NpuSmi(tools(npu_smi="print('ret is -8005'); raise SystemExit(187)"), timeout=30).info()
    with pytest.raises(SuiteTimeoutError, match=r"npu-smi had not ended after 0\.2 s"):
        NpuSmi(tools(npu_smi="import time; time.sleep(30)"), timeout=0.2).info()
    (tools().tool("npu-smi")).unlink()
    with pytest.raises(ToolError, match=r"npu-smi is not on PATH\n.*driver"):
        NpuSmi(tools(), timeout=1).info()


def test_each_query_has_the_arguments_of_the_tool(tools):
    smi = NpuSmi(tools(npu_smi="import sys; print('NPU ID :', *sys.argv[1:])"), timeout=30)
    assert smi.board(24) == {"NPU ID": "info -t board -i 24"}
    with pytest.raises(ToolError, match="NPU ID : info -m"):
        smi.mapping()
    with pytest.raises(ToolError, match="NPU ID : info -t usages -i 24"):
        smi.usages(24)


ONE_AT_A_TIME = """
import os, sys, time
try:
    os.mkdir(sys.argv[0] + ".running")
except FileExistsError:
    sys.exit("two at once")
time.sleep(0.1)
os.rmdir(sys.argv[0] + ".running")
print("NPU ID : 1")
"""


def test_calls_are_one_after_the_other(tools):
    smi = NpuSmi(tools(npu_smi=ONE_AT_A_TIME), timeout=30)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(smi.board, range(4))) == [{"NPU ID": "1"}] * 4
