import json
import os
import shlex
import sys
from pathlib import Path

import psutil
import pytest
from onnx import TensorProto, helper

from support.artifacts import Artifact, ArtifactStore, file_sha256
from support.ascend.host import AscendHost
from support.ascend.om_facts import read_om
from support.candidate import given_model
from support.errors import BuildFailedError, NoDataError, SuiteTimeoutError, ToolError
from support.onnx_files import load_onnx, save_onnx
from support.progress import SilentProgress
from support.simulator.host import Simulation, simulated_host
from support.stages.om_from_onnx import om_from_onnx, om_path
from support.stages.pad_example import pad_example

# Compiles whatever it is given; the model tells the options that decide it.
GOOD = """
import json, os, sys, time
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with open(os.path.dirname(sys.argv[0]) + "/pid", "w") as pid:
    pid.write(str(os.getpid()))
with open(options["output"] + ".om", "w") as om:
    om.write(options["input_shape"] + options["soc_version"])
os.makedirs(os.environ["ASCEND_PROCESS_LOG_PATH"])
print(os.getpid(), time.time(), "ATC run success, welcome to the next use.", flush=True)
"""
# The parent of the compiler is this process.
INTERRUPTED = GOOD + "import signal; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
HANGING = GOOD + "time.sleep(60)"
FAILING = GOOD + "print('E10016: Opname [x] specified in [--input_shape] is not found in the model'); sys.exit(255)"


class Bench:
    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.store = ArtifactStore(folder / "store", lock_seconds=30)
        self.env = {"PATH": str(folder)}

    def tool(self, script):
        path = self.folder / "atc"
        path.write_text(f"#!{sys.executable}\n{script}")
        path.chmod(0o755)

    def compile(self, source=None, *, soc_version="Ascend310P3", batch=1, timeout=30, host=None, **changes):
        options, host = self.options.model_copy(update=changes), host or AscendHost(self.env)
        source = source or pad_example()
        return om_from_onnx(self.store, source, host, soc_version, options, batch, timeout, SilentProgress())

    # Whatever is in the store, but for locks and empty folders.
    def left(self):
        root = self.store.root
        files = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path) for path in files}


@pytest.fixture
def bench(tmp_path, spec):
    bench = Bench(tmp_path, spec.atc)
    bench.tool(GOOD)
    return bench


def onnx_with_inputs(tmp_path, *shapes):
    model = load_onnx(pad_example().path)
    del model.graph.input[:]
    for place, shape in enumerate(shapes):
        model.graph.input.append(helper.make_tensor_value_info(f"x{place or ''}", TensorProto.FLOAT, shape))
    save_onnx(model, tmp_path / "other.onnx")
    return Artifact("onnx", tmp_path / "other.onnx", file_sha256(tmp_path / "other.onnx"), {}, ())


def is_running(bench):
    pid = int((bench.folder / "pid").read_text())
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_model_is_compiled_with_all_that_was_written_beside_it(bench):
    artifact = bench.compile()
    assert (artifact.kind, artifact.built, artifact.parents) == ("om", True, (pad_example().sha256,))
    written = {"model.om", "atc.log", "ops_info.json", "command.txt", "plog"}
    assert {path.name for path in artifact.path.iterdir()} == written
    assert om_path(artifact).read_text() == "x:1,3,8,8Ascend310P3"
    assert json.loads((artifact.path / "ops_info.json").read_text()) == {"black-list": {"to-add": ["ReduceMeanD"]}}
    assert "run success" in (artifact.path / "atc.log").read_text()
    assert all(artifact.path.parent in (bench.store.root / name).parents for name in bench.left())


def test_the_command_is_kept_and_names_files_as_absolute_paths(bench):
    artifact = bench.compile()
    command = artifact.made_by["facts"]["command"]
    assert shlex.split((artifact.path / "command.txt").read_text()) == command
    assert command[0] == "atc"
    assert command[2] == f"--model={pad_example().path.resolve()}"
    assert all(Path(part.split("=")[1]).is_absolute() for part in command if part.startswith(("--out", "--modify")))


def test_a_model_is_known_by_its_own_bytes_as_a_given_one_is(bench, tmp_path):
    artifact = bench.compile()
    other = Bench(tmp_path / "other", bench.options)
    other.env = bench.env
    again = other.compile()
    assert (artifact.path / "atc.log").read_text() != (again.path / "atc.log").read_text()
    assert artifact.sha256 == again.sha256 == given_model(str(om_path(artifact)), 1, "om").sha256


def test_nobody_else_may_write_to_a_model(bench):
    mask = os.umask(0)
    try:
        artifact = bench.compile()
    finally:
        os.umask(mask)
    assert om_path(artifact).stat().st_mode & 0o777 == 0o644


def test_a_second_call_compiles_nothing(bench):
    first = bench.compile()
    bench.tool("raise SystemExit(9)")
    again = bench.compile()
    assert (again.built, again.sha256, again.path) == (False, first.sha256, first.path)


@pytest.mark.parametrize(
    "changes", [{"soc_version": "Ascend310"}, {"precision_mode": "force_fp32"}, {"batch": 2}, {"modify_mixlist": {}}]
)
def test_whatever_decides_a_model_makes_another_one(bench, changes):
    assert bench.compile().path != bench.compile(**changes).path


def test_another_version_of_the_toolkit_compiles_again(bench, tmp_path):
    (tmp_path / "version.cfg").write_text("runtime_running_version=[1.84.15.1.310:6.0.1]\n")
    before = bench.compile()
    bench.env["ASCEND_TOOLKIT_HOME"] = str(tmp_path)
    after = bench.compile()
    assert before.path != after.path
    assert after.made_by["recipe"]["tools"] == {"cann": "6.0.1"}


def test_without_operators_to_keep_there_is_no_list(bench):
    artifact = bench.compile(modify_mixlist={})
    assert not (artifact.path / "ops_info.json").exists()
    assert "mixlist" not in (artifact.path / "command.txt").read_text()


def test_an_open_batch_becomes_the_one_asked_for(bench, tmp_path):
    source = onnx_with_inputs(tmp_path, ("N", 3, 8, 8))
    small, large = bench.compile(source, batch=4), bench.compile(source, batch=16)
    assert om_path(small).read_text().startswith("x:4,3,8,8")
    assert om_path(large).read_text().startswith("x:16,3,8,8")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3, "H", 8)], r"has an input x of the shape \[1, 3, 'H', 8\]\n  required: a fixed image size"),
        ([(1, 3, 8, 8), (1,)], r"has the inputs \['x', 'x1'\]\n  required: one input"),
        ([], r"has the inputs \[\]"),
    ],
)
def test_an_input_the_compiler_cannot_be_told_is_refused(bench, tmp_path, shapes, message):
    with pytest.raises(BuildFailedError, match=message):
        bench.compile(onnx_with_inputs(tmp_path, *shapes))
    assert bench.left() == set()


def test_a_failure_leaves_its_records_where_the_message_says_and_no_model(bench):
    bench.tool(FAILING)
    with pytest.raises(BuildFailedError, match=r"255: E10016: Opname \[x\] .*; its output is in (.*)\n") as caught:
        bench.compile()
    log = Path(caught.value.found.split("its output is in ")[1])
    assert "E10016" in log.read_text()
    assert {path.name for path in log.parent.iterdir()} == {"atc.log", "command.txt", "ops_info.json", "plog"}
    assert bench.left() == {str(path.relative_to(bench.store.root)) for path in log.parent.iterdir() if path.is_file()}


def test_a_success_takes_the_records_of_the_failure_before_it_away(bench):
    bench.tool(FAILING)
    with pytest.raises(BuildFailedError):
        bench.compile()
    bench.tool(GOOD)
    artifact = bench.compile()
    assert "E10016" not in (artifact.path / "atc.log").read_text()
    assert not list((bench.store.root / "logs").iterdir())


@pytest.mark.parametrize("script", [GOOD.replace("success", ""), "print('ATC run success')"])
def test_a_compiler_that_ends_well_without_a_good_model_leaves_none(bench, script):
    bench.tool(script)
    with pytest.raises(BuildFailedError, match="atc ended with 0, left"):
        bench.compile()
    assert not [name for name in bench.left() if name.endswith((".om", "artifact.json"))]


def test_a_compiler_that_hangs_is_killed_and_leaves_no_model(bench):
    bench.tool(HANGING)
    with pytest.raises(SuiteTimeoutError, match=r"atc had not ended after 2 s: .*run success"):
        bench.compile(timeout=2)
    assert not is_running(bench)
    assert not [name for name in bench.left() if not name.startswith("logs/")]
    bench.tool(GOOD)
    assert bench.compile().built


def test_an_interruption_kills_the_compiler_and_leaves_nothing(bench):
    bench.tool(INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        bench.compile()
    assert not is_running(bench)
    assert bench.left() == set()
    bench.tool(GOOD)
    assert bench.compile().built


def test_without_a_compiler_the_environment_is_to_be_sourced(bench):
    with pytest.raises(ToolError, match=r"atc is not on PATH\n.*set_env\.sh"):
        bench.compile(host=AscendHost({"PATH": ""}))


def test_the_simulated_compiler_accepts_the_command_and_tells_the_model(bench, tmp_path):
    host = simulated_host(tmp_path / "host", Simulation("310P3"))
    artifact = bench.compile(host=host)
    facts = read_om(host, om_path(artifact), timeout=60)
    assert [str(tensor) for tensor in facts.inputs] == ["x float32[1, 3, 8, 8]"]
    assert (facts.soc_version, facts.precision_mode) == ("Ascend310P3", "allow_mix_precision")


def test_a_given_model_is_found_by_its_batch_size(tmp_path):
    (tmp_path / "d0_bs8.om").write_bytes(b"om")
    artifact = given_model(f"{tmp_path}/d0_bs{{batch}}.om", 8, "om")
    assert om_path(artifact) == artifact.path == tmp_path / "d0_bs8.om"
    assert (artifact.kind, artifact.sha256, artifact.built) == ("om", file_sha256(artifact.path), False)


def test_a_given_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoDataError, match=r"there is no model .*/d0_bs16\.om\n.*--om=.*/d0_bs\{batch\}\.om"):
        given_model(f"{tmp_path}/d0_bs{{batch}}.om", 16, "om")
