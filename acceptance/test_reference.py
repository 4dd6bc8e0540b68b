import pytest

from support.measurements import accuracy

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("reference_ap")
def test_the_checkpoint_reaches_its_quoted_ap(run, results, spec, clause):
    run.record_reference()
    clause.judge(accuracy.reference_ap(results.reference.figures, spec.accuracy, *results.images))
