import pytest

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("batch_invariance")
def test_an_image_gives_the_same_in_every_batch_size_and_slot(results, measuring, clause, batch):
    clause.judge(measuring.batch_invariance(results, batch))
