import pytest

from support.ascend.atc_errors import ATC_CODES, explain
from support.errors import BuildFailedError, ToolError

# Every row of the tool's error table: what it says of the cause, and what the user must read to do.
ROWS = {
    "E10001": ("Value [fp16] for parameter [--precision_mode] is invalid. Reason: unknown", "correct the option"),
    "E10002": ("Value [8,3] for parameter [--input_shape] is invalid. Reason: no name", "input of the ONNX"),
    "E10003": ("Value [/d0.onnx] for parameter [--model] is invalid. Reason: no such file", "file it names exists"),
    "E10004": ("Value for [--soc_version] is empty.", "fill in the empty option"),
    "E10007": ("[--framework] is required. The value must be [5(Onnx)].", "set framework"),
    "E10010": ("Value [all] for parameter [--log] is invalid.", "debug, info, warning, error or null"),
    "E10011": ("Value [x.1:0,3,512,512] for parameter [--input_shape] is invalid.", "for this batch size"),
    "E10016": ("Opname [x.1] specified in [--input_shape] is not found in the model.", "whose input was read"),
    "E10022": ("Path [/artifacts/] for parameter [--output] does not include the file name.", "--artifacts=DIR"),
    "E10041": ("Failed to load the model from [d0.onnx].", "--onnx=PATH"),
    "E10047": ("[--precision_mode] and [--precision_mode_v2] are mutually exclusive.", "remove one"),
    "E10049": ("Dimension count [3] configured in [--input_shape] does not match [4] of the node.", "four dimensions"),
    "E10052": ("AIPP configuration is invalid. Reason: no input_format.", "without AIPP"),
    "E10054": ("The requied parameter [--model] for ATC is empty.", "add the option"),
    "E13005": ("Failed to parse file [d0.onnx].", "built anew"),
    "E13015": ("File [d0.onnx] has a size of [0], which is out of valid range (0, 2147483647].", "empty or too large"),
    "E13023": ("Model [om] has a size of [9] bytes, which exceeds system limit of [8] bytes.", "larger than"),
    "E16002": ("No parser is registered for Op [hard, optype [ai.onnx::11::HardSigmoid]].", "opset 11"),
    "E19010": ("No parser is registered for Op [div, optype [ai.onnx::23::Div]].", "newer CANN"),
    "E19999": ("Inner Error!", "report it to the vendor"),
    "E20001": ("Failed to compile Op [Conv_0].", "the operator's own error"),
    "E20003": ("The content of [ops_info.json] is invalid.", "modify_mixlist"),
    "E20101": ("Value [Ascend310P] is invalid: platform configuration file cannot be found.", "knows the chip"),
    "E21001": ("Failed to open file [ops_info.json].", "read and written"),
    "E21002": ("Failed to read file [ops_info.json].", "check the disk"),
    "EZ3002": ("Optype [HardSigmoid] of Ops kernel [AIcoreEngine] is unsupported.", "supports it on this chip"),
    "EZ3003": ("No supported Ops kernel and engine are found for [hard], optype [HardSigmoid].", "ops package"),
    "EZ9010": ("Inner Error!", "plog files"),
    "EZ9999": ("Inner Error!", "plog files"),
}
# As CANN 5, CANN 8 and later ones write the first line of an error.
FORMS = {
    "CANN 5": "{code}: {text}",
    "CANN 8": "{code}: [PID: 10490] 2025-03-18-09:02:18.501.341 {text}",
    "newest": "[PID: 10490] 2026-03-18-09:02:18.501.341 Invalid_Argument({code}): {text}",
}
OUTPUT = """ATC start working now, please wait for a moment.
...
ATC run failed, Please check the detail log, Try 'atc --help' for more information
{head}
        Possible Cause: the reason.
        Solution: the way out.
        TraceBack (most recent call last):
        Call InnerFunction failed.[FUNC:Main][FILE:main.cc][LINE:1]
"""


def printed(form, code, text):
    return OUTPUT.format(head=FORMS[form].format(code=code, text=text))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("code", "row"), ROWS.items(), ids=ROWS)
def test_every_code_names_cause_solution_and_remedy_in_every_form(code, row, form):
    text, remedy = row
    error = explain(255, printed(form, code, text), "build/atc.log")
    assert type(error) is BuildFailedError
    assert error.found == (
        f"atc ended with 255: {code}: {text} Possible Cause: the reason. Solution: the way out.; "
        "its output is in build/atc.log"
    )
    assert remedy in error.remedy


def test_no_code_is_without_a_row():
    assert ROWS.keys() == ATC_CODES.keys()


DECORATOR = "No module named 'decorator'"
DRIVER = "/cann/bin/atc.bin: error while loading shared libraries: libascend_hal.so: cannot open shared object file"
# Texts of the host's troubles: status, code, cause, and what the user must read to do.
HOST = {
    "partial environment": (255, "E10001", "Value [linux] for parameter [--host_env_os] is invalid", "set_env.sh"),
    "partial environment, newest": (255, "E10001", "Value linux for parameter --host_env_os is invalid", "set_env.sh"),
    "old compiler without modules": (255, "E40000", "Failed to import te.platform.log_util.", "first on PATH"),
    "no module": (255, "EC0010", f"Failed to import Python module [ModuleNotFoundError: {DECORATOR}.].", "decorator"),
    "other opp": (
        255,
        "E19999",
        "The opp version of the model does not match the current opp run package, try to convert the om again!",
        "from one CANN",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("status", "code", "text", "remedy"), HOST.values(), ids=HOST)
def test_trouble_with_the_host_is_not_blamed_on_the_model(status, code, text, remedy, form):
    error = explain(status, printed(form, code, text), "atc.log")
    assert type(error) is ToolError
    assert error.found.startswith(f"atc ended with {status}: {code}: {text}")
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("status", "output", "cause", "remedy"),
    [
        (127, "sh: atc.bin: command not found", "command not found", "set_env.sh"),
        (127, "", "it printed nothing", "set_env.sh"),
        # The loader ends with the status of a command that is not found.
        (127, DRIVER, "libascend_hal.so", "linux/devlib to LD_LIBRARY_PATH"),
        (127, DRIVER.replace("ascend_hal", "ge_compiler"), "libge_compiler.so", "set_env.sh"),
        (-9, "compiling", "compiling", "signal 9 ended it: often the host ran out of memory"),
        (137, "compiling", "compiling", "signal 9 ended it"),
        (139, "Segmentation fault", "Segmentation fault", "signal 11 ended it"),
    ],
)
def test_a_compiler_that_does_not_run_is_trouble_with_the_host(status, output, cause, remedy):
    error = explain(status, output, "atc.log")
    assert type(error) is ToolError
    assert f"atc ended with {status}: " in error.found
    assert cause in error.found
    assert remedy in error.remedy


def test_a_missing_module_is_named_though_only_the_traceback_before_tells_it():
    output = "ModuleNotFoundError: No module named '_struct'\n" + printed("CANN 5", "E40000", "Failed to import te.")
    assert "E40000: Failed to import te." in explain(255, output).found
    assert "No module named '_struct" in explain(255, output).found


def test_what_an_inner_error_adds_in_further_lines_is_shown():
    output = "E19999: Inner Error!\n        An unknown error occurred. Please check the log.\n        TraceBack (most"
    assert explain(255, output).found == (
        "atc ended with 255: E19999: Inner Error! An unknown error occurred. Please check the log."
    )


def test_hints_that_say_nothing_are_left_out():
    output = printed("newest", "E10003", "no such file").replace("the reason.", "N/A")
    assert explain(255, output).found.endswith("E10003: no such file Solution: the way out.")


def test_a_long_list_of_errors_is_cut_short():
    output = "\n".join(f"E16002: No parser is registered for Op [{'x' * 1000}]" for _ in range(50))
    assert len(explain(255, output).found) < 2000


def test_an_unknown_code_or_none_shows_the_end_of_the_output():
    assert "E77777: odd" in explain(1, "E77777: odd").found
    error = explain(1, "x" * 1000 + "the end")
    assert type(error) is BuildFailedError
    assert error.found.endswith("the end")
    assert len(error.found) < 500
    assert "it printed nothing" in explain(1, "").found


def test_a_warning_before_the_error_is_not_taken_for_it():
    assert explain(255, "W11001: slow\nE10003: no file").found == "atc ended with 255: E10003: no file"


def test_an_error_code_tells_more_than_a_status_that_could_be_a_signal():
    assert type(explain(137, "E10003: no file")) is BuildFailedError
