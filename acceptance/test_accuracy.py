import pytest

from support.measurements import accuracy

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("accuracy_guide_floor")
def test_ap_reaches_the_floor_of_the_guide(results, clause, batch):
    clause.judge(accuracy.guide_floor(results.candidate(batch).figures, *results.images))


@pytest.mark.clause("accuracy_guide_drop")
def test_ap_loses_no_more_than_the_guide_allows(results, clause, batch):
    clause.judge(accuracy.guide_drop(results.candidate(batch).figures, *results.images))


@pytest.mark.clause("accuracy_measured_drop")
def test_ap_loses_no_more_of_the_checkpoints_own_ap(results, spec, clause, batch):
    clause.judge(
        accuracy.measured_drop(
            results.candidate(batch).figures,
            results.reference.figures,
            spec.accuracy,
            *results.images,
            interval=results.ap_interval(batch),
        )
    )


@pytest.mark.clause("suspicious_gain")
def test_ap_is_not_better_than_the_checkpoints_own_ap(results, clause, batch):
    clause.judge(accuracy.suspicious_gain(results.candidate(batch).figures, results.reference.figures, *results.images))


@pytest.mark.clause("class_size_guard")
def test_no_class_size_or_orientation_loses_what_the_average_hides(dataset, results, spec, clause, batch):
    clause.judge(
        accuracy.class_size_guard(
            dataset.truth, results.reference, results.candidate(batch), spec.accuracy, results.images.expected
        )
    )


@pytest.mark.clause("scorer_agreement")
def test_the_compiled_scorer_agrees_with_pycocotools(results, clause):
    clause.judge(accuracy.scorer_agreement(*results.both_scorers, *results.images))
