import pytest

from support.measurements import agreement

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("batch_invariance")
def test_an_image_gives_the_same_in_every_batch_size_and_slot(run, results, clause, batch):
    clause.judge(
        agreement.batch_invariance(
            results.between_batches(batch),
            run.recheck(batch).slot_error,
            results.images.expected,
            precision=run.precision,
        )
    )
