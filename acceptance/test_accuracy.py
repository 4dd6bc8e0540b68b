import pytest

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("accuracy_guide_floor")
def test_ap_reaches_the_floor_of_the_guide(results, measuring, clause, batch):
    clause.judge(measuring.accuracy_guide_floor(results, batch))


@pytest.mark.clause("accuracy_guide_drop")
def test_ap_loses_no_more_than_the_guide_allows(results, measuring, clause, batch):
    clause.judge(measuring.accuracy_guide_drop(results, batch))


@pytest.mark.clause("accuracy_measured_drop")
def test_ap_loses_no_more_of_the_checkpoints_own_ap(results, measuring, clause, batch):
    clause.judge(measuring.accuracy_measured_drop(results, batch))


@pytest.mark.clause("suspicious_gain")
def test_ap_is_not_better_than_the_checkpoints_own_ap(results, measuring, clause, batch):
    clause.judge(measuring.suspicious_gain(results, batch))


@pytest.mark.clause("class_size_guard")
def test_no_class_size_or_orientation_loses_what_the_average_hides(results, measuring, clause, batch):
    clause.judge(measuring.class_size_guard(results, batch))


@pytest.mark.clause("scorer_agreement")
def test_the_compiled_scorer_agrees_with_pycocotools(results, measuring, clause):
    clause.judge(measuring.scorer_agreement(results))
