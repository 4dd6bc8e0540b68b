import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.detections import COLUMNS, Decoder, Detections
from support.effdet_reference import EffdetDecoder, differences, effdet_heads
from support.errors import ContractViolationError, NoDataError, SuiteError, UsageError, WrongDataError
from support.heads import Heads, head_shapes
from support.spec import load_spec

KIT = Path(__file__).resolve().parents[1] / "fixtures/data/shapes"
D0 = load_spec("shapes_d0").model
SMALL = D0.model_copy(update={"image_size": 128})
IDS = np.array([30, 10, 20])

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:FutureWarning"  # effdet 0.4.1 scripts its functions when it is imported
)


@pytest.fixture(scope="module")
def kit():
    torch = pytest.importorskip("torch")
    pytest.importorskip("effdet")
    torch.set_num_threads(1)
    images = sorted((KIT / "val2017").glob("*.jpg"))[:: 133 // 3][:3]
    return effdet_heads(D0, KIT / "shapes_d0.pth", images)


@pytest.fixture(scope="module")
def kit_truth(kit):
    return EffdetDecoder(D0).decode(kit[0], IDS, *kit[1:])


@pytest.fixture(scope="module")
def kit_detections(kit):
    return Decoder(D0).decode(kit[0], IDS, *kit[1:])


def random_heads(model, batch=1, seed=0, centre=-4.0, spread=1.5, codes=0.7):
    rng = np.random.default_rng(seed)
    shapes = head_shapes(model, batch)
    classes = tuple(rng.normal(centre, spread, shape).astype(np.float32) for shape in shapes[:5])
    return Heads(classes, tuple(rng.normal(0, codes, shape).astype(np.float32) for shape in shapes[5:]))


def geometry(batch=1, scale=1.25, size=(640, 480)):
    return np.arange(batch), np.full(batch, scale), np.tile(np.array(size, np.int32), (batch, 1))


def assert_same(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


# -- the decoder against effdet --------------------------------------------------------------------------------------


def test_kit_images_decode_to_what_effdet_finds(kit_detections, kit_truth):
    assert [image.settled for image in kit_truth] == [True] * 3
    assert not any(image.near_threshold for image in kit_truth)
    assert len(kit_detections.scores) == 300
    assert differences(kit_detections, kit_truth) == []


def test_random_heads_of_full_size_decode_to_what_effdet_finds():
    heads, where = random_heads(D0), geometry()
    (truth,) = EffdetDecoder(D0).decode(heads, *where)
    assert truth.settled
    assert not truth.near_threshold
    assert differences(Decoder(D0).decode(heads, *where), [truth]) == []


LOGITS = {
    "spread": lambda logits: logits,
    "halves, many equal": lambda logits: np.round(logits).astype(np.float32) / 2,
    "two values": lambda logits: np.where(logits > -3, np.float32(1), np.float32(-7)),
    "all equal": lambda logits: np.full_like(logits, -2.5),
    "scores of 1": lambda logits: logits + 40,
    "scores of 0": lambda logits: logits - 300,
    "huge": lambda logits: logits * np.float32(1e30),
    "one class": lambda logits: np.where(np.arange(logits.shape[1])[:, None, None] % 90 == 7, logits, logits - 50),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(LOGITS)),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    codes=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    overflow=st.booleans(),
    points=st.sampled_from([1, 1001, 5000]),  # from 2 to 1000, torchvision shifts classes apart, which rounds
    best=st.sampled_from([1, 100, 300]),
    scale=st.sampled_from([1e-3, 0.37, 1.0, 5.3, 60.0]),
    size=st.sampled_from([(640, 480), (1, 1), (1, 5000), (7000, 3)]),
)
def test_hostile_heads_decode_to_what_effdet_finds(kind, batch, seed, codes, overflow, points, best, scale, size):
    pytest.importorskip("effdet")
    model = SMALL.model_copy(update={"max_points": points, "max_detections": best})
    heads = random_heads(model, batch, seed, codes=codes)
    heads = Heads(tuple(LOGITS[kind](head) + np.float32(0) for head in heads.classes), heads.boxes)
    if overflow:
        for head in heads.boxes:
            head.flat[:: 7 if head.size > 1000 else 3] = 1e3
    where = geometry(batch, scale, size)
    assert differences(Decoder(model).decode(heads, *where), EffdetDecoder(model).decode(heads, *where)) == []


def test_a_network_with_fewer_logits_than_points_gives_what_it_has():
    pytest.importorskip("effdet")
    model = SMALL.model_copy(update={"classes": 1})
    heads, where = random_heads(model), geometry()
    assert sum(head.size for head in heads.classes) < model.max_points
    ours = Decoder(model).decode(heads, *where)
    assert len(ours.scores) == model.max_detections
    assert differences(ours, EffdetDecoder(model).decode(heads, *where)) == []


def test_exactly_as_many_logits_as_points_reach_the_cut():
    pytest.importorskip("effdet")
    model = SMALL.model_copy(update={"max_points": 40})
    heads, where = random_heads(model), geometry()
    for head in heads.classes[:2]:
        head[0, ::41, 0, 0] = np.arange(20) + 9
    ours = Decoder(model).decode(heads, *where)
    assert ours.scores.min() > 0.999
    assert differences(ours, EffdetDecoder(model).decode(heads, *where)) == []


# -- what must be seen as different -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"iou_threshold": 0.55}, {"max_detections": 99}, {"max_points": 150}],
    ids=["overlap", "detections", "points"],
)
def test_a_decoder_with_another_limit_is_found_out(changes):
    pytest.importorskip("effdet")
    heads, where = random_heads(SMALL, spread=0.5, codes=0.1), geometry()
    heads = Heads(tuple(LOGITS["one class"](head) for head in heads.classes), heads.boxes)
    truth = EffdetDecoder(SMALL).decode(heads, *where)
    assert differences(Decoder(SMALL).decode(heads, *where), truth) == []
    assert differences(Decoder(SMALL.model_copy(update=changes)).decode(heads, *where), truth)


def test_heads_of_another_model_are_not_decoded():
    with pytest.raises(ContractViolationError, match=r"the heads are .*810.*\n  required: .*819"):
        Decoder(SMALL.model_copy(update={"classes": 91})).decode(random_heads(SMALL), *geometry())


def shifted(detections):
    return replace(detections, boxes=detections.boxes + np.float32(0.01))


def other_scores(detections):
    return replace(detections, scores=detections.scores * np.float32(1 + 1e-6))


def swapped(detections):
    order = np.arange(len(detections.scores))
    order[[50, 51]] = order[[51, 50]]
    return replace(detections, **{name: getattr(detections, name)[order] for name in list(COLUMNS)[1:]})


def other_classes(detections):
    return replace(detections, category_ids=detections.category_ids - 1)


def lost_box(detections):
    return replace(detections, **{name: getattr(detections, name)[1:] for name in list(COLUMNS)[1:]})


def not_numbers(detections):
    return replace(detections, boxes=np.full_like(detections.boxes, np.nan))


@pytest.mark.parametrize(
    ("corrupt", "text"),
    [
        (shifted, "px apart"),
        (not_numbers, "nan px apart"),
        (other_scores, "units in the last place"),
        (swapped, "other anchors or classes, or in another order|units in the last place"),
        (other_classes, "other anchors or classes"),
        (lost_box, "99 boxes instead of 100"),
        (lambda detections: detections.select([30, 10]), r"images \[30, 10\] instead of \[30, 10, 20\]"),
    ],
)
def test_corrupted_detections_are_told_from_effdets(kit_detections, kit_truth, corrupt, text):
    (first, *_) = differences(corrupt(kit_detections), kit_truth)
    assert re.search(text, first)


def test_comparing_nothing_is_not_equality():
    assert differences(Detections.concatenate([]), []) == ["detections of the images [] instead of []"]


def test_effdet_cannot_be_asked_for_another_iou_threshold():
    with pytest.raises(UsageError, match=r"iou_threshold is 0\.6\n  required: effdet knows 0\.5"):
        EffdetDecoder(D0.model_copy(update={"iou_threshold": 0.6}))


# -- the decoder's own rules ------------------------------------------------------------------------------------------


def test_detections_agree_with_the_kits_published_figures(kit_detections):
    facts = json.loads((KIT / "reference.json").read_text())
    assert len(kit_detections.scores) / 3 == facts["detections"] / facts["images"]


def test_equal_logits_are_taken_in_the_order_of_anchor_and_class():
    heads = random_heads(SMALL, codes=0.0)
    heads = Heads(tuple(np.full_like(head, -3) for head in heads.classes), heads.boxes)
    found = Decoder(SMALL).decode(heads, *geometry())
    flats = found.anchors.astype(np.int64) * SMALL.classes + found.category_ids - 1
    assert np.all(np.diff(flats) > 0)
    assert flats.max() < SMALL.max_points
    assert len(set(found.scores.tolist())) == 1


def test_negative_zero_counts_below_zero():
    model = SMALL.model_copy(update={"max_points": 1})
    heads = random_heads(model)
    heads = Heads(tuple(np.full_like(head, -0.0) for head in heads.classes), heads.boxes)
    heads.classes[4][0, 200, 0, 0] = 0.0
    found = Decoder(model).decode(heads, *geometry())
    assert (found.anchors.tolist(), found.category_ids.tolist()) == ([3060 + 200 // 90], [200 % 90 + 1])


def test_an_image_decodes_alike_in_every_slot_and_in_any_memory_layout(kit, kit_detections):
    heads, scales, sizes = kit
    decoder = Decoder(D0)
    for slot, image_id in enumerate(IDS):
        part = slice(slot, slot + 1)
        assert_same(decoder.decode(heads.rows(part), IDS[part], scales[part], sizes[part]), kit_detections.of(image_id))
    strided = Heads(*(tuple(np.asfortranarray(head) for head in kind) for kind in (heads.classes, heads.boxes)))
    for head in strided.classes:
        head.flags.writeable = False
    assert_same(decoder.decode(strided, IDS, scales, sizes), kit_detections)


def test_threads_may_share_a_decoder(kit, kit_detections):
    decoder = Decoder(D0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: decoder.decode(kit[0], IDS, *kit[1:]), range(8)):
            assert_same(found, kit_detections)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.float32(np.nan)])
@pytest.mark.parametrize("kind", ["class", "box"])
@pytest.mark.parametrize("level", [0, 4])
def test_a_single_value_that_is_not_finite_is_refused_wherever_it_is(value, kind, level):
    heads = random_heads(SMALL, batch=3)
    head = (heads.classes if kind == "class" else heads.boxes)[level]
    head[2].flat[-1] = value
    with pytest.raises(ContractViolationError, match=rf"^{kind} head .*, image slot 2: [01] NaN and [01] infinite of"):
        Decoder(SMALL).decode(heads, *geometry(3))
    Decoder(SMALL).decode(heads.rows(slice(0, 2)), *geometry(2))


def test_the_largest_finite_values_are_not_refused():
    heads, largest = random_heads(SMALL), np.finfo(np.float32).max
    heads.classes[0].flat[:2] = [largest, -largest]
    assert Decoder(SMALL).decode(heads, *geometry()).scores[0] == 1


def test_a_side_that_overflows_is_clipped_to_the_image():
    heads = random_heads(SMALL)
    heads.classes[2][0, 0, 1, 1] = 9
    heads.boxes[2][0, :4, 1, 1] = [0, 0, 1000, 1000]
    assert Decoder(SMALL).decode(heads, *geometry()).boxes[0].tolist() == [0, 0, 640, 480]


def test_a_box_that_is_not_a_number_is_refused():
    heads, largest = random_heads(SMALL), np.finfo(np.float32).max
    heads.classes[2][0, 0, 1, 1] = 9
    heads.boxes[2][0, :4, 1, 1] = [largest, 0, largest, 0]
    with pytest.raises(
        ContractViolationError, match="image 0: 1 of the best 100 boxes are not numbers, the first is det"
    ):
        Decoder(SMALL).decode(heads, *geometry())


@pytest.mark.parametrize(("ids", "scales", "sizes"), [(2, 3, 3), (3, 2, 3), (3, 3, 2), (4, 4, 4)])
def test_unequal_lengths_are_refused(ids, scales, sizes):
    heads = random_heads(SMALL, batch=3)
    with pytest.raises(SuiteError, match=f"heads of 3 images, {ids} ids, {scales} scales and {sizes} sizes"):
        Decoder(SMALL).decode(heads, np.arange(ids), np.ones(scales), np.ones((sizes, 2), np.int32))


# -- the detections of a pass -----------------------------------------------------------------------------------------


@pytest.fixture
def detections():
    return Detections(
        images=np.array([7, 5, 9]),
        image_ids=np.array([7, 7, 9]),
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        scores=np.array([0.9, 0.5, 0.7], np.float32),
        category_ids=np.array([1, 90, 3], np.int32),
        anchors=np.array([4, 5, 6], np.int32),
    )


def test_the_detections_of_one_image_keep_their_order(detections):
    found = detections.of(7)
    assert found.images.tolist() == [7]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert detections.of(5).images.tolist() == [5]
    assert detections.of(5).boxes.shape == (0, 4)


def test_an_image_that_was_not_processed_is_not_an_image_without_detections(detections):
    with pytest.raises(WrongDataError, match="image 8 is not among the 3 images"):
        detections.of(8)
    with pytest.raises(WrongDataError, match="2 images are not among these detections, the first is 6"):
        detections.select([5, 8, 6])


def test_selected_images_stay_in_the_order_of_the_pass(detections):
    found = detections.select([9, 7])
    assert found.images.tolist() == [7, 9]
    assert found.anchors.tolist() == [4, 5, 6]
    assert detections.select([5]).scores.size == 0


def test_parts_join_in_their_order(detections):
    parts = [detections.of(image_id) for image_id in (7, 5, 9)]
    assert_same(Detections.concatenate(parts), detections)
    assert Detections.concatenate([]).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("scores", np.zeros(2, np.float32), r"scores of the detections is float32 \[2\]\n  required: float32 \[3\]"),
        ("boxes", np.zeros((3, 5), np.float32), r"boxes of the detections is float32 \[3, 5\]"),
        ("boxes", np.zeros((3, 4)), r"boxes of the detections is float64"),
        ("images", np.zeros((3, 1), np.int64), r"images of the detections is int64 \[3, 1\]\n  required: int64 \[3\]"),
        ("category_ids", np.zeros(3, np.int64), "category_ids of the detections is int64"),
    ],
)
def test_a_column_of_another_length_or_type_is_refused(detections, column, value, text):
    with pytest.raises(WrongDataError, match=text):
        replace(detections, **{column: value})


def test_saved_detections_load_unchanged(detections, tmp_path):
    path = tmp_path / "pass.npz"
    for each in (detections, Detections.concatenate([])):
        each.save(path)
        assert_same(Detections.load(path), each)
    assert [file.name for file in tmp_path.iterdir()] == ["pass.npz"]


def test_a_failed_save_leaves_the_earlier_file(detections, tmp_path, monkeypatch):
    path = tmp_path / "pass.npz"
    detections.save(path)

    def full(file, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        detections.of(7).save(path)
    monkeypatch.undo()
    assert_same(Detections.load(path), detections)
    assert [file.name for file in tmp_path.iterdir()] == ["pass.npz"]


def test_a_missing_file_is_no_data(tmp_path):
    with pytest.raises(NoDataError, match=r"gone\.npz does not exist"):
        Detections.load(tmp_path / "gone.npz")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"scores.npy") + 150] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def plain_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(path):
    np.savez(path, images=np.array([{}], object))


def other_columns(path):
    np.savez(path, images=np.zeros(3))


def other_type(path):
    columns = dict(np.load(path))
    np.savez(path, **{**columns, "scores": columns["scores"].astype(float)})


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (truncate, "is damaged"),
        (flip, "is damaged"),
        (empty, "is damaged"),
        (plain_array, "is damaged"),
        (pickled, "is damaged"),
        (other_columns, r"holds \['images'\]\n  required: exactly \['anchors', "),
        (other_type, "column scores of the detections is float64"),
    ],
)
def test_a_damaged_file_is_refused_by_name(detections, tmp_path, damage, text):
    path = tmp_path / "pass.npz"
    detections.save(path)
    damage(path)
    with pytest.raises(WrongDataError, match=rf"pass\.npz(: | ){text}"):
        Detections.load(path)
