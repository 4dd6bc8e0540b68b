import pytest

from support.measurements import data

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.mark.clause("coverage")
def test_every_image_is_scored_once_and_nothing_else(run, clause, batch):
    measured = run.candidate(batch)
    clause.judge(
        data.coverage(
            measured.detections.images.tolist(),
            [image.id for image in run.whole_dataset.images],
            padded_scored=measured.padded_scored,
            asked=[image.id for image in run.dataset.images],
        )
    )
