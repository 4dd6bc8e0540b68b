import pytest

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("coverage")
def test_every_image_is_scored_once_and_nothing_else(results, measuring, clause, batch):
    clause.judge(measuring.coverage(results, batch))
