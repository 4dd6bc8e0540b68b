import pytest

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("score_agreement")
def test_scores_agree_with_the_checkpoints(results, measuring, clause, batch):
    clause.judge(measuring.score_agreement(results, batch))
