import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from support.ascend.bench_summary import read_summary
from support.dataset import CocoDataset, GroundTruth, ImageRecord
from support.detections import COLUMNS, Decoder
from support.engine import Plan
from support.errors import NoDataError, NoTimingError, WrongDataError
from support.heads import Heads, head_shapes
from support.inputs import Geometry
from support.progress import SilentProgress
from support.result_files import find_results, results_pass, timing_of
from support.spec import load_spec
from support.timing import estimate

MODEL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": 128, "classes": 3})
IMAGES, BATCH = 6, 4
STEMS = [f"{number:012d}" for number in range(1, IMAGES + 1)]


def dataset(count=IMAGES):
    images = tuple(ImageRecord(number, f"{number:012d}.jpg", 200 + number, 300, None) for number in range(1, count + 1))
    return CocoDataset(None, images, GroundTruth({}, (1, 2, 3)), "", "")


def heads_of(stem):
    rng = np.random.default_rng(int(stem))
    return [rng.normal(-2, 1, shape).astype(np.float32) for shape in head_shapes(MODEL, 1)]


def write(folder, *, order=range(10), first=0, suffix="bin", stems=STEMS):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        arrays = heads_of(stem)
        for number, place in enumerate(order, first):
            path = folder / f"{stem}_{number}.{suffix}"
            np.save(path, arrays[place]) if suffix == "npy" else arrays[place].tofile(path)
    return folder


def summarise(folder, *, runs=2, stems=STEMS, per_image=10):
    spread = dict.fromkeys(("min", "max", "mean", "median"), 15.0)
    outfiles = {
        str(place): {"infiles": [], "outfiles": [f"/elsewhere/{stem}_{number}.bin" for number in range(per_image)]}
        for place, stem in enumerate(stems)
    }
    facts = {"NPU_compute_time": spread, "throughput": 266.0, "npu_compute_time_list": [15.0] * runs}
    (folder.parent / f"{folder.name}_summary.json").write_text(json.dumps({**facts, "filesinfo": outfiles}))
    return folder


def passed(folder, count=IMAGES, whole=IMAGES):
    plan = Plan(range(count), 0, 2, 30.0, "results", "310P3")
    return results_pass(folder, BATCH, dataset(count), dataset(whole), Decoder(MODEL), plan, MODEL, SilentProgress())


def direct():
    images, arrays = dataset().images, [heads_of(stem) for stem in STEMS]
    joined = [np.concatenate(level) for level in zip(*arrays, strict=True)]
    scales = np.array([Geometry.of(image.width, image.height, 128).scale for image in images])
    sizes = np.array([(image.width, image.height) for image in images], np.int32)
    return Decoder(MODEL).decode(Heads(tuple(joined[:5]), tuple(joined[5:])), np.arange(1, IMAGES + 1), scales, sizes)


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in COLUMNS)


# Boxes and classes in turns, numbered from 1, as older scripts wrote them.
TURNS = [place for level in range(5) for place in (5 + level, level)]


@pytest.mark.parametrize(
    "layout",
    [{}, {"order": TURNS, "first": 1}, {"order": range(9, -1, -1)}, {"suffix": "npy"}],
    ids=["by index", "in turns from 1", "backwards", "npy"],
)
def test_heads_are_told_apart_by_their_sizes_whatever_their_numbers(tmp_path, layout):
    measured = passed(write(tmp_path / "bs4", **layout))
    assert same(measured.detections, direct())
    assert measured.detections.images.tolist() == list(range(1, IMAGES + 1))
    assert measured.golden.batch == 2
    assert np.array_equal(measured.golden.classes[0][1], heads_of(STEMS[1])[0][0])


def test_some_images_of_a_complete_run_may_be_judged(tmp_path):
    assert passed(write(tmp_path / "bs4"), count=3).detections.images.tolist() == [1, 2, 3]


def test_timing_comes_from_the_list_beside_the_files(tmp_path):
    timing = passed(summarise(write(tmp_path / "bs4"))).timing
    assert [(call.seconds, call.images) for call in timing.calls] == [(0.015, 4), (0.015, 2)]
    assert (timing.batch, timing.includes_copies) == (BATCH, False)
    assert "npu_compute_time_list" in timing.timer


@pytest.mark.parametrize(
    ("runs", "why"), [(None, "there is no summary"), (3, "3 executions in the summary instead of 2")]
)
def test_without_one_time_for_each_batch_there_is_no_throughput(tmp_path, runs, why):
    folder = write(tmp_path / "bs4")
    if runs:
        summarise(folder, runs=runs)
    timing = timing_of(read_summary(folder), BATCH, IMAGES, "310P3")
    with pytest.raises(NoTimingError, match=why):
        estimate(timing, confidence=0.95, minimum_calls=2)


# -- files that are not those of one run -------------------------------------------------------------------------------


def lose(folder):
    for path in folder.glob(f"{STEMS[2]}_*"):
        path.unlink()


def lose_one(folder):
    (folder / f"{STEMS[2]}_7.bin").unlink()


def truncate(folder):
    path = folder / f"{STEMS[2]}_0.bin"
    path.write_bytes(path.read_bytes()[:-4])


def halve(folder):
    for path in folder.glob(f"{STEMS[2]}_*"):
        np.fromfile(path, np.float32).astype(np.float16).tofile(path)


def add(folder):
    shutil.copy(folder / f"{STEMS[2]}_0.bin", folder / "999_0.bin")


def add_number(folder):
    shutil.copy(folder / f"{STEMS[2]}_0.bin", folder / f"{STEMS[2]}_10.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose, "lacks the results of images: 1: 000000000003"),
        (lose_one, "does not hold 10 files of images: 1: 000000000003"),
        (truncate, r"truncated files.*: 000000000003_0\.bin \(\d+ bytes\)"),
        (halve, "truncated files, or such of another type"),
        (add, r"no result of this data set: 1: 999_0\.bin"),
        (add_number, "does not hold 10 files of images: 1: 000000000003"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, spoil, message):
    folder = write(tmp_path / "bs4")
    spoil(folder)
    with pytest.raises(WrongDataError, match=message):
        passed(folder)


def test_files_the_summary_does_not_list_are_stale(tmp_path):
    folder = summarise(write(tmp_path / "bs4"), stems=STEMS[:-1])
    with pytest.raises(WrongDataError, match=r"stale files, which the summary does not list: 10: 000000000006_0\.bin"):
        passed(folder)


def test_names_that_collide_at_their_first_dot_are_refused(tmp_path):
    folder, images = write(tmp_path / "bs4"), dataset()
    twins = replace(images, images=tuple(replace(image, file_name=f"a.{image.id}.jpg") for image in images.images))
    plan = Plan(range(IMAGES), 0, 2, 30.0, "results", "310P3")
    with pytest.raises(WrongDataError, match="several images would have results named a"):
        results_pass(folder, BATCH, twins, twins, Decoder(MODEL), plan, MODEL, SilentProgress())


# -- where they lie ----------------------------------------------------------------------------------------------------


def test_a_folder_for_each_batch_size_or_a_pattern_is_found(tmp_path):
    write(tmp_path / "result/bs4")
    for template in (str(tmp_path / "result"), str(tmp_path / "result/bs{batch}")):
        assert find_results(template, 4, only=False) == tmp_path / "result/bs4"


def test_a_folder_named_by_its_time_is_passed_over_but_not_two(tmp_path):
    write(tmp_path / "bs4/2022_08_19-10_00_00")
    assert find_results(str(tmp_path), 4, only=False).name == "2022_08_19-10_00_00"
    write(tmp_path / "bs4/2022_08_20-10_00_00")
    with pytest.raises(WrongDataError, match="several runs: 2022_08_19-10_00_00, 2022_08_20"):
        find_results(str(tmp_path), 4, only=False)


def test_one_folder_serves_one_batch_size_only(tmp_path):
    write(tmp_path / "result")
    assert find_results(str(tmp_path / "result"), 4, only=True) == tmp_path / "result"
    with pytest.raises(NoDataError, match=r"there are no results .*result/bs4\n.*--batch-sizes"):
        find_results(str(tmp_path / "result"), 4, only=False)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoDataError, match=r"there are no results .*/bs8\n.*--results="):
        find_results(str(tmp_path / "bs{batch}"), 8, only=False)
