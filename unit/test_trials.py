import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.dataset import open_dataset
from support.errors import ContractViolationError, ToolError
from support.spec import load_spec
from support.trials import __main__ as command_line
from support.trials.gate import Ended
from support.trials.harms import DISKS, FILES, unharmed_or_undetermined
from support.trials.kills import kill_gates
from support.trials.together import run_gates_together

CHECKOUT = Path(__file__).resolve().parents[1]
LINE = "accepted: shapes_16 on cpu (not a release)"


class FakeGate:
    """Ends as it is told: by its killer, or with a verdict, a store and leftovers."""

    chip, folder, undisturbed = "cpu", Path("nowhere"), 2

    def __init__(self, verdicts=(), status=0, killed_status=-9, entries=(), leftovers=(), line=LINE):
        self.verdicts, self.status, self.killed_status, self.line = dict(verdicts), status, killed_status, line
        self.changed_entries, self.changed_leftovers = frozenset(entries), frozenset(leftovers)
        self.runs, self.renewed, self.killed_output = 0, 0, "stopped"

    def run(self, *, killer=None):
        self.runs += 1
        if killer and self.runs > self.undisturbed:
            return Ended("SIGKILL", self.killed_status, 1.0, self.killed_output, {})
        changed = self.verdicts if self.runs > self.undisturbed else {}
        status = self.status if self.runs > self.undisturbed else 0
        line = self.line if self.runs > self.undisturbed else LINE
        return Ended("", status, 1.0, f"output\n{line}\n", {"coverage 1": "accepted", **changed})

    def leftovers(self):
        return frozenset({"tmp/.ses"}) | (self.changed_leftovers if self.runs > self.undisturbed else frozenset())

    def entries(self):
        return frozenset({"onnx/a/model.onnx"}) | (
            self.changed_entries if self.runs > self.undisturbed else frozenset()
        )

    def renew(self):
        self.renewed += 1


def killed(gate, kills=8):
    return kill_gates(gate, kills, 0, lambda line: None)


def test_kills_and_runs_that_completed_are_counted():
    gate = FakeGate()
    assert killed(gate).startswith("8 kills (8 SIGKILL) of cpu, 2 runs completed in between, in ")
    assert gate.runs == 2 + 8 + 2


def test_a_signal_after_the_verdict_leaves_the_verdict():
    gate = FakeGate(killed_status=0)
    gate.killed_output = f"{LINE}\na warning of Python\n"
    assert killed(gate).startswith("8 kills (8 SIGKILL)")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"verdicts": {"coverage 1": "rejected"}}, "1 clauses differ: coverage 1"),
        ({"status": 1}, "status 1"),
        ({"line": "undetermined: shapes_16 on cpu"}, "'undetermined: shapes_16 on cpu'"),
        ({"killed_status": 0}, "after SIGKILL the status is 0"),
        ({"leftovers": ["store/partial/onnx-a"]}, "left behind or lost: store/partial/onnx-a"),
        ({"entries": ["onnx/b/model.onnx"]}, "left behind or lost: onnx/b/model.onnx"),
    ],
)
def test_what_an_undisturbed_run_does_not_do_is_found_out(changes, found):
    with pytest.raises(ContractViolationError, match=found.replace("(", r"\(")):
        killed(FakeGate(**changes))


def test_a_gate_that_does_not_accept_the_kit_is_not_killed(monkeypatch):
    gate = FakeGate()
    monkeypatch.setattr(gate, "run", lambda **_: Ended("", 1, 1.0, "rejected: shapes_16 on cpu", {"coverage 1": "x"}))
    with pytest.raises(ToolError, match="the undisturbed run ended with 1"):
        killed(gate)


@pytest.mark.parametrize(
    ("option", "name", "batch_sizes", "images"),
    [([], "shapes_16", (1,), 16), (["--whole-kit"], "shapes_whole", (1, 4, 8, 16, 32, 64), 133)],
)
def test_kills_run_over_few_images_or_the_whole_kit(option, name, batch_sizes, images, monkeypatch, capsys):
    def kills_of(gate, kills, *_):
        spec = load_spec(str(gate.folder / "spec.toml"))
        root = Path(spec.dataset.root)
        assert root.is_relative_to(gate.folder)
        assert (spec.name, spec.batch_sizes) == (name, batch_sizes)
        assert len(open_dataset(root, spec.dataset).images) == spec.dataset.image_count == images
        return f"{kills} kills"

    monkeypatch.setattr(command_line, "kill_gates", kills_of)
    assert command_line.main(["--kills=3", *option]) == 0
    assert capsys.readouterr().out == "3 kills\n"


@pytest.mark.parametrize("trial", ["--harms=1", "--sessions=2"])
def test_other_trials_refuse_the_whole_kit(trial, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main([trial, "--whole-kit"])
    assert "--whole-kit goes with --kills only" in capsys.readouterr().err


class TogetherGate(FakeGate):
    def run_together(self, sessions):
        return [self.run() for _ in range(sessions)]


def test_sessions_at_once_are_counted():
    gate, said = TogetherGate(), []
    assert run_gates_together(gate, 3, said.append).startswith("3 sessions at once on one store of cpu, and one after")
    assert (gate.runs, gate.renewed, len(said)) == (6, 3, 5)


@pytest.mark.parametrize("changes", [{"verdicts": {"coverage 1": "rejected"}}, {"status": 1}, {"entries": ["onnx/b"]}])
def test_a_session_beside_others_that_ends_otherwise_is_found_out(changes):
    with pytest.raises(ContractViolationError):
        run_gates_together(TogetherGate(**changes), 2, lambda line: None)


@pytest.mark.nightly
@pytest.mark.needs_torch
def test_sessions_at_once_share_one_store():
    command = [sys.executable, "-m", "support.trials", "--sessions=2"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 sessions at once on one store of cpu, and one after them, in ")


@pytest.mark.nightly
@pytest.mark.needs_torch
def test_the_gate_bears_kills_at_random_moments():
    command = [sys.executable, "-m", "support.trials", "--kills=6"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("6 kills (")
    assert "0 wrong verdicts, 0 stores to repair, nothing left behind" in done.stdout


@pytest.mark.nightly
@pytest.mark.needs_torch
def test_the_gate_of_the_whole_kit_bears_kills_at_random_moments():
    command = [sys.executable, "-m", "support.trials", "--kills=12", "--whole-kit"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("12 kills (")
    assert "0 wrong verdicts, 0 stores to repair, nothing left behind" in done.stdout


# -- harms to files and disks ------------------------------------------------------------------------------------------


FIRST = Ended("", 0, 1.0, f"output\n{LINE}\n", {"coverage 1": ("accepted", None, [])})
FLIP = next(harm for harm in FILES if harm.may_reject)


def harmed(harm=FILES[0], status=1, line="undetermined: shapes_16 on cpu", word="undetermined", reason="wrong-data"):
    ended = Ended(harm.name, status, 1.0, f"output\n{line}\n", {"coverage 1": (word, reason, [])})
    return unharmed_or_undetermined(harm, ended, FIRST)


def test_a_harmed_run_may_be_undetermined_refused_or_as_if_nothing_had_happened():
    assert unharmed_or_undetermined(FILES[0], FIRST, FIRST) == "as if nothing had happened"
    assert harmed() == "undetermined"
    assert harmed(status=4) == "refused"
    assert harmed(FLIP, word="rejected", reason=None, line="rejected: shapes_16 on cpu") == "rejected"


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 0},
        {"status": 0, "line": LINE},
        {"reason": "internal-error"},
        {"word": "rejected", "reason": None},
        {"line": "INTERNALERROR> KeyError"},
        {"status": -11},
    ],
)
def test_a_harmed_run_that_ends_in_any_other_way_is_found_out(changes):
    with pytest.raises(ContractViolationError, match="an image vanishes"):
        harmed(**changes)


@pytest.fixture
def place(tmp_path):
    """Give a gate that has data, a store of one artifact, and a temporary file."""
    gate = SimpleNamespace(folder=tmp_path, store=tmp_path / "store", temp=tmp_path / "tmp")
    files = ["data/val2017/1.jpg", "data/val2017/2.jpg", "data/annotations/a.json", "spec.toml", "tmp/session/pass"]
    for name in (*files, "store/onnx/key/model.onnx", "store/locks/onnx.lock", "store/partial/onnx/half"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 10)
    return gate


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("harm", FILES, ids=[harm.name for harm in FILES])
def test_every_harm_to_files_changes_something_of_the_gate(harm, place):
    before = snapshot(place.folder)
    assert harm.strike(place, random.Random(0))
    assert snapshot(place.folder) != before
    kept = [place.store / "locks/onnx.lock", place.store / "partial/onnx/half"]
    assert harm.name == "the store is emptied" or all(path.is_file() for path in kept)


@pytest.mark.parametrize("harm", FILES, ids=[harm.name for harm in FILES])
def test_a_harm_waits_for_something_to_strike(harm, tmp_path):
    nothing = SimpleNamespace(folder=tmp_path, store=tmp_path / "store", temp=tmp_path / "tmp")
    assert not harm.strike(nothing, random.Random(0))


@pytest.mark.nightly
@pytest.mark.needs_torch
def test_the_gate_bears_harm_to_its_files_and_disks():
    command = [sys.executable, "-m", "support.trials", f"--harms={len(FILES) + len(DISKS)}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after each a clean run: 0 wrong verdicts, 0 stores to repair" in done.stdout
    assert os.getuid() != 0 or "NOT TRIED" not in done.stdout
