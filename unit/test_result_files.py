import json
import os
from pathlib import Path

import numpy as np
import pytest

from support.ascend.bench_summary import Summary
from support.dataset import CocoDataset, GroundTruth, ImageRecord
from support.detections import COLUMNS, Decoder
from support.engine import Plan
from support.errors import ContractViolationError, NoDataError, NoTimingError, WrongDataError
from support.heads import Heads, head_shapes
from support.inputs import Geometry
from support.progress import SilentProgress
from support.result_files import TIMER, find_results, results_pass, timing_of
from support.spec import load_spec
from support.timing import estimate

RULES = load_spec("efficientdet_d0").throughput
SMALL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": 128, "classes": 3})
SHAPES = head_shapes(SMALL, 1)
PLACES = range(len(SHAPES))
LEVELS = len(SHAPES) // 2
IMAGES, BATCH = 10, 4
#: Milliseconds of three executions, the last one padded.
TIMES = [30.0, 31.0, 32.0]
#: Box and class heads in turns, from 1, as older scripts have them.
INTERLEAVED = [place for level in range(LEVELS) for place in (level + LEVELS, level)]


def dataset_of(images, names="{:012d}.jpg"):
    records = [
        ImageRecord(id=7 * n + 3, file_name=names.format(7 * n + 3), width=200 + n, height=300 - n, path=Path("never"))
        for n in range(images)
    ]
    return CocoDataset(Path("nowhere"), tuple(records), GroundTruth({}, ()), "", "")


DATASET = dataset_of(IMAGES)


def heads_of(images):
    rng = np.random.default_rng(3)
    return [rng.normal(-3, 1, (images, *shape[1:])).astype(np.float32) for shape in SHAPES]


HEADS = heads_of(IMAGES)


def stem(image):
    return image.file_name.split(".")[0]


class Results:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)

    def write(self, dataset=DATASET, suffix="bin", order=PLACES, first=0):
        for row, image in enumerate(dataset.images):
            for number, place in enumerate(order, start=first):
                path = self.folder / f"{stem(image)}_{number}.{suffix}"
                head = HEADS[place][row : row + 1]
                np.save(path, head) if suffix == "npy" else head.astype("<f4").tofile(path)
        return self

    @property
    def files(self):
        return sorted(path for path in self.folder.iterdir() if path.suffix != ".json")

    def summarise(self, inside=False, **changes):
        path = self.folder / "sumary.json" if inside else self.folder.with_name(f"{self.folder.name}_summary.json")
        samples = {"0": {"infiles": [], "outfiles": [f"/there/{path.name}" for path in self.files]}}
        facts = {"npu_compute_time_list": TIMES, "filesinfo": samples, "throughput": 1e3 * BATCH / 31}
        facts |= {"NPU_compute_time": {"mean": 31.0}, **changes}
        path.write_text(json.dumps(facts))
        return self

    def read(self, dataset=DATASET, everything=None, batch=BATCH, model=SMALL, decoder=None, **changes):
        fields = {"order": range(len(dataset.images)), "golden": 5, "title": "results", "chip": "310P3", **changes}
        plan = Plan(warm_up_calls=0, call_seconds=1, **fields)
        decoder = decoder or Decoder(model)
        everything = everything or dataset
        return results_pass(self.folder, batch, dataset, everything, decoder, plan, model, SilentProgress())


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / f"bs{BATCH}")


@pytest.fixture
def good(results):
    return results.write().summarise()


def decoded(dataset=DATASET, rows=slice(None)):
    images = dataset.images
    scales = np.array([Geometry.of(image.width, image.height, 128).scale for image in images])
    ids, sizes = np.array([image.id for image in images]), np.array([(i.width, i.height) for i in images], np.int32)
    heads = Heads(tuple(HEADS[:LEVELS]), tuple(HEADS[LEVELS:])).rows(rows)
    return Decoder(SMALL).decode(heads, ids[rows], scales[rows], sizes[rows])


def assert_same(first, second):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# -- detections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["bin", "npy"])
@pytest.mark.parametrize(("order", "first"), [(PLACES, 0), (INTERLEAVED, 1), (PLACES[::-1], 0)])
def test_heads_are_known_by_their_size_whatever_their_numbers(results, suffix, order, first):
    found = results.write(suffix=suffix, order=order, first=first).summarise().read()
    assert_same(found.detections, decoded())
    for level, head in enumerate((*found.golden.classes, *found.golden.boxes)):
        np.testing.assert_array_equal(head, HEADS[level][:5])
    assert found.padded_scored == 0


def test_detections_follow_the_order_of_the_plan(good):
    assert_same(good.read(order=[7, 2, 5]).detections, decoded(rows=[7, 2, 5]))


def test_a_part_of_the_images_may_be_judged(good):
    part = dataset_of(3)
    found = good.read(part, everything=DATASET)
    assert_same(found.detections, decoded(rows=slice(3)))
    # The time is still that of the whole run.
    assert found.timing.images == IMAGES


def test_nothing_is_kept_if_no_golden_heads_are_wanted(good):
    assert good.read(golden=0).golden.classes == ()


def test_names_end_at_their_first_dot_and_may_hold_underscores(results):
    dataset = dataset_of(3, names="COCO_val_{}.b.jpg")
    assert len(results.write(dataset).read(dataset).detections.images) == 3
    clash = dataset_of(2, names="same.{}.jpg")
    with pytest.raises(WrongDataError, match="several images would have results named same"):
        results.read(clash)


def test_values_that_are_not_finite_are_named_by_their_image(good):
    path = good.folder / f"{stem(DATASET.images[6])}_9.bin"
    values = np.fromfile(path, "<f4")
    values[3] = np.nan
    values.tofile(path)
    good.summarise()
    with pytest.raises(ContractViolationError, match=r"image 45: box head 1x1, image slot 2: 1 NaN") as caught:
        good.read()
    assert caught.value.row == 6


def test_memory_does_not_grow_with_the_images(good):
    class Counting(Decoder):
        most = 0

        def decode(self, heads, image_ids, scales, sizes):
            self.most = max(self.most, heads.batch)
            return super().decode(heads, image_ids, scales, sizes)

    counting = Counting(SMALL)
    good.read(decoder=counting)
    assert counting.most == 4


# -- folders that must not pass ----------------------------------------------------------------------------------------


def refused(results, message, **options):
    with pytest.raises(WrongDataError, match=message) as caught:
        results.read(**options)
    return caught.value


def test_images_without_results_are_named(good):
    for path in good.files[:60]:
        path.unlink()
    names = ", ".join(stem(image) for image in DATASET.images[:5])
    refused(good, rf"bs4 lacks the results of images: 6: {names}, \.\.\.\n")


def test_an_empty_folder_lacks_everything(results):
    refused(results, "lacks the results of images: 10")


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_an_image_with_too_few_or_too_many_files_is_named(good, change):
    image = stem(DATASET.images[2])
    if change == "one less":
        (good.folder / f"{image}_4.bin").unlink()
    else:
        (good.folder / f"{image}_10.bin").write_bytes(bytes(4))
        good.summarise()
    count = 9 if change == "one less" else 11
    refused(good, rf"does not hold 10 files of images: 1: {image} \({count}\)\n")


def test_the_same_head_twice_does_not_stand_for_another(good):
    image = stem(DATASET.images[2])
    (good.folder / f"{image}_4.bin").write_bytes((good.folder / f"{image}_9.bin").read_bytes())
    good.summarise()
    refused(good, rf"truncated files, or such of another type or network: 1: {image}_9\.bin \(144 bytes\)")


@pytest.mark.parametrize("suffix", ["bin", "npy"])
def test_truncated_files_are_named_the_smallest_first(results, suffix):
    results.write(suffix=suffix)
    paths = [results.folder / f"{stem(image)}_0.{suffix}" for image in DATASET.images[:6]]
    for place, path in enumerate(paths):
        path.write_bytes(path.read_bytes()[: 1000 - 100 * place])
    results.summarise()
    five = [path.name for path in (reversed(paths) if suffix == "bin" else paths)][:5]
    text = str(refused(results, "truncated files, or such of another type or network: 6: "))
    assert [text.index(name) for name in five] == sorted(text.index(name) for name in five)
    assert "run again into an empty directory" in text


def test_a_file_of_another_type_is_named(results):
    results.write(suffix="npy")
    image = stem(DATASET.images[1])
    np.save(results.folder / f"{image}_0.npy", HEADS[0][1:2].astype(np.float16))
    refused(results.summarise(), rf"another type .*{image}_0\.npy")
    np.save(results.folder / f"{image}_0.npy", HEADS[0][1:2].view(np.int32))
    refused(results.summarise(), rf"{image}_0\.npy is int32 .*\n  required: float32")


def test_a_head_with_its_axes_in_another_order_is_not_taken(results):
    results.write(suffix="npy")
    image = stem(DATASET.images[1])
    np.save(results.folder / f"{image}_0.npy", np.moveaxis(HEADS[0][1:2], 1, -1))
    refused(results.summarise(), r"is float32 \[1, 16, 16, 27\]\n  required: float32 \[1, 27, 16, 16\]")


@pytest.mark.parametrize("name", ["000000000004_0.bin", "notes.txt", "000000000003_0.txt", "d0_summary"])
def test_files_that_belong_to_no_image_are_surplus(good, name):
    (good.folder / name).touch()
    refused(good, rf"no result of this data set in BIN or NPY format: 1: {name}")


@pytest.mark.parametrize("inside", [True, False])
def test_a_json_file_is_no_result(results, inside):
    results.write().summarise(inside)
    assert len(results.read().timing.calls) == 3


def test_files_that_the_summary_does_not_list_are_stale(good):
    summary, extra = good.folder.with_name(f"{good.folder.name}_summary.json"), good.files[7].name
    facts = json.loads(summary.read_text())
    facts["filesinfo"]["0"]["outfiles"] = [name for name in facts["filesinfo"]["0"]["outfiles"] if extra not in name]
    summary.write_text(json.dumps(facts))
    refused(good, rf"stale files, which the summary does not list: 1: {extra}")


def test_files_newer_than_the_summary_are_of_a_run_that_did_not_end(good):
    path = good.files[12]
    newer = path.stat().st_mtime + 60
    os.utime(path, (newer, newer))
    error = refused(good, rf"newer than the summary, as of a run that did not end: 1: {path.name}")
    assert "touch the summary" in error.remedy
    os.utime(good.folder.with_name(f"{good.folder.name}_summary.json"), (newer, newer))
    good.read()


def test_heads_of_equal_size_cannot_be_told_apart_by_files(good):
    model = SMALL.model_copy(update={"classes": 4})
    refused(good, "two heads of this network have files of the same size", model=model)


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_times_of_the_summary_are_the_samples(good):
    timing = good.read().timing
    assert [call.seconds for call in timing.calls] == [0.030, 0.031, 0.032]
    assert [call.images for call in timing.calls] == [4, 4, 2]
    assert (timing.timer, timing.includes_copies, timing.batch, timing.chip) == (TIMER, False, BATCH, "310P3")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "there is no summary"),
        ({"npu_compute_time_list": []}, "kept no list of times"),
        ({"npu_compute_time_list": TIMES * 2}, "tells of 6 executions instead of 3"),
    ],
)
def test_without_times_there_are_detections_and_no_throughput(results, changes, why):
    results.write()
    if changes is not None:
        results.summarise(**changes)
    found = results.read()
    assert_same(found.detections, decoded())
    with pytest.raises(NoTimingError, match=why):
        estimate(found.timing, RULES)


def summary(executions, told):
    return Summary(Path("s.json"), (0.03,) * executions, 0.03, told / 0.03, None)


@pytest.mark.parametrize(("given", "batch"), [(16, 64), (64, 16), (1, 4)])
def test_results_of_another_batch_size_are_refused(given, batch):
    executions = -(-133 // given)
    with pytest.raises(WrongDataError, match=rf"s\.json is of a run at batch {given}: {executions} executions"):
        timing_of(summary(executions, told=given), batch, 133, "310P3")


def test_the_first_generation_need_not_have_been_told_its_batch_size():
    timing = timing_of(summary(34, told=1), 4, 133, "310P3")
    assert len(timing.calls) == 34
    assert timing.images == 133
    assert timing.calls[-1].images == 1


# -- which folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "template", "only", "wanted"),
    [
        ("result/bs4", "result", False, "result/bs4"),
        ("result/bs4", "result", True, "result/bs4"),
        ("result/bs4/2023_01_03-06_35_53", "result", False, "result/bs4/2023_01_03-06_35_53"),
        ("result/2023_01_03-06_35_53", "result", True, "result/2023_01_03-06_35_53"),
        ("result", "result", True, "result"),
        ("result/d0_bs4", "result/d0_bs{batch}", False, "result/d0_bs4"),
        ("4/result/2023", "{batch}/result", False, "4/result/2023"),
    ],
)
def test_results_are_found_where_they_may_lie(tmp_path, made, template, only, wanted):
    Results(tmp_path / made).write(dataset_of(1)).summarise()
    assert find_results(str(tmp_path / template), BATCH, only=only) == tmp_path / wanted


@pytest.mark.parametrize(
    ("made", "template", "only", "missing"),
    [
        ("result", "result", False, "result/bs4"),
        ("result/bs16", "result", True, "result/bs4"),
        ("result/bs16", "result", False, "result/bs4"),
        ("result/bs16", "result/bs{batch}", False, "result/bs4"),
        ("elsewhere", "result", True, "result"),
    ],
)
def test_results_of_another_batch_size_or_none_are_not_taken(tmp_path, made, template, only, missing):
    Results(tmp_path / made).write(dataset_of(1))
    with pytest.raises(NoDataError, match=rf"there are no results {tmp_path / missing}\n"):
        find_results(str(tmp_path / template), BATCH, only=only)


def test_several_runs_in_one_folder_are_refused(tmp_path):
    for name in ("2023_01_03-06_35_53", "2023_01_04-06_35_53"):
        Results(tmp_path / "bs4" / name).write(dataset_of(1))
    with pytest.raises(WrongDataError, match="holds several runs: 2023_01_03-06_35_53, 2023_01_04-06_35_53"):
        find_results(str(tmp_path), BATCH, only=False)
