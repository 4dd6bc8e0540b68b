import pytest

from support.measurements import agreement

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("score_agreement")
def test_scores_agree_with_the_checkpoints(run, results, spec, clause, batch):
    clause.judge(
        agreement.score_agreement(
            results.with_reference(batch),
            spec.accuracy,
            results.images.expected,
            overflow=lambda image_id: run.overflow(run.row_of(image_id)),
        )
    )
