import pytest

from support.measurements import data

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("dataset_pins")
def test_the_evaluation_set_is_the_one_of_the_spec(run, spec, clause):
    clause.judge(data.dataset_pins(run.whole_dataset, spec.dataset))
