import dataclasses
from pathlib import Path

import numpy as np
import pytest

from support.agreement import match
from support.artifacts import ArtifactStore
from support.climb import climb
from support.dataset import open_dataset
from support.detections import Decoder, Detections
from support.engine import Plan, run_pass
from support.errors import NoReferenceError, RejectedEarlyError
from support.feed import build_feed
from support.inputs import InputFormat
from support.progress import SilentProgress
from support.rungs import Differences, rung_order
from support.spec import load_spec
from support.verdict import outside

ROOT = Path(__file__).resolve().parents[1]
KIT = load_spec("shapes_d0")
#: As for a full data set: two rungs, here of 16 and 66 images at batch 1.
SPEC = KIT.model_copy(update={"rungs": KIT.rungs.model_copy(update={"share": 0.5})})


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(ROOT / "fixtures/data/shapes", KIT.dataset)


@pytest.fixture(scope="module")
def order(dataset):
    return rung_order(dataset, KIT.model.image_size)


@pytest.fixture(scope="module")
def reference(dataset):
    # The objects, each found twice, with scores all over the scale.
    rows = [row for row in dataset.truth.coco["annotations"] for _ in range(2)]
    rng = np.random.default_rng(1)
    corners = np.array([row["bbox"] for row in rows]) * rng.normal(1, 0.02, (len(rows), 4))
    corners[:, 2:] += corners[:, :2]
    return Detections(
        images=np.array([image.id for image in dataset.images], np.int64),
        image_ids=np.array([row["image_id"] for row in rows], np.int64),
        boxes=corners.astype(np.float32),
        scores=sigmoid(rng.uniform(-3, 3, len(rows))),
        category_ids=np.array([row["category_id"] for row in rows], np.int32),
        anchors=np.zeros(len(rows), np.int32),
    )


def sigmoid(logits):
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def noisy(detections, size, seed=0):
    logits = np.log(detections.scores / (1 - detections.scores))
    noise = np.random.default_rng(seed).normal(0, size, len(logits))
    return dataclasses.replace(detections, scores=sigmoid(logits + noise))


@pytest.fixture
def climbed(order, reference):
    def climbed(candidate, batch=1, spec=SPEC, overflow=None):
        asked = []

        def look(image_ids):
            asked.append(len(image_ids))
            return candidate.select(image_ids)

        try:
            climb(order, batch, spec, candidate=look, reference=reference.select, overflow=overflow)
        except RejectedEarlyError as error:
            return asked, str(error)
        return asked, ""

    return climbed


def test_a_clean_candidate_is_looked_at_in_two_steps_and_let_through(climbed, reference):
    assert climbed(reference) == ([16, 50], "")
    assert climbed(noisy(reference, 0.02)) == ([16, 50], "")


def test_scores_of_another_scale_are_rejected_at_the_first_rung(climbed, reference):
    twice = dataclasses.replace(reference, scores=sigmoid(reference.scores))

    asked, message = climbed(twice, batch=4)

    assert asked == [16]
    assert message.startswith("rejected early at batch 4: 16 of 133 images were enough: different 0.9")
    assert "required: different at most 0.15, ruined_images at most 0, on these images compared" in message
    assert "what to do: sigmoid applied twice; --rungs=off measures all images" in message


def test_an_overflow_is_the_first_suspect_where_one_is_found(climbed, reference):
    asked = []

    def overflow(image_id):
        asked.append(image_id)
        return "overflow: ReduceMeanD"

    _, message = climbed(dataclasses.replace(reference, scores=sigmoid(reference.scores)), overflow=overflow)

    assert "what to do: overflow: ReduceMeanD; --rungs=off" in message
    assert asked[0] in reference.images
    assert climbed(reference, overflow=overflow)[1] == ""
    assert len(asked) == 1


def moved(detections, wrong):
    boxes = detections.boxes.copy()
    boxes[wrong] += 300
    return dataclasses.replace(detections, boxes=boxes)


def test_a_fault_of_portrait_images_alone_is_seen(climbed, dataset, reference):
    portrait = [image.id for image in dataset.images if image.height > image.width]

    asked, message = climbed(moved(reference, np.isin(reference.image_ids, portrait)))

    assert len(portrait) < 45
    assert asked == [16]
    assert "agree in less than half" in message


def test_a_fault_of_small_objects_alone_is_seen(climbed, reference):
    sides = reference.boxes[:, 2:] - reference.boxes[:, :2]

    asked, message = climbed(moved(reference, sides.prod(axis=1) < 32**2))

    assert asked == [16]
    assert "detections lost" in message


def test_a_fault_that_the_first_rung_misses_is_seen_by_the_second(climbed, order, reference):
    asked, message = climbed(moved(reference, np.isin(reference.image_ids, order[16:66])))

    assert asked == [16, 50]
    assert message.startswith("rejected early at batch 1: 66 of 133 images were enough: different 0.")
    assert "required: different at most 0.1, ruined_images at most 0" in message


def test_what_no_rung_sees_is_let_through(climbed, order, reference):
    assert climbed(moved(reference, np.isin(reference.image_ids, order[66:]))) == ([16, 50], "")


def test_without_a_reference_nothing_is_looked_at(order):
    def no_reference(image_ids):
        raise NoReferenceError("no torch, no bundle")

    climb(order, 1, SPEC, candidate=pytest.fail, reference=no_reference)


def test_a_set_without_rungs_asks_for_nothing(order):
    climb(order, 64, KIT, candidate=pytest.fail, reference=pytest.fail)


def rejections(dataset, reference, candidate, draws=2000):
    """How often the rungs reject a candidate, over draws of their images."""
    found = Differences.of(
        match(reference, candidate, SPEC.accuracy, SPEC.model.max_detections), SPEC.accuracy.score_tolerance
    )
    orders = [rung_order(dataset, SPEC.model.image_size, salt=str(draw)) for draw in range(draws)]
    rungs = ((16, SPEC.rungs.first), (66, SPEC.rungs.second))
    return sum(
        any(outside(limits, found.select(order[:size]).values(SPEC.rungs)) for size, limits in rungs)
        for order in orders
    )


def test_no_draw_of_images_rejects_a_clean_candidate(dataset, reference):
    # Half precision changes the kit's logits by up to 0.045; here that is the standard deviation.
    assert rejections(dataset, reference, noisy(reference, 0.045)) == 0


def test_every_draw_of_images_rejects_a_hopeless_candidate(dataset, reference):
    twice = dataclasses.replace(reference, scores=sigmoid(reference.scores))

    assert rejections(dataset, reference, twice, draws=200) == 200


@pytest.mark.nightly
@pytest.mark.needs_torch
def test_no_draw_of_images_rejects_the_network_itself_with_more_noise_than_half_precision_makes(dataset, tmp_path):
    from support.backends.torch_eager import TorchBackend
    from support.checkpoint import build_model, load_checkpoint

    class Noisy(TorchBackend):
        def _run(self, tensor):
            # Half precision changes a class logit of the kit by 0.045 at most.
            heads = super()._run(tensor)
            for name, head in heads.items():
                if head.shape[1] == KIT.model.anchors_per_cell * KIT.model.classes:
                    heads[name] = head + noise.uniform(-0.045, 0.045, head.shape).astype(np.float32)
            return heads

    noise, some = np.random.default_rng(0), dataset.limited(24)
    feed = build_feed(
        ArtifactStore(tmp_path, lock_seconds=60), some, InputFormat.from_model(KIT.model), SilentProgress()
    )
    checkpoint = load_checkpoint(ROOT / KIT.checkpoint.path, KIT.model, KIT.checkpoint)
    network, decoder = build_model(checkpoint, KIT.model), Decoder(KIT.model)
    plan = Plan(range(len(feed)), warm_up_calls=0, golden=0, call_seconds=300, title="", chip="cpu")
    found = []
    for kind in (TorchBackend, Noisy):
        with kind(network, KIT.model, 4) as backend:
            found.append(run_pass(feed, backend, decoder, KIT.model, plan, SilentProgress()).detections)

    assert match(*found, KIT.accuracy, 100).unmatched > 0
    assert rejections(some, *found) == 0
