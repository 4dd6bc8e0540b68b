import dataclasses

import numpy as np

from support.report.captions import caption
from support.report.worst import worst_images


def test_boxes_are_named_best_first_and_no_more_than_a_few(truth, reference, spec):
    (worst,) = worst_images(truth, reference, reference, spec, 1)
    count = 12
    many = dataclasses.replace(
        worst.truth,
        image_ids=np.full(count, worst.image_id, np.int64),
        boxes=np.zeros((count, 4), np.float32),
        scores=np.linspace(1, 0.5, count, dtype=np.float32),
        category_ids=np.full(count, 5, np.int32),
        anchors=np.zeros(count, np.int32),
    )
    found = caption(dataclasses.replace(worst, lost=many, difference=9.0), lambda key: f"class {key}")
    assert found.title == f"Image {worst.image_id}, difference 9.00"
    assert found.lines[1].startswith("Lost: class 5 1.00, class 5 0.95, ")
    assert found.lines[1].endswith(" and 4 more")
    assert len(found.lines) == 2


def test_a_very_long_name_is_cut(truth, reference, spec):
    (worst,) = worst_images(truth, reference, reference, spec, 1)
    found = caption(dataclasses.replace(worst, new=worst.truth), lambda key: "x\n" * 500)
    assert len(found.lines[1]) < 60 * len(worst.truth.scores)
    assert "\n" not in found.lines[1]
