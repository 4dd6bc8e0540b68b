import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from support import errors
from support.agreement import match
from support.capabilities import probe
from support.detections import COLUMNS
from support.measurements import agreement, om, tensors
from support.options import RunOptions
from support.progress import SilentProgress
from support.run import Run
from support.simulator.atc import main as atc
from support.simulator.host import Simulation, simulated_host
from support.spec import load_spec
from support.stages.om_from_onnx import om_path
from support.verdict import failure, judge

pytestmark = [pytest.mark.slow, pytest.mark.needs_torch]

KIT = Path(__file__).resolve().parents[1] / "fixtures/data/shapes"
#: First an image whose squeeze-and-excite sums do not fit into half precision, then some in which they do.
IMAGES = (196588, 196597, 203915, 207693, 212372)
#: Leaves a tail of one image.
BATCH = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    truth = json.loads((KIT / "annotations/instances_val2017.json").read_text())
    truth["images"] = [image for image in truth["images"] if image["id"] in IMAGES]
    truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in IMAGES]
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(truth))
    for image in truth["images"]:
        shutil.copy(KIT / "val2017" / image["file_name"], root / "val2017")
    return root


@pytest.fixture(scope="module")
def spec(world):
    kit = load_spec("shapes_d0")
    dataset = {"image_count": len(IMAGES), "annotation_digest": None, "size_digest": None}
    return kit.model_copy(
        update={
            "dataset": kit.dataset.model_copy(update=dataset),
            "accuracy": kit.accuracy.model_copy(update={"golden_images": 1}),
            "throughput": kit.throughput.model_copy(update={"comparison_images": len(IMAGES)}),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def start(world, spec, store, tmp_path):
    def start(chip="sim:310P3,v2", *, spec=spec, session="session", **options):
        chosen = RunOptions(
            **{"chip": chip, "coco_root": world, "artifacts": store, "batch_sizes": (1, BATCH), **options}
        )
        session_folder = tmp_path / session
        session_folder.mkdir(exist_ok=True)
        host = simulated_host(session_folder / "host", chosen.simulation)
        return Run(chosen, spec, probe(timeout=30, host=host), session_folder, SilentProgress(), host)

    return start


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in (*COLUMNS, "images"))


def reason(run, act):
    with pytest.raises(errors.SuiteError) as caught:
        act(run)
    return failure("coverage", caught.value).reason, str(caught.value)


# -- every generation and both routes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detections(world, spec, store, tmp_path_factory):
    found = {}
    for generation in ("v1", "v2", "v3"):
        for route in ("worker", "files"):
            folder = tmp_path_factory.mktemp(f"{generation}-{route}")
            options = RunOptions(chip=f"sim:310P3,{generation}", coco_root=world, artifacts=store, route=route)
            host = simulated_host(folder / "host", options.simulation)
            run = Run(options, spec, probe(timeout=30, host=host), folder, SilentProgress(), host)
            found[generation, route] = run.candidate(BATCH)
    return found


@pytest.mark.nightly
def test_every_generation_gives_the_same_detections_by_both_routes(detections):
    first, *others = detections.values()
    assert len(first.detections.images) == len(IMAGES)
    assert len(first.detections.scores) > len(IMAGES)
    assert all(same(first.detections, other.detections) for other in others)


@pytest.mark.nightly
def test_every_generation_tells_the_time_of_every_call(detections):
    for measured in detections.values():
        seconds = [call.seconds for call in measured.timing.calls]
        assert [call.images for call in measured.timing.calls] == [4, 1]
        # 260 images a second at batch 4 in the published table.
        assert seconds == pytest.approx([BATCH / 260] * 2, rel=0.01)
        assert not measured.timing.includes_copies
        assert "compute only" in measured.timing.timer


@pytest.mark.nightly
def test_several_devices_share_a_pass_and_one_is_timed_alone(start, detections):
    run = start("sim:310P3,v2,devices=2", device_ids=(0, 1))
    assert same(run.candidate(1).detections, start(session="one").candidate(1).detections)
    assert run.devices.several
    assert same(run.timed(1).detections, run.candidate(1).detections)
    assert len(run.timed(1).timing.calls) == len(IMAGES)


def test_a_clean_compiled_model_keeps_its_contract(start, spec):
    run = start()
    measurement = contract(run, spec)
    assert judge("om_contract", spec.clauses["om_contract"], measurement).word == "accepted"
    assert "16 ReduceMeanD" in measurement.findings[0]
    again, first = run.recheck(BATCH), run.candidate(BATCH).detections
    assert again.slot_error == 0
    assert all(same(again.detections.of(image), first.of(image)) for image in IMAGES)


def contract(run, spec, batch=BATCH):
    return om.om_contract(
        run.loaded(batch),
        run.om_facts(batch),
        spec.model,
        batch=batch,
        soc_version="Ascend310P3",
        fp32_types=spec.atc.kept_types,
    )


# -- mixed precision ---------------------------------------------------------------------------------------------------


def without_list(spec):
    return spec.model_copy(update={"atc": spec.atc.model_copy(update={"modify_mixlist": {}})})


def raw_heads(run, spec):
    from support.results import Results

    return tensors.stage_tensors(
        Results(run).golden,
        run.candidate(BATCH).golden,
        pads_kept=False,
        precision=run.precision,
        suspect=lambda: run.overflow(row=0),
    )


def test_with_the_list_raw_heads_agree_in_mixed_precision(start, spec):
    assert judge("stage_tensors", spec.clauses["stage_tensors"], raw_heads(start(), spec)).word == "accepted"


def test_without_the_list_the_model_overflows_and_overflow_is_the_first_suspect(start, spec):
    with pytest.raises(errors.ContractViolationError) as caught:
        start(spec=without_list(spec)).candidate(BATCH)
    verdict = failure("coverage", caught.value)
    assert verdict.word == "rejected"
    assert f"image {IMAGES[0]}: output" in verdict.findings[0]
    assert verdict.suspect.startswith("overflow: ReduceMeanD /backbone/blocks.0/blocks.0.0/se/ReduceMean sums to ")


def test_a_runtime_that_saturates_does_not_hide_the_overflow(start, spec):
    run = start("sim:310P3,v3", spec=without_list(spec))
    verdict = judge("stage_tensors", spec.clauses["stage_tensors"], raw_heads(run, spec))
    assert verdict.word == "rejected"
    assert verdict.suspect.startswith("overflow: ReduceMeanD")


def test_a_compiler_that_ignores_the_list_is_found_out(start, spec, tmp_path):
    run = start("sim:310P3,v2,fault=mixlist-ignored", artifacts=tmp_path / "store", onnx=str(tmp_path / "{batch}.onnx"))
    shutil.copy(start(session="other").built.modified(1).path, tmp_path / "1.onnx")
    measurement = contract(run, spec, batch=1)
    assert judge("om_contract", spec.clauses["om_contract"], measurement).word == "rejected"
    assert "16 of 16 ReduceMeanD compute in half precision" in measurement.findings[0]


# -- prebuilt models that must not pass --------------------------------------------------------------------------------


@pytest.fixture
def compiled(start, tmp_path, monkeypatch):
    """Compile the kit's model with other options, as somebody might have."""

    def compiled(*options, batch=BATCH, soc="Ascend310P3", name=BATCH):
        source = start(session="source").built.modified(batch).path
        (tmp_path / "ops.json").write_text('{"black-list": {"to-add": ["ReduceMeanD"]}}')
        arguments = [
            "--framework=5",
            f"--model={source}",
            f"--output={tmp_path / f'd0_bs{name}'}",
            f"--soc_version={soc}",
            "--precision_mode=allow_mix_precision",
            f"--modify_mixlist={tmp_path / 'ops.json'}",
            *options,
        ]
        host = simulated_host(tmp_path / "compiling", Simulation("310P3"))
        monkeypatch.setenv("ASCEND_SIMULATED_HOST", host.env["ASCEND_SIMULATED_HOST"])
        assert atc(arguments) == 0
        return str(tmp_path / "d0_bs{batch}.om")

    return compiled


def test_a_good_prebuilt_model_passes(start, spec, compiled):
    run = start(om=compiled())
    assert judge("om_contract", spec.clauses["om_contract"], contract(run, spec)).word == "accepted"
    assert len(run.candidate(BATCH).detections.images) == len(IMAGES)


def test_another_batch_size_under_this_name_is_rejected(start, compiled):
    run = start(om=compiled(batch=1))
    with pytest.raises(
        errors.ContractViolationError, match=r"the model given for batch 4 takes batch 1\n.*\n.*wrong name"
    ):
        run.candidate(BATCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output_type=FP16"], "is float16\n  required: float32"),
        (["--input_shape=x.1:-1,3,512,512", "--dynamic_batch_size=1,4"], "is dynamic\n  required: a static shape"),
        (["--insert_op_conf={aipp}"], "is uint8\n  required: float32"),
    ],
    ids=["fp16 outputs", "dynamic batch", "aipp"],
)
def test_a_model_of_another_interface_is_rejected(start, compiled, tmp_path, options, message):
    (tmp_path / "aipp.cfg").write_text("aipp_op { aipp_mode: static }")
    run = start(om=compiled(*(option.format(aipp=tmp_path / "aipp.cfg") for option in options)))
    with pytest.raises(errors.ContractViolationError, match=message):
        run.candidate(BATCH)
    assert failure("om_contract", _error(lambda: run.loaded(BATCH))).word == "rejected"


def _error(act):
    with pytest.raises(errors.SuiteError) as caught:
        act()
    return caught.value


def test_a_model_for_another_chip_is_not_accepted(start, spec, compiled):
    run = start(om=compiled(soc="Ascend310"))
    assert reason(run, lambda run: run.candidate(BATCH))[0] == "tool-error"
    facts = run.om_facts(BATCH)
    assert facts.soc_version == "Ascend310"


def test_one_size_of_another_checkpoint_is_rejected(start, spec, compiled, tmp_path):
    import onnx
    from onnx import numpy_helper

    template = compiled()
    compiled(batch=1, name=1)
    model = onnx.load(start(session="source").built.modified(1).path)
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [810]:
            values = numpy_helper.to_array(tensor) - 0.7
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    output, source = tmp_path / "d0_bs1", tmp_path / "other.onnx"
    command = ["--framework=5", f"--model={source}", f"--output={output}", "--soc_version=Ascend310P3"]
    assert atc([*command, "--precision_mode=force_fp32"]) == 0
    run = start(om=template)
    pairs = match(run.candidate(1).detections, run.candidate(BATCH).detections, spec.accuracy, 100)
    measurement = agreement.batch_invariance(pairs, 0.0, len(IMAGES), precision="mixed")
    assert judge("batch_invariance", spec.clauses["batch_invariance"], measurement).word == "rejected"


def test_a_damaged_model_is_no_model(start, compiled, tmp_path):
    run = start(om=compiled())
    path = tmp_path / f"d0_bs{BATCH}.om"
    path.write_bytes(path.read_bytes()[:-100])
    word, text = reason(run, lambda run: run.candidate(BATCH))
    assert word == "tool-error"
    assert "cannot be loaded" in text


# -- a host or a device with a fault -----------------------------------------------------------------------------------


def impatient(spec):
    return spec.model_copy(update={"timeouts": spec.timeouts.model_copy(update={"infer_call": 4.0})})


@pytest.mark.parametrize(
    ("fault", "word", "text"),
    [
        ("hang", "timeout", "took longer than 4 s"),
        ("crash", "device-lost", "the process of the runtime ended with signal 6"),
        ("crash-at-load", "device-lost", "in loading the model"),
        ("no-memory", "no-space", "too little memory"),
        ("vanish", "device-lost", "507899"),
        ("busy", "busy-device", "999983 python3"),
        ("job-starts", "busy-device", "999983 python3"),
        ("alarm", "no-device", "health"),
        ("renumbered", "wrong-device", "ASCEND_RT_VISIBLE_DEVICES"),
        ("not-sourced", "tool-error", "libascendcl"),
    ],
)
def test_a_fault_of_the_host_ends_in_its_reason(start, spec, fault, word, text):
    run = start(f"sim:310P3,v3,fault={fault}", spec=impatient(spec))
    found, message = reason(run, lambda run: run.candidate(1))
    assert (found, text in message) == (word, True), message


def test_without_a_compiler_nothing_is_built_but_prebuilt_models_run(start, spec, compiled, tmp_path):
    assert (
        reason(start("sim:310P3,fault=no-atc", artifacts=tmp_path / "s"), lambda run: run.model(1))[0] == "tool-error"
    )
    run = start("sim:310P3,fault=no-atc", session="prebuilt", om=compiled())
    assert run.om_facts(BATCH) is None
    measurement = contract(run, spec)
    assert judge("om_contract", spec.clauses["om_contract"], measurement).word == "accepted"
    assert "not-verified" in measurement.findings[0]


def test_a_busy_device_may_be_measured_if_that_is_said(start):
    from support.ascend.busy import busy_notes

    run = start("sim:310P3,v3,fault=busy", allow_busy=True)
    assert len(run.candidate(BATCH).detections.images) == len(IMAGES)
    assert "999983 python3" in busy_notes(run._session.root)[0]


def test_outputs_of_the_call_before_are_found_out(start, spec):
    run = start("sim:310P3,v2,fault=previous-outputs")
    pairs = match(run.recheck(1).detections, run.candidate(1).detections, spec.accuracy, 100)
    measurement = agreement.timed_outputs(pairs, spec.throughput, precision="mixed", expected=len(IMAGES))
    assert measurement.values["mixed_different_images"] >= len(IMAGES) - 1


def left():
    return {path for place in (tempfile.gettempdir(), "/dev/shm") for path in Path(place).glob("acceptance-*")}


def test_a_crash_leaves_nothing_behind(start):
    before = left()
    assert reason(start("sim:310P3,v3,fault=crash"), lambda run: run.candidate(1))[0] == "device-lost"
    assert left() <= before


# -- result files from elsewhere ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(world, spec, store, tmp_path_factory):
    """Result files as the guide's own commands leave them."""
    from support.ascend.bench_cli import bench_arguments
    from support.ascend.processes import run_tool
    from support.bins import write_bins

    folder = tmp_path_factory.mktemp("results")
    options = RunOptions(chip="sim:310P3,v3", coco_root=world, artifacts=store)
    host = simulated_host(folder / "host", options.simulation)
    run = Run(options, spec, probe(timeout=30, host=host), folder, SilentProgress(), host)
    write_bins(run.feed, run.dataset, folder / "bins", SilentProgress())
    (folder / "result").mkdir(mode=0o750)
    arguments = bench_arguments(
        run.devices.ascend.bench,
        om=om_path(run.model(BATCH)).resolve(),
        inputs=folder / "bins",
        output=folder / "result",
        dirname=f"bs{BATCH}",
        device_id=0,
        batch=BATCH,
    )
    done = run_tool([*run.devices.ascend.bench.command, *arguments], env=host.env, timeout=120)
    assert done.status == 0, done.output
    return folder / "result"


@pytest.mark.nightly
def test_result_files_give_the_detections_and_the_time_of_the_device(start, written, detections):
    run = start(results=str(written), batch_sizes=(BATCH,))
    measured = run.candidate(BATCH)
    assert same(measured.detections, detections["v3", "files"].detections)
    assert [call.images for call in measured.timing.calls] == [4, 1]
    assert run.timed(BATCH) is measured
