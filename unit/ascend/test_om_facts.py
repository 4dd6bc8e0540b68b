import json

import pytest

from support.ascend.om_facts import parse_om_json, read_om
from support.backends.base import TensorInfo
from support.errors import SuiteTimeoutError, ToolError

COMMAND = "/cann/bin/atc.bin --model=d0.onnx --precision_mode=allow_mix_precision"


def desc(dtype="DT_FLOAT", *shape):
    return {"dtype": dtype, "layout": "NCHW", **({"shape": {"dim": list(shape)}} if shape else {})}


def operator(kind, *dtypes):
    return {"name": "op", "type": kind, "input_desc": [desc(dtype) for dtype in dtypes], "output_desc": [desc("DT_X")]}


def data(*shape, dtype="DT_FLOAT"):
    return {"name": "x.1", "type": "Data", "input_desc": [desc(dtype, *shape)], "output_desc": [desc("DT_FLOAT16")]}


INPUT = data(8, 3, 512, 512)
NET_OUTPUT = {"name": "out", "type": "NetOutput", "input_desc": [desc("DT_FLOAT", 8, 810, 64, 64), desc("DT_FLOAT16")]}


def model(*operators, command=COMMAND, begin=(INPUT,), end=(NET_OUTPUT,), graphs=(), **attributes):
    texts = {"soc_version": "Ascend310P3", "atc_version": "8.0", "atc_cmdline": command} | attributes
    attr = [{"key": key, "value": {"s": text}} for key, text in texts.items() if text is not None]
    attr += [{"key": "attr_model_out_nodes_name", "value": {"list": {"s": ["Conv_1:0:cls"]}}}, {"key": "bare"}]
    return {"attr": attr, "graph": [{"name": "root", "op": [*begin, *operators, *end]}, *graphs]}


def facts(*operators, **changes):
    return parse_om_json(json.dumps(model(*operators, **changes)))


def test_inputs_and_outputs_are_read():
    found = facts()
    assert found.inputs == (TensorInfo("x.1", (8, 3, 512, 512), "float32"),)
    # A shape that is not stated is that of a scalar.
    assert found.outputs == (TensorInfo("0", (8, 810, 64, 64), "float32"), TensorInfo("1", (), "float16"))
    assert (found.dynamic, found.aipp) == (False, False)


def test_numbers_in_quotes_are_numbers():
    begin = {"name": "x", "type": "Data", "input_desc": [{"dtype": "DT_FLOAT", "shape": {"dim": ["8", "3"]}}]}
    assert facts(begin=[begin]).inputs[0].shape == (8, 3)


def test_a_type_without_a_name_of_ours_keeps_its_own():
    assert facts(begin=[data(8, dtype="DT_HIFLOAT8")]).inputs[0].dtype == "DT_HIFLOAT8"


def test_operators_are_counted_by_the_numbers_they_compute_with():
    found = facts(
        operator("Conv2D", "DT_FLOAT16", "DT_FLOAT16"),
        operator("Conv2D", "DT_FLOAT", "DT_FLOAT16"),
        operator("ReduceMean", "DT_FLOAT", "DT_INT32"),
        operator("ReduceMean", "DT_BF16", "DT_INT32"),
        operator("Gather", "DT_INT64"),
        {"name": "silent", "type": "Mul"},
        operator("Const", "DT_FLOAT"),
    )
    assert dict(found.operators) == {"Conv2D": 2, "ReduceMean": 2, "Gather": 1, "Mul": 1}
    assert dict(found.fp32_operators) == {"ReduceMean": 1}
    assert dict(found.half_operators) == {"Conv2D": 2, "ReduceMean": 1}


def test_the_compilation_is_read_from_attributes_and_command_line():
    found = facts()
    assert (found.soc_version, found.atc_version, found.precision_mode) == ("Ascend310P3", "8.0", "allow_mix_precision")
    assert found.command == COMMAND


@pytest.mark.parametrize(
    ("command", "mode"),
    [
        ("atc.bin --precision_mode allow_mix_precision --log=error", "allow_mix_precision"),
        ("atc.bin --precision_mode_v2=mixed_float16", "mixed_float16"),
        ("atc.bin --input_shape=\"x.1:8,3,512,512\" --precision_mode='force_fp32'", "force_fp32"),
        ("atc.bin --model=it's --precision_mode=force_fp16", "force_fp16"),
        # The compiler's default depends on its version.
        ("atc.bin --model=d0.onnx", None),
    ],
)
def test_command_lines_are_read_in_every_notation(command, mode):
    assert facts(command=command).precision_mode == mode


@pytest.mark.parametrize("command", ["atc.bin --soc_version Ascend310 --dynamic_batch_size 1,4", "--dynamic_dims=1;2"])
def test_a_dynamic_model_shows_in_its_command(command):
    assert facts(command=command).dynamic


def test_a_dynamic_model_shows_in_its_input_where_there_is_no_command():
    assert facts(command=None, begin=[data(-1, 3, 512, 512)]).dynamic


def test_pixels_as_input_show_in_the_command_or_as_an_operator():
    assert facts(command="atc.bin --insert_op_conf=aipp.cfg").aipp
    assert facts({"name": "aipp", "type": "Aipp"}).aipp


def test_what_is_not_told_is_unknown():
    found = facts(soc_version=None, atc_version=None, command=None)
    assert (found.soc_version, found.atc_version, found.command, found.precision_mode) == (None, None, None, None)
    assert facts(soc_version=None, command="atc --soc_version Ascend310").soc_version == "Ascend310"


def test_inputs_and_outputs_of_inner_graphs_are_not_those_of_the_model():
    inner = {"name": "branch", "op": [data(1), operator("ReduceMeanD", "DT_FLOAT"), {**NET_OUTPUT, "input_desc": []}]}
    found = facts({"name": "case", "type": "Case", "subgraph_name": ["branch"]}, graphs=[inner])
    assert [tensor.shape for tensor in found.inputs] == [(8, 3, 512, 512)]
    assert len(found.outputs) == 2
    assert found.fp32_operators["ReduceMeanD"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"attr": 1}',
        '{"graph": []}',
        '{"graph": [{}]}',
        '{"graph": [{"op": [{"name": "x"}]}]}',
        json.dumps(model(begin=())),
        json.dumps(model(end=())),
        json.dumps(model(begin=[{"name": "x", "type": "Data", "input_desc": []}])),
        json.dumps(model(begin=[{"name": "x", "type": "Data", "input_desc": [{"shape": {"dim": [8]}}]}])),
        json.dumps(model())[:-40],
    ],
)
def test_something_else_is_refused(text):
    with pytest.raises(ToolError, match="atc --mode=1 wrote something else than a model"):
        parse_om_json(text)


def test_the_compiler_is_asked(tools, tmp_path):
    script = f"""
import os, sys
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
assert options["mode"] == "1" and options["om"].endswith("d0.om"), options
assert os.path.dirname(os.environ["ASCEND_PROCESS_LOG_PATH"]) == os.path.dirname(options["json"]) == os.getcwd()
open(options["json"], "w").write({json.dumps(model())!r})
"""
    (tmp_path / "d0.om").touch()
    assert read_om(tools(atc=script), tmp_path / "d0.om", timeout=30).soc_version == "Ascend310P3"


@pytest.mark.parametrize("script", ["print('E10041: damaged'); raise SystemExit(255)", "print('done')"])
def test_a_model_the_compiler_cannot_read_is_named(tools, tmp_path, script):
    with pytest.raises(
        ToolError, match=r"d0\.om cannot be read by atc: .*\n.*what to do: check that --om=PATH is a whole"
    ):
        read_om(tools(atc=script), tmp_path / "d0.om", timeout=30)


def test_a_host_that_cannot_run_the_compiler_keeps_its_own_remedy(tools, tmp_path):
    with pytest.raises(ToolError, match=r"cannot be read by atc: atc ended with 127: .*\n.*set_env\.sh"):
        read_om(tools(atc="raise SystemExit(127)"), tmp_path / "d0.om", timeout=30)


def test_a_compiler_that_hangs_over_a_model_is_given_up(tools, tmp_path):
    with pytest.raises(SuiteTimeoutError, match=r"atc had not ended after 0\.3 s"):
        read_om(tools(atc="import time; time.sleep(60)"), tmp_path / "d0.om", timeout=0.3)
