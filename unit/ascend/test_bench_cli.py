import sys
from pathlib import Path

import pytest

from support.ascend.acl_python import AclPython
from support.ascend.bench_cli import BenchCli, bench_arguments, find_bench_cli
from support.ascend.host import AscendHost
from support.errors import ToolError
from support.simulator.host import Simulation, simulated_host

PYTHON = AclPython(Path(sys.executable), "3.11", "V3", "0.0.2")


def test_newer_generations_are_started_as_a_module_and_the_first_as_a_script(tmp_path):
    commands = {}
    for generation in ("V1", "V2", "V3"):
        host = simulated_host(tmp_path / generation, Simulation("310P3", generation=generation))
        commands[generation] = find_bench_cli(host, PYTHON, None, timeout=60)
    assert commands["V1"].command == (sys.executable, str(tmp_path.resolve() / "V1/bin/ais_infer.py"))
    assert commands["V2"].command == commands["V3"].command == (sys.executable, "-m", "ais_bench")
    assert "--infer_queue_count" in commands["V1"].options
    assert "--infer_queue_count" not in commands["V2"].options
    assert "--threads" in commands["V3"].options


def test_a_script_that_is_named_is_the_only_one_tried(tools, tmp_path):
    script = tmp_path / "ais_infer.py"
    script.write_text("print('--model --input --output --device')")
    assert find_bench_cli(tools(), PYTHON, script, timeout=60).command == (sys.executable, str(script))
    script.write_text("raise SystemExit('no frontend')")
    with pytest.raises(ToolError, match=r"ais_infer\.py --help: 1, no frontend\n.*--ais-infer=FILE"):
        find_bench_cli(tools(), PYTHON, script, timeout=60)


def test_without_any_the_message_tells_what_each_answered(tools):
    with pytest.raises(ToolError, match=r"neither ais_bench nor ais_infer\.py can be started: .*No module named"):
        find_bench_cli(AscendHost({"PATH": ""}), PYTHON, None, timeout=60)


def arguments(*options):
    cli = BenchCli(("python",), frozenset(options))
    places = {"om": Path("d0.om"), "inputs": Path("in"), "output": Path("out")}
    return bench_arguments(cli, **places, dirname="results", device_id=2, batch=8)


def test_only_options_the_tool_has_are_given():
    found = arguments("--model", "--input", "--output", "--output_dirname", "--outfmt", "--device", "--batchsize")
    assert dict(zip(found[::2], found[1::2], strict=True)) == {
        "--model": "d0.om",
        "--input": "in",
        "--output": "out",
        "--output_dirname": "results",
        "--outfmt": "BIN",
        "--device": "2",
        "--batchsize": "8",
    }
    assert "--batchsize" not in arguments("--model", "--input", "--output")
