import pytest

from support.evidence.spec_changes import Change, limit_changes, setting_changes
from unit.evidence.bundles import the_spec

OLD = the_spec()
FLOOR = "clauses__accuracy_guide_floor__limits__ap"


def test_a_spec_has_no_changes_against_itself():
    assert limit_changes(OLD, the_spec()) == ()
    assert setting_changes(OLD, the_spec()) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {f"{FLOOR}__value": 40.0},
            "LOOSENED limit accuracy_guide_floor.ap: 41.2 of a value rounded to 1 decimals -> 40",
        ),
        ({f"{FLOOR}__rounding": 0}, "LOOSENED limit accuracy_guide_floor.ap: 41.2 of a value rounded to 1 decimals ->"),
        ({f"{FLOOR}__value": 42.0}, "limit accuracy_guide_floor.ap: 41.2 of a value rounded to 1 decimals -> 42"),
        ({f"{FLOOR}__rounding": None}, "limit accuracy_guide_floor.ap: 41.2 of a value rounded to 1 decimals -> 41.2"),
        (
            {"clauses__accuracy_guide_drop__limits__ap__factor": 0.5},
            "LOOSENED limit accuracy_guide_drop.ap: 40.8107 -> 20.6115",
        ),
        (
            {"clauses__score_agreement__limits__unmatched__value": 0.5},
            "LOOSENED limit score_agreement.unmatched: 0.002 -> 0.5",
        ),
        (
            {"clauses__score_agreement__limits__unmatched__value": 0.001},
            "limit score_agreement.unmatched: 0.002 -> 0.001",
        ),
        ({"clauses__coverage__modes": ["build"]}, "LOOSENED limit coverage.modes: build, onnx, om, results -> build"),
        ({"clauses__coverage__chips": ["310"]}, "LOOSENED limit coverage.chips: all -> 310"),
        ({"clauses__om_contract__chips": []}, "limit om_contract.chips: 310, 310P, 310P3, 310B1 -> all"),
        (
            {"baselines__t4-ort__images_per_second__8": 11.0},
            "LOOSENED limit baselines.t4-ort.batch 8: 12.332 -> 11.0",
        ),
        ({"baselines__t4-ort__images_per_second__8": 13.0}, "limit baselines.t4-ort.batch 8: 12.332 -> 13.0"),
    ],
)
def test_a_changed_limit_is_told_and_a_loosened_one_flagged(changes, told):
    (change,) = limit_changes(OLD, the_spec(**changes))
    assert str(change).startswith(told)


def test_loosened_limits_come_first():
    new = the_spec(**{f"{FLOOR}__value": 42.0, "clauses__score_agreement__limits__unmatched__value": 0.5})
    assert [change.loosened for change in limit_changes(OLD, new)] == [True, False]


def test_another_way_to_measure_is_a_changed_setting():
    new = the_spec(accuracy__score_floor=0.1, batch_sizes=[1, 8, 64], accuracy__source="elsewhere")
    assert setting_changes(OLD, new) == {
        "batch_sizes": Change([1, 8], [1, 8, 64]),
        "accuracy.score_floor": Change(0.05, 0.1),
    }
