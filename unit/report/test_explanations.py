import pytest

from support.report.explanations import explanations
from support.verdict import REASONS, ClauseVerdict, Reading, release_verdict


def reading(value, name="ap", limit=33.264):
    margin = value - limit
    return Reading(
        name=name, value=value, unit="AP points", direction="min", limit=limit, margin=margin, inside=margin >= 0
    )


def verdict(word="rejected", batch=4, clause="accuracy_guide_drop", **more):
    return ClauseVerdict(clause=clause, word=word, batch=batch, **{"count": 133, "expected": 133, **more})


def explained(*clauses):
    required = [(clause.clause, clause.batch) for clause in clauses]
    return explanations(release_verdict(clauses, required, scope="gate", subject="d0 on cpu"))


def test_what_is_accepted_needs_no_explanation():
    assert explained(verdict("accepted", readings=(reading(34),))) == ()


def test_a_clause_is_explained_once_for_all_its_batch_sizes():
    red = [verdict(batch=batch, readings=(reading(value),)) for batch, value in ((1, 33.0), (4, 32.0))]
    (found,) = explained(*red, verdict("accepted", batch=8, readings=(reading(34),)))
    assert (found.state, found.heading) == ("rejected", "accuracy_guide_drop at batch size 1, 4")
    assert found.points == (
        "batch 1: ap 33 AP points, required ≥ 33.26, margin -0.264, 133 of 133",
        "batch 4: ap 32 AP points, required ≥ 33.26, margin -1.26, 133 of 133",
    )


def test_findings_and_suspect_are_those_of_the_worst_batch_size():
    red = [
        verdict(batch=batch, readings=(reading(value),), findings=(f"of {batch}",), suspect=f"batch {batch}")
        for batch, value in ((1, 33.0), (4, 32.0), (8, 33.1))
    ]
    (found,) = explained(*red)
    assert (found.findings, found.suspect) == (("of 4",), "batch 4")


def test_readings_inside_their_limits_explain_nothing():
    (found,) = explained(verdict(readings=(reading(34, "good"), reading(30, "bad"))))
    assert len(found.points) == 1
    assert found.points[0].startswith("batch 4: bad")


def test_a_violated_contract_has_its_findings():
    (found,) = explained(verdict(clause="graph_contract", findings=("opset 18",), suspect="the exporter"))
    assert (found.points, found.findings, found.suspect) == ((), ("opset 18",), "the exporter")


def test_rejections_come_first_and_findings_last():
    clauses = [
        verdict("undetermined", 1, reason="no-device"),
        verdict("rejected", 4, "coverage", readings=(reading(3, "missing"),)),
        verdict("accepted", 8, "accuracy_measured_drop", readings=(reading(34),), informative=True),
    ]
    assert [item.state for item in explained(*clauses)] == ["rejected", "undetermined", "finding"]


@pytest.mark.parametrize("reason", REASONS)
def test_a_cause_is_told_once_with_its_advice(reason):
    lost = [verdict("undetermined", batch, reason=reason, findings=("no such file",)) for batch in (1, 4)]
    (found,) = explained(*lost, verdict("undetermined", 4, "coverage", reason=reason, findings=("no such file",)))
    assert found.heading == reason
    assert found.points == ("coverage at batch size 4", "accuracy_guide_drop at batch size 1, 4")
    assert (found.findings, found.suspect) == (("no such file",), REASONS[reason])


def test_different_causes_of_one_reason_are_told_apart():
    lost = [verdict("undetermined", batch, reason="tool-error", findings=(f"error {batch}",)) for batch in (1, 4)]
    assert [item.findings for item in explained(*lost)] == [("error 1",), ("error 4",)]


def test_findings_of_a_measured_clause_are_no_cause_of_its_being_partial():
    lost = verdict("undetermined", reason="partial", readings=(reading(30),), findings=("largest",), count=8)
    (found,) = explained(lost)
    assert found.findings == ()


def test_only_the_first_findings_are_told():
    (found,) = explained(verdict(findings=tuple(map(str, range(9)))))
    assert found.findings == ("0", "1", "2", "3", "4")
