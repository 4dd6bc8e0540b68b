from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import support.devices
import support.run
from support.ascend.host import real_host
from support.backends.base import Backend, TensorInfo
from support.capabilities import Capabilities
from support.dataset import open_dataset
from support.errors import (
    NoDataError,
    NoDeviceError,
    NoReferenceError,
    PartialRunError,
    RejectedEarlyError,
    WrongDataError,
)
from support.heads import head_shapes
from support.options import RunOptions
from support.progress import SilentProgress
from support.reference import model_digest, open_reference, write_reference
from support.results import Results
from support.run import Run
from support.rungs import rung_order
from support.spec import load_spec

KIT = Path(__file__).resolve().parents[1] / "fixtures/data/shapes"
SPEC = load_spec("shapes_d0")
SMALL = SPEC.model_copy(update={"model": SPEC.model.model_copy(update={"image_size": 128})})
IMAGES = 5
MACHINE = Capabilities(
    host="bench", cpu="a processor", cores=2, memory_gib=8, system="Linux", python="3.11", packages={"numpy": "2.4"}
)


# Heads that depend on the mean of each image alone.
class Device(Backend):
    timer, includes_copies = "a test", False

    def __init__(self, batch, calls, drift=0.0, bias=0.0):
        self._batch, self._calls, self._drift, self._bias = batch, calls, drift, bias

    def _open(self):
        self._calls.append([])
        shapes = head_shapes(SMALL.model, self._batch)
        rng = np.random.default_rng(3)
        self._base = [rng.normal(-4, 1.5, shape[1:]).astype(np.float32)[None] for shape in shapes]
        outputs = tuple(TensorInfo(f"out_{place}", shape, "float32") for place, shape in enumerate(shapes))
        return TensorInfo("x", (self._batch, 3, 128, 128), "float32"), outputs

    def _run(self, tensor):
        means = tensor.mean(axis=(1, 2, 3), keepdims=True)
        self._calls[-1].append(means.ravel())
        slots = np.arange(self._batch, dtype=np.float32)[:, None, None, None] * np.float32(self._drift)
        slots = slots + np.float32(self._bias)
        return {f"out_{place}": base + means + slots for place, base in enumerate(self._base)}

    def _close(self):
        pass


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(support.devices, "open_on_chip", lambda model, chip: Device(int(model.path.stem), found))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for batch in (1, 4, 8):
        (folder / f"{batch}.onnx").write_text(f"model {batch}")
    return folder


@pytest.fixture
def start(store, tmp_path):
    def start(session="session", spec=SMALL, **options):
        asked = {
            "coco_root": KIT,
            "onnx": f"{store}/{{batch}}.onnx",
            "limit": IMAGES,
            "artifacts": store / "artifacts",
            "batch_sizes": (1, 4),
        }
        chosen = RunOptions(spec="shapes_d0", **(asked | options))
        return Run(chosen, spec, MACHINE, tmp_path / session, SilentProgress(), real_host())

    return start


def test_a_run_touches_nothing_before_it_is_asked(start, tmp_path):
    run = start(coco_root=tmp_path / "nowhere", onnx="nowhere", artifacts=tmp_path / "store", chip="T4")
    Results(run)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoDataError):
        run.require_dataset()
    with pytest.raises(NoDataError, match="there is no model nowhere"):
        run.model(1)
    with pytest.raises(NoDeviceError, match="no T4 on this host"):
        _ = run.devices.chip


def test_a_limited_run_says_how_much_it_covers(start):
    run = start()
    assert run.images == (IMAGES, 133)
    assert len(run.feed) == len(run.dataset.images) == IMAGES
    assert len(run.whole_dataset.images) == 133
    assert len(start(limit=None).dataset.images) == 133


def test_a_pass_is_measured_once_in_a_session_and_anew_in_the_next(start, calls):
    first = start()
    one = first.candidate(4)
    assert first.candidate(4) is one
    assert len(calls) == 1
    worker = start().candidate(4)
    assert len(calls) == 1
    np.testing.assert_array_equal(worker.detections.scores, one.detections.scores)
    assert worker.timing == one.timing
    start(session="another").candidate(4)
    assert len(calls) == 2


def test_a_pass_covers_all_images_after_its_warm_up(start, calls):
    run = start()
    found = run.candidate(4)
    assert found.detections.images.tolist() == [image.id for image in run.dataset.images]
    assert [call.images for call in found.timing.calls] == [4, 1]
    assert len(found.timing.warm_up) == SPEC.throughput.warm_up_calls
    assert len(calls[0]) == SPEC.throughput.warm_up_calls + 2


def test_a_second_look_uses_another_session_other_neighbours_and_a_full_batch_of_one_image(start, calls):
    run = start()
    run.candidate(4)
    again = run.recheck(4)
    assert len(calls) == 2
    ids = [image.id for image in run.dataset.images]
    assert again.detections.images.tolist() == ids[::-1]
    assert again.slot_error == 0
    assert len(set(calls[1][-1].tolist())) == 1
    matches = Results(run).between_passes(4)
    assert len(matches.image_ids) > IMAGES
    assert (matches.unmatched, np.abs(matches.score_changes).max()) == (0, 0)


def test_a_device_whose_slots_differ_is_seen(start, monkeypatch):
    monkeypatch.setattr(support.devices, "open_on_chip", lambda model, chip: Device(4, [], drift=0.25))
    assert start().recheck(4).slot_error == pytest.approx(0.75)


def test_a_failure_of_the_device_fails_once(start, monkeypatch):
    opened = []

    def broken(model, chip):
        opened.append(chip.name)
        raise NoDeviceError("the driver is gone")

    monkeypatch.setattr(support.devices, "open_on_chip", broken)
    run = start()
    results = Results(run)
    for ask in (run.candidate, results.candidate, results.throughput):
        with pytest.raises(NoDeviceError, match="the driver is gone"):
            ask(4)
    assert opened == ["cpu"]


def test_batch_sizes_are_compared_with_the_smallest_other_one(start, calls):
    run = start(batch_sizes=(1, 4, 8))
    results = Results(run)
    for batch, other in ((1, 4), (4, 1), (8, 1)):
        matches = results.between_batches(batch)
        assert matches.reference is run.candidate(other).detections
        assert matches.candidate is run.candidate(batch).detections
        assert matches.unmatched == 0
    assert sorted(len(call[0]) for call in calls) == [1, 4, 8]


def test_one_batch_size_cannot_be_compared(start, calls):
    with pytest.raises(PartialRunError, match="batch 4 is the only one"):
        Results(start(batch_sizes=(4,))).between_batches(4)
    assert calls == []


def test_every_batch_size_of_the_run_has_a_throughput(start, calls):
    results = Results(start())
    found = [results.throughput(batch) for batch in (1, 4)]
    assert [(estimate.batch, estimate.calls, estimate.images) for estimate in found] == [(1, 5, 5), (4, 2, 5)]


def test_a_second_look_adds_a_pass_to_the_first_beside_one_image_repeated(start, calls):
    results = Results(start())
    first, second = (results.speed.passes(4, looks) for looks in (1, 2))
    assert [len(timing.passes) for timing in (first, second)] == [1, 2]
    assert second.further[0].calls != second.calls
    assert second.looks(1) == first
    assert len(second.repeats.repeated) == SPEC.throughput.repeat_calls
    # Of two calls on new images the first is left out, and the first on the image that is then repeated counts.
    assert len(second.repeats.fresh) == 2


def test_a_look_is_shared_by_the_workers_of_a_session(start, calls):
    first = start().look(4, 2)
    assert start().look(4, 2) == first
    assert len(calls) == 1
    assert start().look(4, 3) != first


def test_what_else_the_machine_did_is_kept_with_the_pass(start, calls):
    load = start().candidate(4).timing.load
    assert [sample.when for sample in load] == ["before", "after"]
    assert load[1].load_average is not None


# -- stages, kept from run to run --------------------------------------------------------------------------------------


@pytest.fixture
def rungs(start, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(support.run, "OnnxCpuBackend", lambda path: Device(4, found))

    def rung(spec=SMALL, **options):
        run = start(spec=spec, **options)
        model = SimpleNamespace(path=tmp_path / "raw.onnx", sha256="2" * 64)
        monkeypatch.setattr(run.built, "stage", lambda name, batch: model)
        run.stage_pass("raw onnx")
        return len(found)

    return rung


def test_a_stage_is_measured_once_for_all_sessions_until_something_that_decides_it_changes(rungs, tmp_path):
    fresh = {"artifacts": tmp_path / "artifacts"}
    looser = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"iou_threshold": 0.6})})
    assert [rungs(**fresh), rungs(session="another", **fresh)] == [1, 1]
    assert rungs(looser, **fresh) == 2
    assert rungs(limit=IMAGES - 1, **fresh) == 3


def test_a_stage_is_measured_anew_when_the_code_changes(rungs, tmp_path, monkeypatch):
    fresh = {"artifacts": tmp_path / "artifacts"}
    assert rungs(**fresh) == 1
    monkeypatch.setattr(support.run, "measuring_code", lambda: "another")
    assert rungs(**fresh) == 2


@pytest.fixture
def golden_calls(start, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(support.run, "OnnxCpuBackend", lambda path: Device(4, found))

    def golden_calls(sha256="2" * 64, **options):
        run = start(artifacts=tmp_path / "artifacts", **options)
        model = SimpleNamespace(path=tmp_path / "raw.onnx", sha256=sha256)
        monkeypatch.setattr(run.built, "stage", lambda name, batch: model)
        assert run.stage_heads("raw onnx", 4).batch == SMALL.accuracy.golden_images
        return [len(device) for device in found]

    return golden_calls


def test_raw_heads_of_a_stage_are_those_of_the_golden_images_measured_once_for_all_sessions(golden_calls):
    assert golden_calls() == [1]
    assert golden_calls(session="another") == [1]
    assert golden_calls(sha256="3" * 64) == [1, 1]


# -- a reference from elsewhere ----------------------------------------------------------------------------------------


@pytest.fixture
def bundle(start, tmp_path):
    def bundle(golden_ids=None):
        run = start(session="recording")
        ids = run.feed.image_ids.tolist()
        with Device(4, []) as device:
            plan = run._plan(range(len(run.feed)), "reference", "cpu")
            measured = support.run.run_pass(run.feed, device, run._decoder, SMALL.model, plan, SilentProgress())
        facts = {
            "spec_name": SMALL.name,
            "spec_version": SMALL.version,
            "model_digest": model_digest(SMALL.model),
            "checkpoint_sha256": SMALL.checkpoint.sha256,
            "checkpoint_known_as": "",
            "annotation_digest": run.whole_dataset.annotation_digest,
            "size_digest": run.whole_dataset.size_digest,
            "input_checksums": dict(zip(ids, run.feed.checksums.tolist(), strict=True)),
            "golden_ids": golden_ids or tuple(ids[: SMALL.accuracy.golden_images]),
            "ap": 1.0,
            "runtime": {},
        }
        write_reference(tmp_path / "bundle", measured.detections, measured.golden, facts)
        return tmp_path / "bundle"

    return bundle


def test_the_same_numbers_agree_with_their_reference(start, bundle, calls):
    results = Results(start(reference=bundle()))
    assert results.reference.figures == results.candidate(4).figures
    assert results.golden.batch == SMALL.accuracy.golden_images
    matches = results.with_reference(4)
    assert len(matches.image_ids) > IMAGES
    assert (matches.unmatched, np.abs(matches.score_changes).max()) == (0, 0)


@pytest.mark.usefixtures("calls")
def test_a_reference_with_too_few_images_is_refused(start, bundle):
    results = Results(start(reference=bundle(), limit=IMAGES + 1))
    with pytest.raises(WrongDataError, match="1 images are not among these detections"):
        _ = results.reference


def test_a_reference_of_another_checkpoint_is_refused(start, bundle):
    pinned = SMALL.model_copy(update={"checkpoint": SMALL.checkpoint.model_copy(update={"sha256": "0" * 64})})
    run = start(reference=bundle(), spec=pinned)
    with pytest.raises(WrongDataError, match="recorded with another checkpoint"):
        _ = run.reference


def test_a_reference_of_another_checkpoint_than_the_one_that_models_are_built_from_is_refused(
    start, bundle, monkeypatch
):
    monkeypatch.setattr("support.checkpoint.load_checkpoint", lambda *_: SimpleNamespace(sha256="1" * 64))
    unpinned = SMALL.model_copy(update={"checkpoint": SMALL.checkpoint.model_copy(update={"sha256": None})})
    assert start(reference=bundle(), spec=unpinned).reference
    with pytest.raises(WrongDataError, match=rf"recorded with another checkpoint: .*\n  required: {'1' * 64}"):
        _ = start(reference=bundle(), spec=unpinned, onnx=None).reference


def test_a_reference_is_recorded_with_all_models_of_its_checkpoint(start, bundle, tmp_path, monkeypatch):
    target = tmp_path / "published"
    run = start(reference=bundle(), record_reference=target)
    monkeypatch.setattr(run.built, "modified", lambda batch: SimpleNamespace(sha256=f"{batch:064}"))
    run.record_reference()
    assert open_reference(target).facts.artifacts == {f"bs{batch}": f"{batch:064}" for batch in SMALL.batch_sizes}
    start(reference=bundle()).record_reference()


def test_golden_heads_of_other_images_are_no_reference(start, bundle):
    results = Results(start(reference=bundle(golden_ids=(1, 2))))
    with pytest.raises(NoReferenceError, match=r"golden images \(1, 2\)"):
        _ = results.golden


# -- early rungs -------------------------------------------------------------------------------------------------------

# Two rungs on five images: of 2 and of 4 in batches of 1, only of 2 in batches of 4.
CLIMBING = SMALL.model_copy(
    update={"rungs": SMALL.rungs.model_copy(update={"images": 2, "share": 0.9, "image_detections": 1})}
)


def test_rungs_come_first_on_the_model_that_is_open_already(start, bundle, calls):
    found = start(reference=bundle(), spec=CLIMBING).candidate(1)
    (inputs,) = calls
    order = rung_order(open_dataset(KIT, SPEC.dataset).limited(IMAGES), 128)
    means = dict(zip(found.detections.images.tolist(), np.ravel(inputs[-IMAGES:]), strict=True))
    assert np.ravel(inputs[:4]).tolist() == [means[image] for image in order[:4]]
    assert len(inputs) == 4 + SPEC.throughput.warm_up_calls + IMAGES
    assert len(found.timing.calls) == IMAGES


def hopeless(monkeypatch, calls):
    opened = lambda model, chip: Device(int(model.path.stem), calls, bias=2.0)  # noqa: E731
    monkeypatch.setattr(support.devices, "open_on_chip", opened)


def test_a_hopeless_candidate_is_rejected_once_and_costs_no_pass(start, bundle, calls, monkeypatch):
    reference = bundle()
    hopeless(monkeypatch, calls)
    run = start(reference=reference, spec=CLIMBING)
    results = Results(run)
    for ask in (results.candidate, run.timed, results.with_reference, results.throughput):
        with pytest.raises(RejectedEarlyError, match="rejected early at batch 1: 2 of 5 images were enough"):
            ask(1)
    assert [len(inputs) for inputs in calls] == [2]


def test_without_rungs_a_hopeless_candidate_runs_through(start, bundle, calls, monkeypatch):
    reference = bundle()
    hopeless(monkeypatch, calls)
    assert len(start(reference=reference, spec=CLIMBING, rungs="off").candidate(1).detections.images) == IMAGES


def test_a_candidate_without_a_reference_runs_through(start, calls, tmp_path, monkeypatch):
    hopeless(monkeypatch, calls)
    run = start(checkpoint=tmp_path / "nothing.pth", spec=CLIMBING)
    assert len(run.candidate(1).detections.images) == IMAGES
    assert len(calls[0]) == SPEC.throughput.warm_up_calls + IMAGES


def test_the_checkpoint_sees_the_images_of_the_rungs_alone_and_once(start, calls, tmp_path, monkeypatch):
    asked = []

    def checkpoint_pass(run, rows, title):
        asked.append((len(rows), title))
        with Device(4, []) as device:
            return support.run.run_pass(
                run.feed, device, run._decoder, SMALL.model, run._plan(rows, title), run.progress
            )

    monkeypatch.setattr("support.checkpoint.load_checkpoint", lambda *_: SimpleNamespace(sha256="1" * 64))
    monkeypatch.setattr(Run, "_checkpoint_pass", checkpoint_pass)
    for session in ("first", "second"):
        run = start(session=session, spec=CLIMBING, artifacts=tmp_path / "artifacts")
        run.candidate(4)
        run.candidate(1)
    assert asked == [(2, "checkpoint in PyTorch, 2 images"), (4, "checkpoint in PyTorch, 4 images")]


def test_the_interval_of_ap_compares_with_the_checkpoint(start, bundle, calls):
    found = Results(start(reference=bundle())).ap_interval(4)
    assert (found.difference, found.low, found.high, found.resamples) == (0, 0, 0, 1000)


# -- what is asked only when something is red --------------------------------------------------------------------------


def test_overflow_is_looked_for_at_the_smallest_batch_size(start, monkeypatch):
    seen = []

    def overflowing(model, tensor, kept_types):
        seen.append((model, tensor.shape, kept_types))
        return ("overflow: ReduceMeanD", "overflow: Conv2D")

    monkeypatch.setattr("support.ascend.overflow.overflowing", overflowing)
    monkeypatch.setattr(Run, "onnx", lambda run, batch: f"graph of batch {batch}")
    assert start(chip="310P3", batch_sizes=(1, 4)).overflow(2) == "overflow: ReduceMeanD"
    assert seen == [("graph of batch 1", (1, 3, 128, 128), ("ReduceMeanD",))]
    assert start(chip="cpu").overflow(2) == ""
    assert start(chip="310P3", onnx=None, om="d0_{batch}.om").overflow(2) == ""
    assert len(seen) == 1
