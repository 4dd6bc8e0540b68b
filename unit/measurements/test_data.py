import builtins
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.artifacts import ArtifactStore
from support.clauses import CATALOGUE
from support.dataset import open_dataset
from support.errors import NoReferenceError, WrongDataError
from support.feed import Feed, build_feed
from support.inputs import InputFormat
from support.measurements.data import coverage, dataset_pins, different_from_effdet, different_from_reference
from support.progress import SilentProgress
from support.spec import load_spec
from support.verdict import judge

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "fixtures/data/shapes"
SHARED = ROOT.parent / "shared"
SPEC = load_spec("shapes_d0")
FORMAT = InputFormat.from_model(SPEC.model)
needs_coco_subset = pytest.mark.skipif(
    not (SHARED / "data/coco-subset").is_dir(),
    reason="needs the COCO subset beside the checkout: shared/data/coco-subset",
)


@pytest.fixture(scope="module")
def kit():
    return open_dataset(KIT, SPEC.dataset)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ArtifactStore(tmp_path_factory.mktemp("store"), lock_seconds=60)


@pytest.fixture(scope="module")
def feed(kit, store):
    return build_feed(store, kit, FORMAT, SilentProgress())


class Altered(Feed):
    """A feed that gives some tensors with one bit or value changed."""

    def tensors(self, indices, *, out=None):
        tensors = super().tensors(indices, out=out)
        for place, index in enumerate(indices):
            if index == 3:
                tensors[place, 0, 0, 0] += 0.5
            if index == 4:
                tensors[place].view(np.uint32)[2, 511, 511] ^= 1
        return tensors


def word(name, measurement):
    return judge(name, SPEC.clauses[name], measurement).word


def test_the_kit_is_the_set_its_spec_pins(kit):
    measured = dataset_pins(kit, SPEC.dataset)
    assert (measured.values, measured.count, measured.expected) == ({"images": 133}, 133, 133)
    assert measured.origin == {"annotation_digest": kit.annotation_digest, "size_digest": kit.size_digest}
    assert word("dataset_pins", measured) == "accepted"


def test_digests_without_a_pin_are_shown_to_be_recorded(kit):
    unpinned = SPEC.dataset.model_copy(update={"annotation_digest": None, "size_digest": None})
    assert dataset_pins(kit, unpinned).findings == (
        f"annotation_digest {kit.annotation_digest} (not pinned)",
        f"size_digest {kit.size_digest} (not pinned)",
    )
    pinned = unpinned.model_copy(update=dict(dataset_pins(kit, unpinned).origin))
    assert dataset_pins(kit, pinned).findings == ()


@pytest.mark.parametrize(
    ("key", "pinned", "found"),
    [("image_count", 134, "133"), ("image_count", 132, "133"), ("category_count", 80, "10")]
    + [(key, "0" * 64, "[0-9a-f]{64}") for key in ("annotation_digest", "size_digest")],
)
def test_a_pin_that_does_not_hold_is_named_with_both_values(kit, key, pinned, found):
    layout = SPEC.dataset.model_copy(update={key: pinned})
    with pytest.raises(WrongDataError, match=rf"json: {key} is {found}\n  required: {pinned} \(dataset\.{key}"):
        dataset_pins(kit, layout)


def test_one_annotation_of_the_kit_moved_by_a_pixel_is_another_data_set(tmp_path):
    shutil.copytree(KIT / "val2017", tmp_path / "val2017")
    (tmp_path / "annotations").mkdir()
    truth = json.loads((KIT / SPEC.dataset.annotations).read_text(encoding="utf-8"))
    truth["annotations"][0]["bbox"][0] += 1
    (tmp_path / SPEC.dataset.annotations).write_text(json.dumps(truth), encoding="utf-8")

    with pytest.raises(WrongDataError, match="annotation_digest is"):
        dataset_pins(open_dataset(tmp_path, SPEC.dataset), SPEC.dataset)


def test_a_limited_set_is_not_the_pinned_one(kit):
    with pytest.raises(WrongDataError, match="image_count is 5"):
        dataset_pins(kit.limited(5), SPEC.dataset)


def test_every_kit_input_is_bit_equal_to_effdets_own(kit, feed):
    pytest.importorskip("effdet")
    measured = different_from_effdet(kit, feed, SilentProgress())
    assert (measured.values, measured.count, measured.expected) == ({"different_tensors": 0}, 133, 133)
    assert measured.findings == ()
    assert word("input_contract", measured) == "accepted"


@needs_coco_subset
def test_every_input_of_the_coco_subset_is_bit_equal_to_effdets_own(store):
    pytest.importorskip("effdet")
    dataset = open_dataset(SHARED / "data/coco-subset", load_spec("efficientdet_d0").dataset)
    measured = different_from_effdet(dataset, build_feed(store, dataset, FORMAT, SilentProgress()), SilentProgress())
    assert (measured.values, measured.count, measured.findings) == ({"different_tensors": 0}, 206, ())


@pytest.fixture(scope="module")
def small(kit, store):
    return build_feed(store, kit.limited(8), FORMAT, SilentProgress())


@pytest.mark.parametrize(("change", "found"), [("another", "has changed since this run began"), ("gone", "cannot be")])
def test_an_image_that_changed_after_it_was_decoded_is_no_fault_of_the_loader(kit, store, tmp_path, change, found):
    pytest.importorskip("effdet")
    images = tuple(replace(image, path=Path(shutil.copy(image.path, tmp_path))) for image in kit.images[:2])
    changing = replace(kit.limited(2), images=images)
    feed = build_feed(store, changing, FORMAT, SilentProgress())
    images[1].path.unlink()
    if change == "another":
        shutil.copy(kit.images[2].path, images[1].path)
    with pytest.raises(WrongDataError, match=rf"{images[1].path.name} {found}"):
        different_from_effdet(changing, feed, SilentProgress())


def test_inputs_that_differ_in_a_bit_are_counted_and_named_worst_first(kit, small):
    pytest.importorskip("effdet")
    altered = Altered(*(getattr(small, name) for name in Feed.__dataclass_fields__))
    measured = different_from_effdet(kit.limited(8), altered, SilentProgress())
    assert measured.values == {"different_tensors": 2}
    assert measured.findings[0] == f"image id {kit.images[3].id}: largest difference 0.5"
    assert measured.findings[1] == f"image id {kit.images[4].id}: largest difference 9.31323e-10"
    assert word("input_contract", measured) == "rejected"


def test_a_limited_feed_is_a_partial_comparison_with_effdet(kit, small):
    pytest.importorskip("effdet")
    measured = different_from_effdet(kit, small, SilentProgress())
    assert (measured.count, measured.expected) == (8, 133)
    assert word("input_contract", measured) == "undetermined"


def test_a_feed_of_other_images_is_not_compared(kit, small):
    with pytest.raises(WrongDataError, match="the feed is not that of the data set"):
        different_from_effdet(kit.limited(7), small, SilentProgress())


def test_without_effdet_there_is_nothing_to_compare_with(kit, small, monkeypatch):
    real = builtins.__import__

    def without_effdet(name, *rest):
        if name.startswith("effdet"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_effdet)
    with pytest.raises(NoReferenceError, match=r"effdet's loader is not here: No module(?s:.)*--reference=DIR"):
        different_from_effdet(kit, small, SilentProgress())


def checksums(feed):
    return dict(zip(feed.image_ids.tolist(), feed.checksums.tolist(), strict=True))


def test_inputs_with_the_references_checksums_are_accepted(feed):
    measured = different_from_reference(feed, checksums(feed))
    assert (measured.values, measured.count, measured.expected) == ({"different_tensors": 0}, 133, 133)
    assert word("input_contract", measured) == "accepted"


def test_other_checksums_than_the_references_are_rejected_and_named(feed):
    changed = {key: value ^ 1 for key, value in checksums(feed).items()}
    measured = different_from_reference(feed, changed)
    first = int(feed.image_ids[0])
    assert measured.values == {"different_tensors": 133}
    assert len(measured.findings) == 5
    found, required = int(feed.checksums[0]), changed[first]
    assert measured.findings[0] == f"image id {first}: checksum {found:08x}, in the reference {required:08x}"
    assert word("input_contract", measured) == "rejected"


@pytest.mark.parametrize(("of_feed", "of_reference"), [(8, 133), (133, 8)])
def test_images_that_only_one_side_has_make_the_comparison_partial(feed, small, of_feed, of_reference):
    feeds = {8: small, 133: feed}
    measured = different_from_reference(feeds[of_feed], checksums(feeds[of_reference]))
    assert (measured.count, measured.expected) == (8, 133)
    assert word("input_contract", measured) == "undetermined"


@pytest.mark.parametrize("reference", [{}, {-1: 5}])
def test_a_reference_of_other_images_is_wrong_data(small, reference):
    with pytest.raises(WrongDataError, match="the reference has no input of this data set"):
        different_from_reference(small, reference)


def test_every_image_scored_once_is_covered():
    measured = coverage([3, 1, 2], [1, 2, 3], padded_scored=0)
    assert measured.values == {"missing": 0, "surplus": 0, "padded_scored": 0}
    assert (measured.count, measured.expected, measured.findings) == (3, 3, ())
    assert word("coverage", measured) == "accepted"


@pytest.mark.parametrize(
    ("scored", "padded", "values", "finding"),
    [
        ([1, 2], 0, (2, 0, 0), "not scored: 2 image ids: [3, 4]"),
        ([], 0, (4, 0, 0), "not scored: 4 image ids: [1, 2, 3, 4]"),
        ([1, 2, 3, 4, 4, 4], 0, (0, 2, 0), "scored more than once: 1 image ids: [4]"),
        ([1, 2, 3, 4, 9, 9], 0, (0, 2, 0), "scored but not asked for: 1 image ids: [9]"),
        ([1, 2, 3, 3], 0, (1, 1, 0), "not scored: 1 image ids: [4]"),
        ([1, 2, 3, 4], 2, (0, 0, 2), None),
    ],
)
def test_an_image_left_out_or_scored_too_often_is_rejected(scored, padded, values, finding):
    measured = coverage(scored, [1, 2, 3, 4], padded_scored=padded)
    assert tuple(measured.values[key] for key in ("missing", "surplus", "padded_scored")) == values
    assert finding is None or finding in measured.findings
    assert word("coverage", measured) == "rejected"


def test_a_pass_that_was_asked_for_fewer_images_is_partial():
    measured = coverage([1, 2], [1, 2, 3, 4], padded_scored=0, asked=[1, 2])
    assert (measured.count, measured.expected, measured.values["missing"]) == (2, 4, 0)
    assert word("coverage", measured) == "undetermined"


def test_an_image_that_was_not_asked_for_is_surplus():
    assert coverage([1, 2, 3], [1, 2, 3], padded_scored=0, asked=[1, 2]).values["surplus"] == 1


@pytest.mark.parametrize(("expected", "asked"), [([], None), ([1, 2], []), ([1, 2], [3])])
def test_nothing_to_account_for_is_an_error(expected, asked):
    with pytest.raises(WrongDataError, match="images were asked for"):
        coverage([1], expected, padded_scored=0, asked=asked)


def test_every_measurement_has_the_quantities_of_its_clause(kit, feed):
    measured = {
        "dataset_pins": dataset_pins(kit, SPEC.dataset),
        "input_contract": different_from_reference(feed, checksums(feed)),
        "coverage": coverage([1], [1], padded_scored=0),
    }
    for name, measurement in measured.items():
        assert measurement.values.keys() == CATALOGUE[name].quantities.keys()
