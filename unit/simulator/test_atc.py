import json
import os
import re
import subprocess

import onnx
import pytest
from onnx import helper

from support.ascend.atc_errors import explain
from support.ascend.om_facts import parse_om_json
from support.errors import BuildFailedError
from support.simulator.atc import main
from support.simulator.om import OmTensor, read_om

START = "ATC start working now, please wait for a moment."
SUCCESS = "ATC run success, welcome to the next use."
FAILURE = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"


def test_a_good_command_line_writes_the_model_of_its_batch_and_chip(toolchain, small, capsys):
    tools = toolchain()
    om = read_om(tools.compile(small()))
    assert capsys.readouterr().out.splitlines() == [START, SUCCESS]
    assert om.inputs == (OmTensor("x", (2, 3, 16, 16), "float32"),)
    assert om.outputs == (
        OmTensor("class_head:0:classes", (2, 6, 8, 8), "float32"),
        OmTensor("box_head:0:boxes", (2, 2, 8, 8), "float32"),
    )
    assert (om.soc_version, om.precision_mode, om.gears, om.aipp) == ("Ascend310P3", "allow_mix_precision", (), False)
    assert "squeeze" not in om.lowered
    assert "stem" in om.lowered
    assert om.command.startswith("atc.bin --framework=5 --model=")


def test_without_a_precision_mode_everything_is_lowered(toolchain, small):
    om = read_om(toolchain().compile(small(), precision_mode=None, modify_mixlist=None))
    assert om.precision_mode == "force_fp16"
    assert "squeeze" in om.lowered


def test_a_compiler_that_ignores_the_list_lowers_what_it_names(toolchain, small):
    assert "squeeze" in read_om(toolchain("sim:310P3,fault=mixlist-ignored").compile(small())).lowered


def test_the_list_may_name_a_type_this_compiler_does_not_use(toolchain, small):
    tools = toolchain()
    om = read_om(tools.compile(small(), modify_mixlist=tools.mixlist('{"black-list": {"to-add": ["ReduceMean"]}}')))
    assert "squeeze" in om.lowered


def test_operators_without_a_name_get_one(toolchain, small):
    model = small()
    for node in model.graph.node:
        node.name = ""
    om = read_om(toolchain().compile(model))
    assert "Conv_0" in om.lowered
    assert len(set(om.lowered)) == len(om.lowered) == 10


def test_an_open_batch_is_fixed_by_the_shape_that_is_asked_for(toolchain, small):
    model = small()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    om = read_om(toolchain().compile(model, input_shape="x:5,3,16,16"))
    assert [tensor.shape for tensor in (*om.inputs, *om.outputs)] == [(5, 3, 16, 16), (5, 6, 8, 8), (5, 2, 8, 8)]


def test_outputs_in_half_precision_are_compiled_as_asked(toolchain, small):
    om = read_om(toolchain().compile(small(), output_type="FP16"))
    assert {tensor.dtype for tensor in om.outputs} == {"float16"}


def test_a_model_of_several_batch_sizes_has_an_open_one(toolchain, small):
    om = read_om(toolchain().compile(small(), dynamic_batch_size="1,2,4", input_shape="x:-1,3,16,16"))
    assert om.gears == (1, 2, 4)
    assert [tensor.shape[0] for tensor in (*om.inputs, *om.outputs)] == [-1, -1, -1]


def test_a_model_that_takes_pixels_has_their_layout(toolchain, small, tmp_path):
    (tmp_path / "aipp.cfg").write_text("aipp_op { aipp_mode: static }")
    om = read_om(toolchain().compile(small(), insert_op_conf=tmp_path / "aipp.cfg"))
    assert om.inputs == (OmTensor("x", (2, 16, 16, 3), "uint8"),)
    assert om.aipp


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"framework": None}, "E10007"),
        ({"framework": "3"}, "E10001"),
        ({"model": "/nowhere/d0.onnx"}, "E10003"),
        ({"output": None}, "E10054"),
        ({"output": ""}, "E10004"),
        ({"output": "/nowhere/"}, "E10022"),
        ({"output": "/nowhere/d0"}, "E10003"),
        ({"soc_version": None}, "E10054"),
        ({"soc_version": "Ascend310P"}, "E20101"),
        ({"log": "all"}, "E10010"),
        ({"input_format": "NHWC"}, "E10001"),
        ({"mode": "3"}, "E10001"),
        ({"precision_mode": "fp16"}, "E10001"),
        ({"precision_mode": "force_fp16"}, "E10001"),
        ({"precision_mode": None}, "E10001"),
        ({"modify_mixlist": "/nowhere/ops_info.json"}, "E21001"),
        ({"input_shape": "x.1:2,3,16,16"}, "E10016"),
        ({"input_shape": "2,3,16,16"}, "E10002"),
        ({"input_shape": "x:2,3,16,y"}, "E10002"),
        ({"input_shape": "x:0,3,16,16"}, "E10011"),
        ({"input_shape": "x:4,3,16,16"}, "E10011"),
        ({"input_shape": "x:-1,3,16,16"}, "E10011"),
        ({"input_shape": "x:2,3,16"}, "E10049"),
        ({"output_type": "FP8"}, "E10001"),
        ({"dynamic_batch_size": "1,2"}, "E10001"),
        ({"dynamic_batch_size": "4", "input_shape": "x:-1,3,16,16"}, "E10001"),
        ({"insert_op_conf": "/nowhere/aipp.cfg"}, "E10052"),
    ],
)
def test_a_wrong_option_has_its_code_and_no_model(toolchain, small, capsys, changes, code):
    tools = toolchain()
    assert main(tools.arguments(small(), **changes), tools.description) == 255
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [START, FAILURE]
    assert f"({code}): " in lines[2]
    assert not (tools.folder / "small.om").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "E21002"),
        ("[]", "E20003"),
        ('{"blacklist": {"to-add": ["Conv2D"]}}', "E20003"),
        ('{"black-list": {"add": ["Conv2D"]}}', "E20003"),
        ('{"black-list": ["Conv2D"]}', "E20003"),
        ('{"black-list": {"to-add": "Conv2D"}}', "E20003"),
        ('{"black-list": {"to-add": [["Conv2D"]]}}', "E20003"),
        ('{"black-list": {"to-add": ["Conv2D"]}, "white-list": {"to-add": ["Conv2D"]}}', "E20003"),
    ],
)
def test_a_wrong_list_has_its_code(toolchain, small, capsys, content, code):
    tools = toolchain()
    assert main(tools.arguments(small(), modify_mixlist=tools.mixlist(content)), tools.description) == 255
    assert f"({code}): " in capsys.readouterr().out


def test_a_file_that_is_no_onnx_cannot_be_loaded(toolchain, capsys):
    tools = toolchain()
    assert main(tools.arguments(b"no onnx at all"), tools.description) == 255
    assert "(E10041): Failed to load model" in capsys.readouterr().out


@pytest.mark.parametrize(("generation", "code"), [("v1", "E19010"), ("v2", "E16002"), ("v3", "E16002")])
def test_an_operator_without_a_parser_is_named_with_the_code_of_the_time(toolchain, small, capsys, generation, code):
    tools, model = toolchain(f"sim:310P3,{generation}"), small()
    model.graph.node[1].CopyFrom(helper.make_node("HardSigmoid", ["stem"], ["swish.gate"], "hard"))
    assert main(tools.arguments(model), tools.description) == 255
    printed = capsys.readouterr().out
    assert code in printed
    assert "Op [hard, optype [ai.onnx::11::HardSigmoid]]" in printed


def test_an_old_compiler_does_not_know_newer_modes(toolchain, small, capsys):
    tools = toolchain("sim:310P3,v1")
    arguments = tools.arguments(small(), precision_mode="allow_mix_precision_fp16")
    assert main(arguments, tools.description) == 255
    assert "E10001: Value [allow_mix_precision_fp16] for parameter [--precision_mode]" in capsys.readouterr().out


@pytest.mark.parametrize("generation", ["v2", "v3"])
def test_a_newer_compiler_does(toolchain, small, generation):
    om = read_om(toolchain(f"sim:310P3,{generation}").compile(small(), precision_mode="allow_mix_precision_fp16"))
    assert om.precision_mode == "allow_mix_precision_fp16"
    assert "squeeze" not in om.lowered


@pytest.mark.parametrize(
    ("generation", "line"),
    [
        ("v1", r"E10016: Opname \[y\] specified"),
        ("v2", r"E10016: \[PID: \d+\] \S+ Opname \[y\] specified"),
        ("v3", r"\[PID: \d+\] \S+ Invalid argument\(E10016\): Opname \[y\] specified"),
    ],
)
def test_errors_have_the_form_of_their_time_and_the_suite_reads_each(toolchain, small, capsys, generation, line):
    tools = toolchain(f"sim:310P3,{generation}")
    assert main(tools.arguments(small(), input_shape="y:2,3,16,16"), tools.description) == 255
    printed = capsys.readouterr().out
    assert re.match(line, printed.splitlines()[2])
    error = explain(255, printed, "atc.log")
    assert isinstance(error, BuildFailedError)
    assert "E10016: Opname [y] specified" in str(error)


@pytest.mark.parametrize("argument", ["--modelx=d0.onnx", "--model", "d0.onnx", "-model=d0.onnx"])
def test_an_unknown_option_ends_the_command_before_it_starts(toolchain, small, capsys, argument):
    tools = toolchain()
    assert main([*tools.arguments(small()), argument], tools.description) == 1
    name = argument.partition("=")[0].lstrip("-")
    assert capsys.readouterr().out == f"ERROR: unknown command line flag '{name}'\n"


def test_help_lists_the_options(toolchain, capsys):
    assert main(["--help"], toolchain().description) == 0
    assert "--modify_mixlist\n" in capsys.readouterr().out


def test_a_compiled_model_tells_what_it_is(toolchain, small):
    tools = toolchain()
    om = tools.compile(small())
    assert main(["--mode=1", f"--om={om}", f"--json={tools.folder}/om.json"], tools.description) == 0
    facts = parse_om_json((tools.folder / "om.json").read_text())
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in facts.inputs] == [("x", (2, 3, 16, 16), "float32")]
    assert [tensor.shape for tensor in facts.outputs] == [(2, 6, 8, 8), (2, 2, 8, 8)]
    assert (facts.soc_version, facts.precision_mode) == ("Ascend310P3", "allow_mix_precision")
    assert facts.operators["ReduceMeanD"] == facts.fp32_operators["ReduceMeanD"] == 1
    assert facts.operators["Conv2D"] == 4
    assert "Conv2D" not in facts.fp32_operators
    assert (facts.dynamic, facts.aipp) == (False, False)


def test_a_model_of_another_kind_tells_that_too(toolchain, small, tmp_path):
    tools = toolchain()
    (tmp_path / "aipp.cfg").write_text("aipp_op { aipp_mode: static }")
    dynamic = {"dynamic_batch_size": "1,2", "input_shape": "x:-1,3,16,16"}
    for changes, expected in (
        (dynamic, (True, False)),
        ({"insert_op_conf": tmp_path / "aipp.cfg"}, (False, True)),
    ):
        om = tools.compile(small(), **changes)
        assert main(["--mode=1", f"--om={om}", f"--json={tools.folder}/om.json"], tools.description) == 0
        facts = parse_om_json((tools.folder / "om.json").read_text())
        assert (facts.dynamic, facts.aipp) == expected


@pytest.mark.parametrize(("content", "code"), [(None, "E10003"), (b"no model", "E10041")])
def test_what_is_no_model_tells_nothing(toolchain, capsys, content, code):
    tools = toolchain()
    if content:
        (tools.folder / "d0.om").write_bytes(content)
    arguments = ["--mode=1", f"--om={tools.folder}/d0.om", f"--json={tools.folder}/om.json"]
    assert main(arguments, tools.description) == 255
    assert f"({code}): " in capsys.readouterr().out
    assert not (tools.folder / "om.json").exists()


def test_the_command_of_the_simulated_host_compiles(toolchain, small):
    tools = toolchain()
    command = [tools.folder / "bin" / "atc", *tools.arguments(small())]
    done = subprocess.run(command, env=tools.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [START, SUCCESS], "")
    om = read_om(tools.folder / "small.om")
    assert onnx.load_from_string(om.onnx).graph.name == "small"
    assert os.fspath(tools.folder) in om.command
    assert om.version == json.loads((tools.folder / "host.json").read_text())["cann"]
