import pytest

from support.report.scored_run import score_run
from support.scoring import score
from unit.report.conftest import rows_of


def test_details_are_shown_at_the_batch_size_of_lowest_ap(truth, reference):
    worse = rows_of(reference, reference.image_ids != reference.images[0])
    run = score_run(truth, {16: worse, 4: reference, 1: reference}, reference)
    assert list(run.figures) == [1, 4, 16]
    assert run.worst_batch == 16
    assert run.candidate == run.figures[16]
    assert run.figures[4] == run.reference_figures == score(truth, reference, "hotcoco")


def test_of_equal_batch_sizes_the_smallest_is_shown(truth, reference):
    assert score_run(truth, {4: reference, 1: reference}, None).worst_batch == 1


@pytest.mark.parametrize(("category", "name"), [(5, "star"), (90, "category 90")])
def test_categories_have_names_also_where_the_truth_has_none(truth, reference, category, name):
    assert score_run(truth, {1: reference}, None).category(category) == name
