import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from support.artifacts import file_sha256
from support.dataset import CocoDataset, GroundTruth
from support.detections import Detections
from support.errors import NoReferenceError, UsageError, WrongDataError
from support.heads import Heads, head_shapes
from support.reference import (
    model_digest,
    open_reference,
    publish_reference,
    require_same_world,
    write_reference,
)
from support.spec import load_spec

GUIDE = load_spec("efficientdet_d0")
SMALL = GUIDE.model.model_copy(update={"image_size": 128, "classes": 3})
CHECKPOINT = "c" * 64
DATASET = CocoDataset(Path("coco"), (), GroundTruth({}, ()), annotation_digest="a" * 64, size_digest="5" * 64)
FACTS = {
    "spec_name": "efficientdet_d0",
    "spec_version": "1.0.0",
    "model_digest": model_digest(GUIDE.model),
    "checkpoint_sha256": CHECKPOINT,
    "checkpoint_known_as": "unknown",
    "annotation_digest": DATASET.annotation_digest,
    "size_digest": DATASET.size_digest,
    "input_checksums": {7: 1, 3: 2**32 - 1},
    "golden_ids": (7,),
    "ap": 33.6,
    "runtime": {"torch": "2.14"},
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    heads = [rng.normal(0, 1, shape).astype(np.float32) for shape in head_shapes(SMALL, 1)]
    detections = Detections(
        images=np.array([7, 3], np.int64),
        image_ids=np.array([7], np.int64),
        boxes=np.ones((1, 4), np.float32),
        scores=np.array([0.5], np.float32),
        category_ids=np.array([1], np.int32),
        anchors=np.array([4], np.int32),
    )
    write_reference(tmp_path / "bundle", detections, Heads(tuple(heads[:5]), tuple(heads[5:])), FACTS)
    return tmp_path / "bundle"


def edit(folder, **facts):
    path = folder / "reference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_bundle_is_read_as_it_was_written(folder):
    reference = open_reference(folder)
    facts = reference.facts.model_dump()
    assert {key: facts[key] for key in FACTS} == FACTS
    assert facts["files"] == {name: file_sha256(folder / name) for name in ("detections.npz", "golden.npz")}
    assert reference.detections.images.tolist() == [7, 3]
    assert [head.shape for head in (*reference.golden.classes, *reference.golden.boxes)] == [*head_shapes(SMALL, 1)]


def test_a_bundle_of_images_without_objects_has_no_ap(folder):
    again = folder.with_name("again")
    reference = open_reference(folder)
    write_reference(again, reference.detections, reference.golden, FACTS | {"ap": math.nan})
    assert math.isnan(open_reference(again).facts.ap)


def test_where_nothing_lies_there_is_no_reference(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoReferenceError, match=rf"{re.escape(str(folder))} holds no reference bundle"):
            open_reference(folder)


@pytest.mark.parametrize("name", ["detections.npz", "golden.npz"])
@pytest.mark.parametrize("place", [0, 200, -1])
def test_an_edited_byte_is_noticed_before_the_file_is_read(folder, name, place):
    path = folder / name
    sealed, content = file_sha256(path), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    message = rf"{re.escape(str(path))} is .*{file_sha256(path)}\n  required: sha256 {sealed}"
    with pytest.raises(WrongDataError, match=message):
        open_reference(folder)


@pytest.mark.parametrize("name", ["detections.npz", "golden.npz"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(WrongDataError, match=rf"{re.escape(str(folder / name))} is missing"):
        open_reference(folder)


def test_a_file_without_a_seal_is_not_trusted(folder):
    edit(folder, files={"detections.npz": file_sha256(folder / "detections.npz")})
    with pytest.raises(WrongDataError, match=r"golden\.npz is "):
        open_reference(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"schema_version": 1}'])
def test_malformed_facts_are_named(folder, content):
    (folder / "reference.json").write_bytes(content)
    with pytest.raises(WrongDataError, match=r"reference\.json: not a reference: "):
        open_reference(folder)


@pytest.mark.parametrize(
    "facts", [{"schema_version": 2}, {"comment": "mine"}, {"ap": "high"}, {"ap": None}, {"golden_ids": ["first"]}]
)
def test_facts_of_another_form_are_named_with_their_key(folder, facts):
    edit(folder, **facts)
    with pytest.raises(WrongDataError, match=rf"reference\.json: not a reference: {next(iter(facts))}"):
        open_reference(folder)


# -- the same world ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, None])
def test_a_bundle_of_the_same_model_data_and_checkpoint_is_taken(folder, checkpoint):
    require_same_world(open_reference(folder), GUIDE, DATASET, checkpoint)


def other_spec(**changes):
    return GUIDE.model_copy(update={"model": GUIDE.model.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("spec", "dataset", "checkpoint", "what"),
    [
        (other_spec(image_size=640), DATASET, CHECKPOINT, "model table of the spec"),
        (other_spec(iou_threshold=0.6), DATASET, CHECKPOINT, "model table of the spec"),
        (GUIDE, dataclasses.replace(DATASET, annotation_digest="b" * 64), CHECKPOINT, "annotations"),
        (GUIDE, dataclasses.replace(DATASET, size_digest="b" * 64), CHECKPOINT, "image sizes"),
        (GUIDE, DATASET, "d" * 64, "checkpoint"),
    ],
)
def test_a_bundle_of_another_world_is_refused_and_the_difference_is_named(folder, spec, dataset, checkpoint, what):
    with pytest.raises(
        WrongDataError, match=f"recorded with another {what}: [0-9a-f]{{64}}\n  required: [0-9a-f]{{64}}"
    ):
        require_same_world(open_reference(folder), spec, dataset, checkpoint)


def test_only_the_source_of_the_model_table_may_differ():
    assert model_digest(other_spec(source="elsewhere").model) == model_digest(GUIDE.model)
    for changes in ({"mean": (0.5, 0.5, 0.5)}, {"max_points": 4999}, {"anchor_scale": 3.0}, {"architecture": "d1"}):
        assert model_digest(other_spec(**changes).model) != model_digest(GUIDE.model)


# -- publishing --------------------------------------------------------------------------------------------------------


def test_a_published_bundle_names_the_models_of_its_checkpoint(folder, tmp_path):
    target = tmp_path / "new/place"
    publish_reference(open_reference(folder), target, {"bs1": "1" * 64})
    published = open_reference(target)
    assert published.facts.artifacts == {"bs1": "1" * 64}
    assert published.facts.model_copy(update={"artifacts": {}}) == open_reference(folder).facts
    assert sorted(path.name for path in target.parent.iterdir()) == ["place"]


def test_an_earlier_bundle_is_replaced(folder, tmp_path):
    target = tmp_path / "published"
    for models in ({"bs1": "1" * 64}, {"bs1": "2" * 64}):
        publish_reference(open_reference(folder), target, models)
    assert open_reference(target).facts.artifacts == {"bs1": "2" * 64}


def test_an_empty_folder_is_filled(folder, tmp_path):
    (tmp_path / "published").mkdir()
    publish_reference(open_reference(folder), tmp_path / "published", {})
    open_reference(tmp_path / "published")


@pytest.mark.parametrize("names", [["notes.txt"], [".hidden"], ["reference.json", "shapes_d0.pth"]])
def test_a_folder_with_other_files_is_refused_and_left_alone(folder, tmp_path, names):
    target = tmp_path / "mine"
    target.mkdir()
    for name in names:
        (target / name).write_text("precious")
    with pytest.raises(UsageError, match=rf"--record-reference=.*mine: holds other files: {re.escape(names[-1])}"):
        publish_reference(open_reference(folder), target, {})
    assert sorted(path.name for path in target.iterdir()) == sorted(names)


def test_a_file_is_refused_and_left_alone(folder, tmp_path):
    target = tmp_path / "mine.json"
    target.write_text("precious")
    with pytest.raises(UsageError, match=r"--record-reference=.*mine\.json: not a folder"):
        publish_reference(open_reference(folder), target, {})
    assert target.read_text() == "precious"
