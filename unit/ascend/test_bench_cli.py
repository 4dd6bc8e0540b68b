import sys
from pathlib import Path

import pytest

from support import errors
from support.ascend.acl_python import AclPython
from support.ascend.bench_cli import BenchCli, bench_arguments, explain_exit, find_bench_cli
from support.ascend.host import AscendHost
from support.ascend.processes import Finished
from support.simulator.host import Simulation, simulated_host

PYTHON = AclPython(Path(sys.executable), "3", "V2", "0.0.2")
GOOD = "print('usage: --model MODEL --input INPUT --output OUTPUT --batchsize N')"
CLI = BenchCli(("python", "-m", "ais_bench"), frozenset(("--model",)))


def found(host, script=None):
    return find_bench_cli(host, PYTHON, script, timeout=60)


@pytest.fixture
def host(tmp_path):
    """A host with an ``ais_bench`` module that runs some code, and a script of 2022 on PATH."""

    def host(module=None, script=None):
        (tmp_path / "bin").mkdir()
        if module is not None:
            (tmp_path / "ais_bench").mkdir()
            (tmp_path / "ais_bench/__main__.py").write_text(module)
        if script is not None:
            (tmp_path / "bin/ais_infer.py").write_text(script)
            (tmp_path / "bin/ais_infer.py").chmod(0o755)
        return AscendHost({"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(tmp_path)})

    return host


@pytest.mark.parametrize(
    ("generation", "ending"), [("v1", "bin/ais_infer.py"), ("v2", "ais_bench"), ("v3", "ais_bench")]
)
def test_the_tool_of_every_generation_is_found_with_its_options(tmp_path, generation, ending):
    cli = found(simulated_host(tmp_path, Simulation.parse(f"sim:310P3,{generation}")))
    assert cli.command[-1].endswith(ending)
    assert cli.name == Path(ending).name
    assert {"--model", "--output_dirname", "--outfmt", "--batchsize", "--device"} <= cli.options
    assert ("--infer_queue_count" in cli.options) == (generation == "v1")


def test_the_module_comes_before_the_script_on_path(host):
    assert found(host(GOOD, GOOD)).command == (str(PYTHON.path), "-m", "ais_bench")


def test_a_module_that_cannot_be_imported_leaves_the_script_on_path(host, tmp_path):
    cli = found(host("import aclruntime_of_another_python", GOOD))
    assert cli.command == (str(PYTHON.path), str(tmp_path / "bin/ais_infer.py"))


def test_a_script_that_is_named_is_the_only_one_tried(host, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    # It will be started in another folder.
    assert found(host(GOOD), Path("mine.py")).command == (str(PYTHON.path), str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("raise SystemExit('not this one')")
    with pytest.raises(errors.ToolError, match=r"mine\.py --help: 1, not this one\n.*--ais-infer=FILE"):
        found(AscendHost({"PYTHONPATH": str(tmp_path)}), Path("mine.py"))


def test_without_a_tool_the_message_tells_what_each_answered(host):
    with pytest.raises(errors.ToolError) as caught:
        found(host(script="print('usage: --something else')"))
    first, second = caught.value.found.splitlines()[1:]
    assert "-m ais_bench --help: 1, " in first
    assert "No module named ais_bench" in first
    assert second.endswith("ais_infer.py --help: 0, usage: --something else")
    assert "install the ais_bench wheel" in caught.value.remedy


GUIDE = {
    "--model": "m.om",
    "--input": "in",
    "--output": "out",
    "--output_dirname": "results",
    "--outfmt": "BIN",
    "--device": "3",
    "--batchsize": "8",
}


def arguments(*options):
    cli = BenchCli(("tool",), frozenset(options))
    paths = {"om": Path("m.om"), "inputs": Path("in"), "output": Path("out")}
    given = bench_arguments(cli, **paths, dirname="results", device_id=3, batch=8)
    return dict(zip(given[::2], given[1::2], strict=True))


def test_arguments_are_those_of_the_guide():
    assert arguments(*GUIDE, "--pipeline") == GUIDE


def test_an_option_that_the_help_does_not_list_is_not_given():
    few = ("--model", "--input", "--output")
    assert arguments(*few) == {name: GUIDE[name] for name in few}


def error_of(status, output):
    return explain_exit(CLI, Finished(("python",), status, output, 1.0))


@pytest.mark.parametrize(
    ("output", "kind", "found", "remedy"),
    [
        (
            "usage: ais_bench\nais_bench: error: unrecognized arguments: --infer_queue_count=1",
            errors.ToolError,
            "refuses its arguments",
            "--device-id",
        ),
        (
            "ais_bench: error: argument --output: permissions of /work are too wide",
            errors.ToolError,
            "refuses its arguments",
            "--scratch=DIR",
        ),
        (
            "[ERROR] arg0 tensorsize: 384 filesize: 100 not match\nTraceback\nRuntimeError",
            errors.ContractViolationError,
            "no whole number of these inputs",
            "float32 input",
        ),
        (
            "[ERROR] save out files error array shape:(2, 3) filesinfo:['a'] files_count_per_batch:4",
            errors.ContractViolationError,
            "no row for each image",
            "for this batch size",
        ),
        (
            "OSError: 400 requested and 0 written\n[Errno 28] No space left on device",
            errors.NoSpaceError,
            "full",
            "--scratch",
        ),
        ("numpy.core._exceptions._ArrayMemoryError", errors.NoSpaceError, "too little memory", "smaller batch"),
        ("ModuleNotFoundError: No module named 'tqdm'", errors.ToolError, "module is missing", "--acl-python"),
        ("ImportError: libascendcl.so: cannot open shared object file", errors.ToolError, "of CANN", "set_env.sh"),
        (
            "[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1\nRuntimeError: [1][ACL: inval",
            errors.ToolError,
            "cannot be loaded",
            "compile it for this chip",
        ),
        ("RuntimeError: please check model path", errors.ToolError, "refuses the path", "soft link"),
        (
            "[ERROR] Check i:0 name:x.1 in size:4 needsize:8 not match\nRuntimeError: [-1][ACL: general failure] ",
            errors.ContractViolationError,
            "input of another size",
            "for this batch size",
        ),
        ("[ERROR] acl execute failed:507015", errors.DeviceLostError, "AI core", "npu-smi"),
        ("RuntimeError: [107001][Error code unknown]", errors.NoDeviceError, "no device", "--device-id"),
        ("Traceback (most recent call last):\nRuntimeError", errors.ToolError, "ended with 1", "see what it said"),
    ],
)
def test_every_failure_names_its_cause_and_a_remedy(output, kind, found, remedy):
    error = error_of(1, output)
    assert type(error) is kind
    assert error.found.startswith("ais_bench")
    assert found in error.found
    assert output.splitlines()[-1].strip() in error.found
    assert remedy in error.remedy


def test_a_tool_that_was_killed_lost_the_device():
    error = error_of(-6, "[INFO] load model success")
    assert isinstance(error, errors.DeviceLostError)
    assert "ended by signal 6\n    [INFO] load model success" in error.found


def test_native_messages_are_quoted_and_frames_of_a_traceback_are_not():
    frames = "".join(f'  File "ais_bench/{n}.py", line {n}, in run\n    call()\n' for n in range(5))
    output = f"[ERROR] EE4001\nTraceback (most recent call last):\n{frames}RuntimeError: [1][ACL: inval\nlate\n"
    assert error_of(1, output).found.endswith(
        "ended with 1\n    [ERROR] EE4001\n    RuntimeError: [1][ACL: inval\n    late"
    )
