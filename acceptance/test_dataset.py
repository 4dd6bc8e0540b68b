import pytest

from support import measuring

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("dataset_pins")
def test_the_evaluation_set_is_the_one_of_the_spec(results, clause):
    clause.judge(measuring.dataset_pins(results))
