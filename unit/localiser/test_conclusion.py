import math

import pytest

from support.localiser.conclusion import named, suspect_of
from support.localiser.record import BlockError, BlockSearch, HeadError, StageError


def blocks(**wrong):
    titles = ["stem", "neck", *(f"class head P{level} prediction" for level in (3, 4)), *(f"b{i}" for i in range(8))]
    return BlockSearch(
        method="the ONNX",
        images=2,
        errors=tuple(BlockError(block=title, local=wrong.get(title, 1e-6), chained=1e-5) for title in titles),
    )


def uniform(error):
    return BlockSearch(
        method="the ONNX",
        images=2,
        errors=tuple(BlockError(block=f"b{i}", local=error * (1 + i / 10), chained=error) for i in range(9)),
    )


def stages(**errors):
    return tuple(
        StageError(stage=stage, logit_error=error, box_error=0, logit_limit=0.001, box_limit=0.001)
        for stage, error in errors.items()
    )


def heads(*wrong):
    return tuple(
        HeadError(kind=kind, level=level, error=float((kind, level) in wrong), limit=0.1)
        for kind in ("class", "box")
        for level in (3, 4)
    )


ALL = [(kind, level) for kind in ("class", "box") for level in (3, 4)]


def test_a_wrong_block_comes_first_with_the_stage_it_came_in():
    found = suspect_of(stages(raw=0, simplified=2, candidate=2), heads(*ALL), blocks(neck=0.05), None)
    assert found == "stage simplified, neck: wrong by itself (relative error 0.05)"


def test_a_candidate_that_is_the_only_stage_is_not_told_from_others():
    assert suspect_of(stages(candidate=2), heads(*ALL), blocks(neck=0.05), None).startswith("neck: wrong")


def test_the_worst_of_several_wrong_blocks_comes_first():
    assert suspect_of((), (), blocks(stem=0.01, neck=math.inf), None).startswith("neck, stem: wrong by itself")


def test_a_wrong_connection_is_part_of_the_suspicion():
    crossed = BlockError(block="neck", local=0.3, chained=0.3, wiring="reads b2 instead of b1")
    found = BlockSearch(method="the ONNX", images=2, errors=(*blocks().errors, crossed))
    assert suspect_of((), (), found, None).endswith("(relative error 0.3), reads b2 instead of b1")


def test_a_wrong_connection_stands_out_even_if_its_numbers_do_not():
    crossed = BlockError(block="neck", local=0, chained=0, wiring="reads b2 instead of b1")
    assert BlockSearch(method="", images=1, errors=(*blocks().errors, crossed)).standing_out == (crossed,)


def test_an_error_of_all_blocks_is_no_fault_of_one():
    assert suspect_of((), heads(*ALL), uniform(0.02), None).startswith("no single block: half of them are off by more")


def test_a_graph_that_departs_from_the_network_is_the_suspect():
    found = suspect_of((), heads(*ALL), None, None, departure="the graph departs from the network in neck: nothing")
    assert found == "the graph departs from the network in neck: nothing"


def test_right_outputs_point_behind_the_network():
    found = suspect_of(stages(candidate=0), heads(), blocks(), None)
    start = "behind the network, whose outputs on the golden images are right: "
    assert found == f"{start}decoding, categories, geometry; see the worst images"
    edited = blocks().model_copy(update={"pads_undone": 14})
    found = suspect_of((), heads(), edited, None, group="class 'disc'")
    assert found.startswith(f"{start}the edit of 14 Pads, class 'disc', decoding")


def test_wrong_outputs_of_a_right_graph_point_to_what_runs_it():
    assert suspect_of((), heads(*ALL), blocks(), None).startswith("not the graph but what runs it")
    assert suspect_of(stages(candidate=1), (), blocks(), None).startswith("not the graph but what runs it")


def test_a_compiled_model_is_suspected_where_its_onnx_is_right():
    found = suspect_of(stages(candidate=1), heads(*ALL), blocks(), uniform(0.001))
    assert found.startswith("the compilation or the device: every block of the deployed ONNX is right by itself")
    assert found.endswith("also in emulated half precision (largest 0.0018, b8)")


def test_precision_is_suspected_where_a_block_stands_out_in_half_precision_alone():
    found = suspect_of(stages(candidate=1), heads(*ALL), blocks(), blocks(neck=math.inf))
    assert found.startswith("precision: ")
    assert found.endswith("in emulated half precision not neck")


def test_a_right_graph_says_nothing_of_outputs_that_were_not_compared():
    assert "could not be compared" in suspect_of((), (), blocks(), None)


@pytest.mark.parametrize(
    ("wrong", "suspect"),
    [
        (ALL, "before the heads, which differ at every level: input, backbone or BiFPN"),
        (
            [("class", 4), ("box", 4)],
            "what both heads read at P4: the last cell of the BiFPN there, or what only it reads",
        ),
        ([("class", 3), ("class", 4)], "the class head at every level"),
        ([("box", 4)], "the box head at P4"),
        ([("class", 3), ("box", 4)], "the class head at P3 and the box head at P4"),
        ([("class", 3), ("class", 4), ("box", 4)], "the class head at every level and the box head at P4"),
    ],
)
def test_heads_alone_tell_what_they_can(wrong, suspect):
    assert suspect_of((), heads(*wrong), None, None) == suspect
    found = suspect_of(stages(raw=0, modified=1, candidate=1), heads(*wrong), None, None)
    assert found == f"stage modified, {suspect}"


def test_nothing_found_is_said():
    assert suspect_of((), heads(), None, None).startswith("not found")


def test_many_blocks_are_counted():
    errors = [BlockError(block=f"b{place}", local=1, chained=1) for place in range(5)]
    assert named(errors) == "b0, b1, b2, 2 more"
