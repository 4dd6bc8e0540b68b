from pathlib import Path

import pytest

from support.ascend.atc import atc_arguments, compile_om
from support.backends.base import TensorInfo
from support.errors import BuildFailedError, SuiteTimeoutError, ToolError
from support.spec import load_spec

OUTPUT = "import sys; out = [a for a in sys.argv if a.startswith('--output=')][0][9:]\n"
GOOD = OUTPUT + "open(out + '.om', 'w').write('om'); print('ATC run success, welcome to the next use.')"
INFO = TensorInfo("x.1", (8, 3, 512, 512), "float32")


def compiled(host, tmp_path, timeout=30):
    for name in ("out", "records"):
        (tmp_path / name).mkdir(exist_ok=True)
    output = tmp_path / "out/model"
    return compile_om(host, [f"--output={output}"], timeout=timeout, log=tmp_path / "records/atc.log", output=output)


def test_the_arguments_are_those_of_the_guide():
    options = load_spec("efficientdet_d0").atc
    found = atc_arguments(Path("d0.onnx"), Path("d0_bs8"), INFO, "Ascend310P3", options, Path("ops_info.json"))
    assert found == [
        "--framework=5",
        "--model=d0.onnx",
        "--output=d0_bs8",
        "--input_format=NCHW",
        "--input_shape=x.1:8,3,512,512",
        "--log=error",
        "--soc_version=Ascend310P3",
        "--precision_mode=allow_mix_precision",
        "--modify_mixlist=ops_info.json",
    ]


def test_without_a_list_there_is_no_option_for_it():
    options = load_spec("efficientdet_d0").atc
    found = atc_arguments(Path("d0.onnx"), Path("d0_bs8"), INFO, "Ascend310P3", options, None)
    assert not [argument for argument in found if "mixlist" in argument]


def test_a_good_compilation_gives_its_model_and_keeps_its_output(tools, tmp_path):
    om = compiled(tools(atc=GOOD), tmp_path)
    assert om == tmp_path / "out/model.om"
    assert "run success" in (tmp_path / "records/atc.log").read_text()


def test_dots_and_warnings_around_the_line_of_success_change_nothing(tools, tmp_path):
    script = GOOD.replace("'ATC", "'..... Warning: tiling offset out of range ..... ATC") + "\nprint('W11001: slow')"
    assert compiled(tools(atc=script), tmp_path)


def test_a_name_with_system_and_architecture_is_found(tools, tmp_path):
    om = compiled(tools(atc=GOOD.replace("'.om'", "'_linux_x86_64.om'")), tmp_path)
    assert om.name == "model_linux_x86_64.om"


def test_everything_else_the_compiler_writes_goes_beside_its_output(tools, tmp_path):
    script = "import os; os.makedirs(os.environ['ASCEND_PROCESS_LOG_PATH']); open('fusion_result.json', 'w')\n"
    compiled(tools(atc=script + GOOD), tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.om"]
    assert {path.name for path in (tmp_path / "records").iterdir()} == {"atc.log", "fusion_result.json", "plog"}


@pytest.mark.parametrize(
    ("script", "count"),
    [
        (OUTPUT + "print('ATC run success')", 0),
        (OUTPUT + "open(out + '.om', 'w'); print('ATC run success')", 0),
        (OUTPUT + "open(out + '.om', 'w').write('om'); print('ATC run')", 1),
        (OUTPUT + "[open(out + end, 'w').write('om') for end in ('.om', '_linux.om')]; print('ATC run success')", 2),
    ],
    ids=["no model", "empty model", "no line of success", "two models"],
)
def test_a_compiler_that_ends_with_0_is_not_believed_alone(tools, tmp_path, script, count):
    message = rf"atc ended with 0, left {count} new models and printed 'ATC run.*records/atc\.log\n.*model\.om"
    with pytest.raises(BuildFailedError, match=message):
        compiled(tools(atc=script), tmp_path)


def test_a_model_that_was_there_before_is_not_taken_for_the_result(tools, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.om").write_text("of an earlier run")
    with pytest.raises(BuildFailedError, match="left 0 new models"):
        compiled(tools(atc=OUTPUT + "print('ATC run success')"), tmp_path)


def test_a_compiler_that_fails_is_explained_even_if_it_left_a_model(tools, tmp_path):
    with pytest.raises(
        BuildFailedError, match=r"255: E10016: not found; its output is in .*records/atc\.log\n.*--onnx"
    ):
        compiled(tools(atc=GOOD + "\nprint('E10016: not found'); sys.exit(255)"), tmp_path)


def test_a_compiler_that_hangs_is_given_up_with_its_last_words(tools, tmp_path):
    with pytest.raises(SuiteTimeoutError, match=r"atc had not ended after 0\.5 s: working"):
        compiled(tools(atc="import time; print('working', flush=True); time.sleep(60)"), tmp_path, timeout=0.5)


def test_without_a_compiler_the_environment_is_to_be_sourced(tools, tmp_path):
    with pytest.raises(ToolError, match=r"atc is not on PATH\n.*set_env\.sh"):
        compiled(tools(), tmp_path)
