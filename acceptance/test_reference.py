import pytest

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("reference_ap")
def test_the_checkpoint_reaches_its_quoted_ap(run, results, measuring, clause):
    run.record_reference()
    clause.judge(measuring.reference_ap(results))
