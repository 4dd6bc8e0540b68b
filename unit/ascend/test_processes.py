import os
import signal
import sys
import threading
import time

import psutil
import pytest

from support.ascend.processes import run_tool
from support.errors import SuiteTimeoutError, ToolError


def python(script, **options):
    return run_tool([sys.executable, "-c", script], env={"MARK": "set"}, **{"timeout": 30, **options})


def test_a_tool_gives_its_status_and_all_it_printed_in_order():
    script = "import os, sys; os.write(1, b'out '); os.write(2, b'err '); print(os.environ['MARK']); sys.exit(3)"
    done = python(script)
    assert (done.status, done.output) == (3, "out err set\n")
    assert done.command[0] == sys.executable


def test_a_tool_sees_no_other_environment_and_no_input():
    done = python("import os, sys; print(sorted(os.environ.keys() - {'LC_CTYPE'}), sys.stdin.read() == '')")
    assert done.output == "['MARK'] True\n"


def test_a_tool_killed_by_a_signal_has_its_number_as_status():
    assert python("import os; os.abort()").status == -signal.SIGABRT


def test_a_log_keeps_the_output(tmp_path):
    python("print('compiling')", log=tmp_path / "tool.log")
    assert (tmp_path / "tool.log").read_text() == "compiling\n"


def test_what_is_not_text_is_replaced():
    assert python("import os; os.write(1, bytes([255]))").output == "\N{REPLACEMENT CHARACTER}"


def test_a_tool_that_does_not_end_is_killed_with_all_it_started(tmp_path):
    script = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "print('waiting for the device', flush=True); time.sleep(60)"
    )
    with pytest.raises(SuiteTimeoutError, match=r"python\S* had not ended after 2 s: waiting for the device"):
        python(script, timeout=2)
    assert_gone(int((tmp_path / "pid").read_text()))


def test_an_interrupted_tool_is_killed(tmp_path):
    path = str(tmp_path / "pid")
    script = f"import os, pathlib, time; pathlib.Path({path!r}).write_text(str(os.getpid())); time.sleep(60)"

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        python(script)
    thread.join()
    assert_gone(int((tmp_path / "pid").read_text()))


def assert_gone(pid):
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still there")


def test_a_tool_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ToolError, match=f"{tmp_path}/atc cannot be started: No such file"):
        run_tool([str(tmp_path / "atc")], env={}, timeout=1)
