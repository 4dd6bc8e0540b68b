import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import support.ascend.file_route
from support import errors
from support.ascend.acl_python import AclPython
from support.ascend.bench_cli import BenchCli, bench_arguments, find_bench_cli
from support.ascend.file_route import FileRoute, file_route_pass
from support.ascend.host import AscendHost
from support.ascend.processes import Finished, run_tool
from support.dataset import CocoDataset, GroundTruth, ImageRecord
from support.detections import COLUMNS, Decoder
from support.engine import Plan
from support.heads import Heads, head_shapes
from support.inputs import Geometry
from support.progress import SilentProgress
from support.result_files import TIMER, results_pass
from support.spec import load_spec
from unit.ascend import heads_device

GENERATIONS = ("v1", "v2", "v3")
SIDE, BATCH, IMAGES = 128, 4, 10
SMALL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": SIDE, "classes": 3})
SHAPES = head_shapes(SMALL, 1)
LEVELS = len(SHAPES) // 2


# A feed of one grey level per image.
class Fed:
    image_ids = np.arange(IMAGES, dtype=np.int64) * 7 + 100
    sizes = np.stack([np.arange(IMAGES) + 200, np.arange(IMAGES) + 300], axis=1).astype(np.int32)
    scales = np.array([Geometry.of(width, height, SIDE).scale for width, height in sizes.tolist()])
    levels = np.random.default_rng(0).normal(0, 1, IMAGES).astype(np.float32)

    def tensors(self, indices):
        return np.broadcast_to(self.levels[indices][:, None, None, None], (len(indices), 3, SIDE, SIDE))


FEED, DECODER = Fed(), Decoder(SMALL)
HEADS = heads_device.heads(FEED.levels, SHAPES)


def decoded(rows):
    heads = Heads(tuple(HEADS[:LEVELS]), tuple(HEADS[LEVELS:])).rows(np.asarray(rows))
    return DECODER.decode(heads, FEED.image_ids[rows], FEED.scales[rows], FEED.sizes[rows])


def plan(order=range(IMAGES), golden=5):
    return Plan(order=order, warm_up_calls=0, golden=golden, call_seconds=1, title="by files", chip="310P3")


def passed(route, folder, chunk=2 * BATCH, progress=None, **changes):
    step = progress or SilentProgress()
    return file_route_pass(FEED, route, DECODER, SMALL, plan(**changes), step, folder=folder, chunk_images=chunk)


def assert_same(first, second):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# -- with the simulated tool -------------------------------------------------------------------------------------------


class Tools:
    def __init__(self, folder, generation):
        self.host = heads_device.host(folder / "host", f"sim:310P3,{generation}")
        python = AclPython(Path(sys.executable), "3", generation.upper(), "")
        self.cli = find_bench_cli(self.host, python, None, timeout=60)
        self.folder = folder / "files"
        self.folder.mkdir()

    # Newer versions would refuse a model that others may change.
    def om(self, batch=BATCH):
        om = heads_device.om(self.folder.parent / f"d0 bs{batch}.om", SIDE, batch, SHAPES)
        om.chmod(0o666)
        return om

    def route(self, om, batch=BATCH):
        return FileRoute(self.host, self.cli, om, device_id=0, batch=batch, timeout=60)


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return {generation: Tools(tmp_path_factory.mktemp(generation), generation) for generation in GENERATIONS}


@pytest.fixture(params=GENERATIONS)
def tools(request, every):
    return every[request.param]


def test_chunks_give_the_detections_and_the_times_of_the_device(tools):
    found = passed(tools.route(tools.om()), tools.folder)
    assert_same(found.detections, decoded(range(IMAGES)))
    assert [call.images for call in found.timing.calls] == [4, 4, 2]
    seconds = [call.seconds for call in found.timing.calls]
    assert seconds == pytest.approx([heads_device.COMPUTE_MS / 1e3] * 3, rel=1e-3)
    assert (found.timing.timer, found.timing.includes_copies, found.timing.chip) == (TIMER, False, "310P3")
    for head, expected in zip((*found.golden.classes, *found.golden.boxes), HEADS, strict=True):
        np.testing.assert_array_equal(head, expected[:5])
    assert list(tools.folder.iterdir()) == []


# As somebody else would have run it, into a directory that is kept.
def test_files_left_by_the_tool_are_read_as_results(tools, tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir(mode=0o700)
    om = shutil.copy(tools.om(), tmp_path / "d0.om")
    Path(om).chmod(0o600)
    images = [
        ImageRecord(image_id, f"{image_id}.jpg", width, height, Path("never"))
        for image_id, (width, height) in zip(FEED.image_ids.tolist(), FEED.sizes.tolist(), strict=True)
    ]
    for row, image in enumerate(images):
        FEED.tensors([row]).tofile(tmp_path / "in" / f"{image.id}.bin")
    paths = {"om": Path(om), "inputs": tmp_path / "in", "output": tmp_path / "out"}
    arguments = bench_arguments(tools.cli, **paths, dirname="bs4", device_id=0, batch=BATCH)
    done = run_tool([*tools.cli.command, *arguments], env=tools.host.env, timeout=60, cwd=tmp_path)
    assert done.status == 0, done.output
    dataset = CocoDataset(tmp_path, tuple(images), GroundTruth({}, ()), "", "")
    folder = tmp_path / "out/bs4"
    found = results_pass(folder, BATCH, dataset, dataset, DECODER, plan(), SMALL, SilentProgress())
    assert_same(found.detections, decoded(range(IMAGES)))
    assert [call.images for call in found.timing.calls] == [4, 4, 2]


def test_a_model_of_another_batch_size_is_rejected(every):
    tools = every["v2"]
    message = "the model given for batch 4 takes batch 2\n.*\n.*wrong name"
    with pytest.raises(errors.ContractViolationError, match=message):
        passed(tools.route(tools.om(batch=2)), tools.folder)
    assert list(tools.folder.iterdir()) == []


def test_a_damaged_model_cannot_be_loaded(every):
    tools = every["v3"]
    om = tools.om()
    om.write_bytes(om.read_bytes()[:-9])
    with pytest.raises(errors.ToolError, match=r"^ais_bench: the model cannot be loaded: .*\n(.*\n)*.*EE4001"):
        passed(tools.route(om), tools.folder)


# -- with a tool that does what a test says ----------------------------------------------------------------------------


class FakeTool:
    """Writes what the tool would, but for what a test changes."""

    def __init__(self):
        self.seen, self.change = [], lambda folder, facts: None
        self.output = "filesperbatch:4\nthroughput 1000*batchsize.mean(4)/NPU_compute_time.mean(7.0): 571.4"
        self.status = 0

    def __call__(self, command, *, env, timeout, cwd):
        options = dict(zip(command[1::2], command[2::2], strict=True))
        inputs, output = Path(options["--input"]), Path(options["--output"])
        assert {path.stat().st_mode & 0o777 for path in (inputs, output, output.parent)} == {0o700}
        assert list(output.iterdir()) == []
        assert Path(options["--model"]).stat().st_mode & 0o777 == 0o600
        stems = sorted(path.stem for path in inputs.iterdir())
        self.seen.append(stems)
        folder = output / options["--output_dirname"]
        folder.mkdir()
        files = [self._write(folder, stem, place) for stem in stems for place in range(len(SHAPES))]
        facts = {"filesinfo": {"0": {"outfiles": files}}, "NPU_compute_time": {"mean": 7.0}, "throughput": 4e3 / 7}
        facts["npu_compute_time_list"] = [7.0] * -(-len(stems) // BATCH)
        self.change(folder, facts)
        (output / f"{folder.name}_summary.json").write_text(json.dumps(facts))
        return Finished(tuple(command), self.status, self.output, 1.0)

    def _write(self, folder, stem, place):
        row = FEED.image_ids.tolist().index(int(stem))
        path = folder / f"{stem}_{place}.bin"
        HEADS[place][row].tofile(path)
        return str(path)


@pytest.fixture
def tool(monkeypatch):
    tool = FakeTool()
    monkeypatch.setattr(support.ascend.file_route, "run_tool", tool)
    return tool


@pytest.fixture
def route(tmp_path, tool):
    options = frozenset(("--model", "--input", "--output", "--output_dirname", "--batchsize"))
    om = heads_device.om(tmp_path / "d0.om", SIDE, BATCH, SHAPES)
    return FileRoute(AscendHost({}), BenchCli(("ais_bench",), options), om, device_id=0, batch=BATCH, timeout=60)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.parametrize(("chunk", "sizes"), [(8, [8, 2]), (7, [4, 4, 2]), (1, [4, 4, 2]), (12, [10])])
def test_a_chunk_is_a_whole_number_of_batches(route, tool, folder, chunk, sizes):
    found = passed(route, folder, chunk)
    assert [len(stems) for stems in tool.seen] == sizes
    assert sorted(stem for stems in tool.seen for stem in stems) == [f"{image_id:012d}" for image_id in FEED.image_ids]
    assert [call.images for call in found.timing.calls] == [4, 4, 2]


def test_detections_and_golden_heads_follow_the_order_of_the_plan(route, folder):
    rows = [9, 2, 7, 0, 5]
    found = passed(route, folder, BATCH, order=rows, golden=5)
    assert_same(found.detections, decoded(rows))
    np.testing.assert_array_equal(found.golden.boxes[0], HEADS[LEVELS][rows])


def test_progress_counts_images_over_all_chunks(route, folder):
    steps = []

    class Shown:
        def step(self, title):
            return nullcontext(lambda done, total: steps.append((done, total)))

    passed(route, folder, 8, Shown())
    assert steps == [(4, 10), (8, 10), (10, 10)]


def fails(route, folder, kind, message):
    with pytest.raises(kind, match=message) as caught:
        passed(route, folder)
    assert list(folder.iterdir()) == []
    return caught.value


def test_a_tool_that_fails_is_explained(route, tool, folder):
    tool.status, tool.output = 1, "[ERROR] acl execute failed:507899"
    fails(route, folder, errors.DeviceLostError, "ais_bench: the driver failed")


@pytest.mark.parametrize("output", ["", "throughput 1000*batchsize(4)/NPU_compute"])
def test_success_without_its_last_lines_is_none(route, tool, folder, output):
    tool.output = output
    fails(route, folder, errors.ToolError, "ended with 0 but left no summary")


def test_success_without_a_summary_is_none(route, tool, folder):
    tool.change = lambda folder, facts: facts.clear()
    fails(route, folder, errors.WrongDataError, "results_summary.json: KeyError")


def test_two_means_that_differ_are_no_timing(route, tool, folder):
    tool.output = tool.output.replace("7.0", "8.0")
    fails(route, folder, errors.ToolError, "printed a mean of 8.0 ms and recorded 7.0 ms")


def test_a_model_of_another_batch_size_is_seen_in_what_the_tool_prints(route, tool, folder):
    tool.output = tool.output.replace("filesperbatch:4", "filesperbatch:16")
    fails(route, folder, errors.ContractViolationError, "given for batch 4 takes batch 16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, facts: (folder / "000000000107_3.bin").unlink(), r"10 files of images: 1: 000000000107 \(9\)"),
        (lambda folder, facts: (folder / "000000000107_3.bin").write_bytes(b""), r"000000000107_3\.bin \(0 bytes\)"),
        (lambda folder, facts: (folder / "padding_infer_fake_file_0.bin").touch(), "padding_infer_fake_file_0"),
        (lambda folder, facts: facts["filesinfo"]["0"]["outfiles"].pop(), "stale files"),
    ],
)
def test_result_files_that_are_not_those_of_the_chunk_are_refused(route, tool, folder, change, message):
    tool.change = change
    fails(route, folder, errors.WrongDataError, message)


# The row tells who looks for the cause which image to look at.
def test_a_value_that_is_not_finite_is_named_by_image_and_row(route, tool, folder):
    def change(folder, facts):
        if len(tool.seen) == 2:
            np.full(SHAPES[0][1:], np.inf, np.float32).tofile(folder / f"{FEED.image_ids[9]:012d}_0.bin")

    tool.change = change
    error = fails(route, folder, errors.NotFiniteError, "image 163: class head 16x16")
    assert error.row == 9


def test_times_of_a_part_of_the_images_are_no_timing(route, tool, folder):
    def change(folder, facts):
        if len(tool.seen) == 2:
            facts["npu_compute_time_list"] = []

    tool.change = change
    found = passed(route, folder)
    assert_same(found.detections, decoded(range(IMAGES)))
    assert found.timing.calls == ()
    assert "kept no list of times" in found.timing.timer


def test_ctrl_c_leaves_no_files(route, tool, folder):
    def change(folder, facts):
        raise KeyboardInterrupt

    tool.change = change
    with pytest.raises(KeyboardInterrupt):
        passed(route, folder)
    assert list(folder.iterdir()) == []


def test_too_small_a_disk_is_told_before_anything_is_written(route, tool, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    fails(route, folder, errors.NoSpaceError, r"1 MiB free\n  required: \d+ MiB for one chunk")
    assert tool.seen == []
