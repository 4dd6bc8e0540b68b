import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from perf.rows import Row

pytestmark = pytest.mark.budget

CHECKOUT = Path(__file__).resolve().parents[1]

#: Seconds that collecting the gate may take beyond what pytest and its plugins take to collect nothing.
BUDGET = 0.5

#: What fails: a model runtime imported by mistake costs at least 2 s, noise of the processor time below 0.1 s.
CEILING = 1.0

ROUNDS = 5


def seconds(folder, *arguments):
    start = os.times()
    command = [sys.executable, "-mpytest", "-pno:cacheprovider", "--collect-only", "-q", *arguments]
    # Python compiles a module once and keeps it, unless it is told not to.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    end = os.times()
    assert done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), done.stdout + done.stderr
    # Time of the processor, not of the wall: the host may be busy with something else.
    return end.children_user + end.children_system - start.children_user - start.children_system


def test_collecting_keeps_its_budget_against_an_empty_session(tmp_path, capsys):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    seconds(CHECKOUT, "-macceptance")
    # In turns, so that both see the same machine.
    pairs = [(seconds(tmp_path), seconds(CHECKOUT, "-macceptance")) for _ in range(ROUNDS)]
    empty, gate = (median(side) for side in zip(*pairs, strict=True))
    row = Row("pytest --collect-only -q", BUDGET, "s of the processor above an empty session", fails=CEILING)
    row.judge(capsys, lambda: (gate - empty, f"empty session {empty:.2f} s, this checkout {gate:.2f} s"))
