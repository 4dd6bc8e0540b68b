import time

import numpy as np
import pytest

from perf.rows import Row
from support.dataset import GroundTruth
from support.detections import Detections
from support.scoring import score

pytestmark = pytest.mark.budget

#: A part of COCO val2017, as dense as it: both scorers take a time that grows with the number of images.
IMAGES, OBJECTS, BEST, CATEGORIES = 200, 7, 100, 80


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    ids = np.arange(1, IMAGES + 1)
    boxes = rng.uniform(10, 300, (IMAGES * OBJECTS, 4))
    labels = rng.integers(1, CATEGORIES + 1, IMAGES * OBJECTS)
    annotations = [
        {
            "id": place + 1,
            "image_id": int(ids[place // OBJECTS]),
            "category_id": int(labels[place]),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for place, box in enumerate(boxes)
    ]
    categories = [{"id": number, "name": str(number)} for number in range(1, CATEGORIES + 1)]
    images = [{"id": int(number), "width": 640, "height": 480} for number in ids]
    truth = GroundTruth({"images": images, "annotations": annotations, "categories": categories}, tuple(range(1, 81)))
    return truth, _found(rng, ids, boxes.reshape(IMAGES, OBJECTS, 4), labels.reshape(IMAGES, OBJECTS))


# Every object once, a little off, and as much beside them as the network is asked for.
def _found(rng, ids, boxes, labels):
    rest = rng.uniform(0, 300, (IMAGES, BEST - OBJECTS, 4))
    corners = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), rest], axis=1).reshape(-1, 4)
    corners[:, 2:] = corners[:, :2] + np.abs(corners[:, 2:]) + 1
    classes = np.concatenate([labels, rng.integers(1, CATEGORIES + 1, (IMAGES, BEST - OBJECTS))], axis=1)
    return Detections(
        images=ids,
        image_ids=np.repeat(ids, BEST),
        boxes=corners.astype(np.float32),
        scores=-np.sort(-rng.random((IMAGES, BEST)), axis=1).reshape(-1).astype(np.float32),
        category_ids=classes.reshape(-1).astype(np.int32),
        anchors=np.zeros(IMAGES * BEST, np.int32),
    )


def test_scoring_keeps_its_budget_against_pycocotools(world, capsys):
    figures, seconds = {}, {}

    def ratio():
        for scorer in ("hotcoco", "pycocotools"):
            start = time.perf_counter()
            figures[scorer] = score(*world, scorer)
            seconds[scorer] = time.perf_counter() - start
        theirs, ours = seconds["pycocotools"], seconds["hotcoco"]
        return theirs / ours, f"pycocotools {theirs:.2f} s, hotcoco {ours:.3f} s for {IMAGES} images"

    Row("scoring", 50, "times as fast as pycocotools", fails=10, at_least=True).judge(capsys, ratio)
    assert figures["hotcoco"].ap == pytest.approx(figures["pycocotools"].ap, abs=1e-9)
