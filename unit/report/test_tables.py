import pytest

from support.evidence.model import LadderRecord
from support.report import tables
from support.report.scored_run import score_run
from support.timing import estimate
from unit.report.conftest import BATCHES, rows_of


def rows_by_name(table):
    return {row[0]: row[1:] for row in table.rows}


@pytest.fixture(scope="module")
def run(truth, reference):
    return score_run(truth, {4: reference, 1: reference}, reference)


def replaced(document, **changes):
    clauses = [
        clause.model_copy(update=changes) if clause.label == "coverage[bs4]" else clause
        for clause in document.release.clauses
    ]
    return document.model_copy(update={"release": document.release.model_copy(update={"clauses": tuple(clauses)})})


def coverage(document):
    return next(group for group in tables.margins(document, BATCHES) if group.clause == "coverage")


# -- margins -----------------------------------------------------------------------------------------------------------


def test_every_limit_of_every_clause_has_its_row(document):
    groups = [*tables.margins(document, BATCHES), *tables.margins(document, [None])]
    found = {(group.clause, row.quantity) for group in groups for row in group.rows}
    assert found == {(clause.clause, item.name) for clause in document.release.clauses for item in clause.readings}
    assert all(cell.state == "accepted" and cell.value for group in groups for row in group.rows for cell in row.cells)


def test_a_clause_of_the_run_has_one_cell_and_one_of_batch_sizes_has_six(document):
    assert {len(row.cells) for group in tables.margins(document, [None]) for row in group.rows} == {1}
    assert {len(row.cells) for group in tables.margins(document, BATCHES) for row in group.rows} == {6}


def test_only_what_is_outside_its_limit_is_red(document):
    readings = next(clause.readings for clause in document.release.clauses if clause.label == "coverage[bs4]")
    outside = readings[0].model_copy(update={"value": 2.0, "margin": -2.0, "inside": False})
    red = replaced(document, word="rejected", readings=(outside, *readings[1:]))
    rows = {row.quantity: row.cells for row in coverage(red).rows}
    assert rows["missing"][1] == tables.MarginCell("rejected", "2", "-2", "")
    assert rows["surplus"][1].state == "accepted"
    assert rows["missing"][0].state == "accepted"


def test_a_cell_that_was_not_measured_tells_why(document):
    lost = replaced(document, word="undetermined", reason="busy-device", readings=())
    assert coverage(lost).rows[0].cells[1] == tables.MarginCell("undetermined", reason="busy-device")


def test_a_measured_cell_that_is_undetermined_tells_why_too(document):
    partial = replaced(document, word="undetermined", reason="partial")
    assert coverage(partial).rows[0].cells[1] == tables.MarginCell("undetermined", "0", "+0", "partial")


def test_a_clause_that_informs_is_a_finding(document):
    assert coverage(replaced(document, informative=True)).rows[0].cells[1].state == "finding"


def test_a_clause_that_was_nowhere_measured_keeps_a_row(document):
    clauses = [
        clause.model_copy(update={"readings": (), "word": "undetermined", "reason": "no-data"})
        for clause in document.release.clauses
        if clause.clause == "coverage"
    ]
    release = document.release.model_copy(update={"clauses": tuple(clauses)})
    (row,) = coverage(document.model_copy(update={"release": release})).rows
    assert row.quantity == "without a number"
    assert {cell.reason for cell in row.cells} == {"no-data"}


# -- the ladder --------------------------------------------------------------------------------------------------------


def test_the_ladder_tells_the_change_of_every_stage():
    record = LadderRecord(
        stages={"checkpoint": 41.0, "raw onnx": 41.0},
        edited={"raw onnx": 41.0, "edited": 40.5},
        compiled={"candidate": 40.9},
        pads_kept=False,
    )
    assert tables.ladder(record).rows == (
        ("checkpoint", "41.0000", "–"),
        ("raw onnx", "41.0000", "+0.0000"),
        ("candidate", "40.9000", "-0.1000"),
        ("raw onnx (graph that keeps its Pads)", "41.0000", "–"),
        ("edited (graph that keeps its Pads)", "40.5000", "-0.5000"),
    )


def test_tensor_errors_are_told_beside_their_limits(document):
    found = tables.tensor_errors(document)
    assert ("stage_tensors[bs8]", "logit_error", "0.0004 logit", "≤ 0.001 logit") in found.rows
    release = document.release.model_copy(update={"clauses": ()})
    assert tables.tensor_errors(document.model_copy(update={"release": release})) is None


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_the_figures_stand_beside_those_of_the_reference(run):
    table = tables.ap_figures(run)
    assert table.head == ("figure", "reference", "batch 1", "batch 4")
    assert len(table.rows) == 12
    assert len(set(rows_by_name(table)["AP"])) == 1


def test_without_a_reference_there_is_no_column_of_it(truth, reference):
    alone = score_run(truth, {4: reference}, None)
    assert tables.ap_figures(alone).head == ("figure", "batch 4")
    assert {row[1] for row in tables.ap_of_classes(alone).rows} == {"–"}


def test_classes_that_lost_most_come_first(truth, reference):
    worse = score_run(truth, {4: rows_of(reference, reference.category_ids != 5)}, reference)
    first, *_ = tables.ap_of_classes(worse).rows
    assert first[0] == "star"
    assert first[2] == "0.000"
    assert first[3] == f"-{first[1]}"


def test_a_class_without_objects_has_no_figure_and_comes_last(truth, reference):
    kept = [row for row in truth.coco["annotations"] if row["category_id"] != 1]
    fewer = type(truth)({**truth.coco, "annotations": kept}, truth.category_ids)
    table = tables.ap_of_classes(score_run(fewer, {4: reference}, reference))
    assert table.rows[-1] == ("disc", "–", "–", "–")


# -- throughput --------------------------------------------------------------------------------------------------------


def baselines_beside(spec, chip):
    return tables.baselines_beside(spec.throughput, spec.baselines, chip)


def test_a_chip_is_seen_beside_310_310p_t4_and_itself(spec):
    assert [table.chip for table in baselines_beside(spec, "cpu")] == ["310", "310P", "T4"]
    assert [table.chip for table in baselines_beside(spec, "310P3")] == ["310", "310P", "T4", "310P3"]
    assert [table.chip for table in baselines_beside(spec, "310P")] == ["310", "310P", "T4"]


def test_the_ratio_to_each_published_figure_is_told(document, spec):
    measured = estimate(document.passes[4].timing, document.spec.throughput)
    beside = baselines_beside(spec, "cpu")
    (row,) = tables.throughput([measured], beside).rows
    assert row[0] == "4"
    ratios = [measured.images_per_second / table.images_per_second[4] for table in beside]
    assert row[-3:] == tuple(f"{ratio:.2f}" for ratio in ratios)


def test_a_batch_size_nobody_published_has_no_ratio(document, spec):
    measured = estimate(document.passes[4].timing, document.spec.throughput)
    bare = [table.model_copy(update={"images_per_second": {1: 5.0}}) for table in baselines_beside(spec, "cpu")]
    assert tables.throughput([measured], bare).rows[0][-3:] == ("–", "–", "–")


@pytest.mark.parametrize(
    ("copies", "like"),
    [
        (True, ["not like for like: timed without copies", "not like for like: random input"]),
        (False, ["yes", "not like for like: timed with copies, random input"]),
        (None, ["yes", "not like for like: random input"]),
    ],
)
def test_what_is_not_like_for_like_is_said(spec, copies, like):
    guide, _, t4 = baselines_beside(spec, "cpu")
    assert [row[1] for row in tables.passports([guide, t4], copies).rows] == like


# -- where it comes from -----------------------------------------------------------------------------------------------


def test_every_limit_has_its_source(spec):
    table = tables.limits(spec)
    assert len(table.rows) == sum(len(clause.limits) for clause in spec.clauses.values())
    assert all(row[4] for row in table.rows)


def test_the_environment_leaves_out_what_is_not_known(document):
    facts = rows_by_name(tables.environment(document))
    assert facts["images"] == ("133 of 133",)
    assert facts["measured"] == ("2026-11-24 12:00:00 to 2026-11-24 12:04:00 UTC",)
    assert not {"driver", "simulated", "serial number"} & facts.keys()
    early = rows_by_name(tables.environment(document.model_copy(update={"dataset": None, "checkpoint": None})))
    assert not {"images", "annotations", "checkpoint"} & early.keys()


@pytest.mark.parametrize(("dirty", "words"), [(True, "not committed"), (None, "state unknown"), (False, "1d336a6c0")])
def test_changes_that_are_not_committed_are_told(document, dirty, words):
    code = document.code.model_copy(update={"dirty": dirty})
    (suite,) = rows_by_name(tables.environment(document.model_copy(update={"code": code})))["suite"]
    assert suite.endswith(words)


def test_artifacts_are_listed_with_their_hashes(document):
    assert len(tables.models(document).rows) == 6
    assert tables.models(document.model_copy(update={"models": ()})) is None


def test_every_row_is_as_long_as_its_head(document, run, spec):
    beside = baselines_beside(spec, "cpu")
    every = [tables.ap_figures(run), tables.ap_of_classes(run), tables.passports(beside, True), tables.limits(spec)]
    every += [tables.environment(document), tables.models(document), tables.tensor_errors(document)]
    for table in every:
        assert {len(row) for row in table.rows} == {len(table.head)}
