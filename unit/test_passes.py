import json

import numpy as np
import pytest

from support.detections import COLUMNS, Detections
from support.engine import Pass
from support.errors import NoDataError, WrongDataError
from support.heads import Heads, head_shapes
from support.passes import read_heads, read_pass, write_heads, write_pass
from support.spec import load_spec
from support.timing import CallSample, PassTiming

SMALL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": 128, "classes": 3})


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in head_shapes(SMALL, 2)]
    return Heads(tuple(arrays[:5]), tuple(arrays[5:]))


@pytest.fixture
def measured(heads):
    detections = Detections(
        images=np.array([7, 3, 5], np.int64),
        image_ids=np.array([7, 7, 5], np.int64),
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
        scores=np.array([0.9, 0.1, 0.5], np.float32),
        category_ids=np.array([1, 90, 2], np.int32),
        anchors=np.array([0, 12, 3], np.int32),
    )
    calls = CallSample(0.1, 2), CallSample(1 / 3, 1)
    timing = PassTiming("cpu", 2, calls, (0.7,), "wall time", includes_copies=True)
    return Pass(detections, timing, heads, padded_scored=1)


def assert_same_heads(one, other):
    for mine, theirs in zip((*one.classes, *one.boxes), (*other.classes, *other.boxes), strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)


def test_heads_are_read_as_they_were_written(tmp_path, heads):
    write_heads(tmp_path / "heads.npz", heads)
    found = read_heads(tmp_path / "heads.npz")
    assert (len(found.classes), len(found.boxes)) == (5, 5)
    assert_same_heads(found, heads)


def test_a_pass_is_read_as_it_was_written(tmp_path, measured):
    facts = write_pass(tmp_path / "pass", measured)
    assert facts == json.loads(json.dumps(facts)) == {"images": 3}
    found = read_pass(tmp_path / "pass")
    assert (found.timing, found.padded_scored) == (measured.timing, 1)
    assert_same_heads(found.golden, measured.golden)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found.detections, name), getattr(measured.detections, name), strict=True)


def test_a_pass_does_not_go_into_a_folder_that_exists(tmp_path, measured):
    with pytest.raises(FileExistsError):
        write_pass(tmp_path, measured)


def test_a_pass_without_detections_or_with_damaged_ones_is_refused(tmp_path, measured):
    write_pass(tmp_path / "pass", measured)
    path = tmp_path / "pass/detections.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WrongDataError, match=r"detections\.npz is damaged"):
        read_pass(tmp_path / "pass")
    path.unlink()
    with pytest.raises(NoDataError, match=r"detections\.npz does not exist"):
        read_pass(tmp_path / "pass")
