import hashlib
import json
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support.errors import UsageError
from support.progress import SilentProgress
from support.shapes.__main__ import main
from support.shapes.validation import ANNOTATIONS, IMAGES, annotation_document, validation_images, write_validation_set

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_notes = pytest.mark.skipif(
    not (SHARED / "kit").is_dir(), reason="needs the first generator beside the checkout: shared/kit"
)

# Of the pixels of all 133 images before compression, in ascending order of their ids.
PIXELS_SHA256 = "ee502dc64ec4c312000161d15d56e9215ee25032c182dd4111af529d96b4dbea"
# The last bit of NumPy's float32 sine, hence a grey level here and there, depends on the processor.
SINE_SHA256 = "05219a8edfd534d3"


def has_the_sine_of_the_committed_set():
    sine = np.sin(np.arange(-1600, 1600, dtype=np.float32) / 8)
    return hashlib.sha256(sine.tobytes()).hexdigest().startswith(SINE_SHA256)


@pytest.fixture(scope="module")
def images():
    return tuple(validation_images())


@pytest.fixture(scope="module")
def committed():
    return json.loads((KIT / ANNOTATIONS).read_text(encoding="utf-8"))


def decoded(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def largest_difference(first, second):
    assert first.shape == second.shape
    return np.abs(first - second).max()


def test_the_annotations_are_the_committed_ones_to_the_byte(images):
    assert json.dumps(annotation_document(images)) == (KIT / ANNOTATIONS).read_text(encoding="utf-8")


@pytest.mark.skipif(
    not has_the_sine_of_the_committed_set(),
    reason="exact pixels need a NumPy whose float32 sine uses fused multiply-add, as it does on x86-64 with AVX2",
)
def test_the_scenes_are_the_committed_ones_to_the_pixel(images):
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.pixels.tobytes())
    assert digest.hexdigest() == PIXELS_SHA256


def test_the_files_decode_to_the_committed_ones_within_two_grey_levels(images, tmp_path):
    names = {path.name for path in (KIT / IMAGES).iterdir()}
    assert names == {image.file_name for image in images}
    differences = {
        image.file_name: largest_difference(decoded(image.save(tmp_path)), decoded(KIT / IMAGES / image.file_name))
        for image in images
    }
    assert {name: difference for name, difference in differences.items() if difference > 2} == {}


def test_a_picture_shifted_by_one_pixel_differs_by_more_than_two_grey_levels(images):
    pixels = decoded(KIT / IMAGES / images[0].file_name)
    assert largest_difference(pixels, np.roll(pixels, 1, axis=1)) > 2


def test_the_images_have_the_sizes_they_are_listed_with(committed):
    for record in committed["images"]:
        with Image.open(KIT / IMAGES / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])


def test_two_images_are_grayscale_and_some_progressive(images):
    files = [Image.open(KIT / IMAGES / image.file_name) for image in images]
    assert sum(file.mode == "L" for file in files) == 2
    assert sum("progressive" in file.info for file in files) == sum(image.progressive for image in images) == 9
    for file in files:
        file.close()


def test_one_image_has_no_objects_and_ten_have_a_crowd_region(images, committed):
    marked = [annotation["image_id"] for annotation in committed["annotations"]]
    assert [image.id for image in images if image.id not in marked] == [images[17].id]
    assert sum(annotation["iscrowd"] for annotation in committed["annotations"]) == 10


def test_a_crowd_region_touches_no_object(images):
    for image in images:
        for item in image.objects if image.crowd else ():
            x0, y0, x1, y1 = item.box
            left, top, right, bottom = image.crowd.box
            assert x1 < left or right < x0 or y1 < top or bottom < y0


@needs_notes
def test_images_equal_those_of_the_first_generator(images, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(Image.Image, "save", lambda image, *_, **options: saved.append((np.asarray(image), options)))
    monkeypatch.setitem(sys.modules, "scenes", SimpleNamespace(**runpy.run_path(str(SHARED / "kit/scenes.py"))))
    # Twenty-four show a crowd, the image without objects, a grayscale and a progressive one.
    monkeypatch.setattr(sys, "argv", ["make_validation.py", str(tmp_path), "24", "2026"])
    runpy.run_path(str(SHARED / "kit/make_validation.py"))
    for (pixels, options), image in zip(saved, images[:24], strict=True):
        assert np.array_equal(pixels, image.pixels)
        assert options == {"quality": image.quality, "progressive": image.progressive}


def test_a_written_set_has_the_layout_of_coco(tmp_path):
    write_validation_set(tmp_path / "set", SilentProgress(), count=2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    document = json.loads((tmp_path / "set" / ANNOTATIONS).read_text(encoding="utf-8"))
    pictures = [f"set/{IMAGES}/{record['file_name']}" for record in document["images"]]
    assert files == [f"set/{ANNOTATIONS}", *pictures]


def test_a_written_set_is_open_to_other_users(tmp_path):
    write_validation_set(tmp_path / "set", SilentProgress(), count=1)
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    write_validation_set(tmp_path / "set", SilentProgress(), count=1)
    assert (tmp_path / "set" / ANNOTATIONS).is_file()


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"exists already\n  required: a new or empty folder"):
        write_validation_set(tmp_path, SilentProgress(), count=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_target_in_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        write_validation_set(tmp_path / "nowhere/set", SilentProgress(), count=1)


def test_an_interrupted_call_leaves_nothing(tmp_path):
    class Impatient:
        @contextmanager
        def step(self, title):
            def stop(done, total):
                raise KeyboardInterrupt

            yield stop

    with pytest.raises(KeyboardInterrupt):
        write_validation_set(tmp_path / "set", Impatient(), count=2)
    assert list(tmp_path.iterdir()) == []


def test_the_command_reports_a_target_it_cannot_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["validation", str(tmp_path)]) == 2
    assert f"error: {tmp_path} exists already" in capsys.readouterr().err
