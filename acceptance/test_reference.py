import pytest

from support import measuring

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("reference_ap")
def test_the_checkpoint_reaches_its_quoted_ap(run, results, clause):
    run.record_reference()
    clause.judge(measuring.reference_ap(results))
