import pytest

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("dataset_pins")
def test_the_evaluation_set_is_the_one_of_the_spec(results, measuring, clause):
    clause.judge(measuring.dataset_pins(results))
