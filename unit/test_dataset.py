import json
import random
from pathlib import Path

import pytest

from support.dataset import CocoDataset, open_dataset
from support.errors import NoDataError, UsageError, WrongDataError
from support.spec import load_spec

LAYOUT = load_spec("shapes_d0").dataset
KIT = Path(__file__).resolve().parents[1] / "fixtures/data/shapes"


def content():
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 640, "height": 480, "license": 1},
            {"id": 4, "file_name": "a.jpg", "width": 480, "height": 640},
        ],
        "annotations": [
            {
                "id": 2,
                "image_id": 9,
                "category_id": 3,
                "bbox": [1, 2.5, 30, 40],
                "area": 600.25,
                "iscrowd": 0,
                "segmentation": [[1, 2, 3, 4, 5, 6]],
            },
            {"id": 1, "image_id": 4, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "disc", "supercategory": "shape"}, {"id": 1, "name": "ring"}],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "val2017" / name).write_bytes(b"")
    return tmp_path


def opened(root, found=None) -> CocoDataset:
    text = found if isinstance(found, str) else json.dumps(found or content())
    (root / LAYOUT.annotations).write_text(text)
    return open_dataset(root, LAYOUT)


def test_images_come_in_ascending_order_of_id(root):
    images = opened(root).images
    assert [(image.id, image.file_name, image.width, image.height) for image in images] == [
        (4, "a.jpg", 480, 640),
        (9, "b.jpg", 640, 480),
    ]
    assert images[0].path == root / "val2017" / "a.jpg"


def test_the_truth_keeps_what_scoring_needs_in_the_files_order(root):
    truth = opened(root).truth
    assert truth.category_ids == (1, 3)
    assert [sorted(row) for row in truth.coco["annotations"]] == [
        ["area", "bbox", "category_id", "id", "image_id", "iscrowd"]
    ] * 2
    assert truth.coco["annotations"][0]["bbox"] == [1, 2.5, 30, 40]
    assert truth.coco["categories"] == [{"id": 3, "name": "disc"}, {"id": 1, "name": "ring"}]
    assert truth.coco["images"][0] == {"id": 9, "file_name": "b.jpg", "width": 640, "height": 480}


def test_the_kit_opens():
    dataset = open_dataset(KIT, LAYOUT)
    assert (len(dataset.images), len(dataset.truth.coco["annotations"])) == (133, 687)


def shuffled(found, seed):
    for table in ("images", "annotations", "categories"):
        random.Random(seed).shuffle(found[table])
    return found


def test_digests_do_not_depend_on_order_or_formatting(root):
    first = opened(root)
    for seed in range(3):
        other = opened(root, json.dumps(shuffled(content(), seed), indent=3, sort_keys=True).replace(" 25,", " 2.5e1,"))
        assert (other.annotation_digest, other.size_digest) == (first.annotation_digest, first.size_digest)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("annotations", "bbox", [1, 2.5, 30, 41]),
        ("annotations", "area", 600.5),
        ("annotations", "iscrowd", 1),
        ("annotations", "category_id", 1),
        ("annotations", "image_id", 4),
        ("annotations", "id", 5),
        ("categories", "name", "square"),
    ],
)
def test_any_change_of_the_annotations_changes_their_digest_alone(root, table, key, value):
    first, changed = opened(root), content()
    changed[table][0][key] = value
    other = opened(root, changed)
    assert other.annotation_digest != first.annotation_digest
    assert other.size_digest == first.size_digest


def test_a_change_of_an_image_size_changes_the_size_digest_alone(root):
    first, changed = opened(root), content()
    changed["images"][0]["width"] += 1
    other = opened(root, changed)
    assert other.size_digest != first.size_digest
    assert other.annotation_digest == first.annotation_digest


def test_limited_keeps_the_first_images_by_id_and_all_categories(root):
    whole = opened(root)
    part = whole.limited(1)
    assert [image.id for image in part.images] == [4]
    assert [row["id"] for row in part.truth.coco["annotations"]] == [1]
    assert part.truth.category_ids == (1, 3)
    assert part.annotation_digest != whole.annotation_digest
    assert whole.limited(5) == whole


@pytest.mark.parametrize("count", [0, -3])
def test_a_limit_that_leaves_nothing_is_a_usage_error(root, count):
    with pytest.raises(UsageError, match=f"--limit={count}"):
        opened(root).limited(count)


def test_the_truth_of_an_unknown_image_is_refused(root):
    with pytest.raises(WrongDataError, match=r"1 image ids are not in the ground truth: \[5\]"):
        opened(root).truth.limited([4, 5])


@pytest.mark.parametrize("missing", ["", "val2017", "annotations/instances_val2017.json"])
def test_a_missing_part_of_the_layout_is_named_with_the_remedy(root, missing):
    opened(root)
    (root / missing).rename(root.with_name(f"{root.name}-elsewhere"))
    with pytest.raises(NoDataError, match=r"is not a f(?s:.)*--coco-root=DIR") as error:
        open_dataset(root, LAYOUT)
    assert str(root / missing) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"info": ' * 50_000,
        '{"info": NaN}',
        '{"info": -Infinity}',
        '{"info": ' + "9" * 10_000 + "}",
        json.dumps(content()) + "]",
        '{"info": "\\ud800"}',
    ],
    ids=["empty", "cut", "nested-lists", "nested-objects", "nan", "infinity", "long-number", "trailing", "surrogate"],
)
def test_text_that_is_not_json_is_refused(root, text):
    with pytest.raises(WrongDataError, match=r"instances_val2017\.json is not JSON"):
        opened(root, text)


def test_bytes_that_are_not_text_are_refused(root):
    (root / LAYOUT.annotations).write_bytes(b'{"info": "\xff"}')
    with pytest.raises(WrongDataError, match="is not JSON"):
        open_dataset(root, LAYOUT)


def test_a_file_too_large_to_parse_is_refused_unread(root):
    with (root / LAYOUT.annotations).open("wb") as file:
        file.truncate(600 * 2**20)
    with pytest.raises(WrongDataError, match=r"has 629145600 bytes"):
        open_dataset(root, LAYOUT)


@pytest.mark.parametrize(
    ("table", "index", "key", "value"),
    [
        ("images", 1, "id", -1),
        ("images", 1, "id", "4"),
        ("images", 1, "id", 4.5),
        ("images", 1, "id", True),
        ("images", 1, "id", 2**60),
        ("images", 0, "width", 0),
        ("images", 0, "height", 480.5),
        ("images", 0, "height", None),
        ("images", 0, "file_name", 5),
        ("images", 0, "file_name", ""),
        ("annotations", 1, "id", 0),
        ("annotations", 1, "id", 1e3),
        ("annotations", 1, "bbox", [0, 0, 5]),
        ("annotations", 1, "bbox", [0, 0, 5, 5, 5]),
        ("annotations", 1, "bbox", [0, 0, -5, 5]),
        ("annotations", 1, "bbox", [0, -1, 5, 5]),
        ("annotations", 1, "bbox", [0, 0, "5", 5]),
        ("annotations", 1, "bbox", "0055"),
        ("annotations", 1, "area", -1),
        ("annotations", 1, "area", None),
        ("annotations", 1, "iscrowd", 2),
        ("annotations", 1, "iscrowd", False),
        ("categories", 0, "id", 0),
        ("categories", 0, "name", None),
    ],
)
def test_a_wrong_value_is_named_by_file_key_and_index(root, table, index, key, value):
    found = content()
    found[table][index][key] = value
    with pytest.raises(WrongDataError, match=rf"instances_val2017\.json: {table}\[{index}\]\.{key}") as error:
        opened(root, found)
    if not isinstance(value, list):
        assert f"(found {value})" in str(error.value)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("key", ["area", "bbox"])
def test_a_number_without_end_is_refused(root, key, number):
    text = json.dumps(content()).replace("600.25" if key == "area" else "2.5", number)
    with pytest.raises(WrongDataError, match=rf"annotations\[0\]\.{key}"):
        opened(root, text)


@pytest.mark.parametrize(
    ("table", "key"),
    [("images", "width"), ("annotations", "iscrowd"), ("annotations", "area"), ("categories", "name")],
)
def test_a_missing_key_is_named(root, table, key):
    found = content()
    del found[table][0][key]
    with pytest.raises(WrongDataError, match=rf"{table}\[0\]\.{key}: Field required"):
        opened(root, found)


@pytest.mark.parametrize(
    ("found", "where"),
    [
        ("[]", "top level"),
        ("5", "top level"),
        ('{"images": {}}', "images"),
        ('{"images": [], "annotations": [], "categories": []}', "images"),
        ('{"images": [7]}', r"images\[0\]"),
    ],
)
def test_another_structure_is_refused(root, found, where):
    with pytest.raises(WrongDataError, match=rf"\.json: {where}: "):
        opened(root, found)


@pytest.mark.parametrize(
    ("table", "key"), [("images", "id"), ("images", "file_name"), ("annotations", "id"), ("categories", "id")]
)
def test_a_repeated_id_or_name_is_refused(root, table, key):
    found = content()
    found[table][1][key] = found[table][0][key]
    with pytest.raises(WrongDataError, match=rf"{table}\[1\]\.{key}: {found[table][0][key]!r} is also at index 0"):
        opened(root, found)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_annotation_of_something_unknown_is_refused(root, key):
    found = content()
    found["annotations"][1][key] = 77
    with pytest.raises(WrongDataError, match=rf"annotations\[1\]\.{key}: no \w+ has the id 77"):
        opened(root, found)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "val2017/../../secret.jpg", "link.jpg", "folder/secret.jpg", "absolute"]
)
def test_a_file_name_that_leaves_the_image_folder_is_refused(root, name):
    secret = root / "secret.jpg"
    secret.write_bytes(b"")
    (root / "val2017/link.jpg").symlink_to(secret)
    (root / "val2017/folder").symlink_to(root)
    found = content()
    found["images"][0]["file_name"] = str(root / "val2017/b.jpg") if name == "absolute" else name
    with pytest.raises(WrongDataError, match=r"images\[0\]\.file_name: .* leaves the image folder"):
        opened(root, found)


@pytest.mark.parametrize("name", ["c.jpg", "folder", "b.jpg/x", "nul\0.jpg", "x" * 5000, "looped.jpg"])
def test_a_file_that_is_not_there_is_refused(root, name):
    (root / "val2017/looped.jpg").symlink_to("looped.jpg")
    (root / "val2017/folder").mkdir()
    found = content()
    found["images"][0]["file_name"] = name
    with pytest.raises(WrongDataError, match=r"images\[0\]\.file_name: .* (is not there|is not a usable name)"):
        opened(root, found)


def test_an_image_folder_may_itself_be_a_link(root):
    (root / "val2017").rename(root / "elsewhere")
    (root / "val2017").symlink_to(root / "elsewhere")
    assert len(opened(root).images) == 2
