import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.needs_torch]

CHECKOUT = Path(__file__).resolve().parents[1]
# Two batch sizes of the kit, the second with a tail: what they need is built for the kit's own gate anyway.
SPEC = """
extends = "shapes_d0"
name = "shapes_two"
batch_sizes = [1, 8]
"""


def gate(folder, chip, *arguments):
    (folder / "two.toml").write_text(SPEC)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "acceptance", f"--chip={chip}"]
    command += [f"--spec={folder / 'two.toml'}", f"--artifacts={CHECKOUT / 'artifacts'}", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900, check=False)


def test_the_whole_path_ends_undetermined_for_nothing_but_the_simulation(tmp_path):
    done = gate(tmp_path, "sim:310P3", f"--junitxml={tmp_path / 'junit.xml'}")
    line = "undetermined: shapes_two on simulated 310P3 (aclruntime V3, compute mode) (not a release): simulated"
    assert done.stdout.rstrip().splitlines()[-1] == line, done.stdout[-6000:]
    assert done.returncode == 10
    words = [
        prop.get("value")
        for prop in ElementTree.parse(tmp_path / "junit.xml").getroot().iter("property")
        if prop.get("name") == "verdict"
    ]
    assert len(words) > 30
    assert set(words) == {"accepted"}


@pytest.mark.parametrize(("fault", "reason"), [("hang", "timeout"), ("vanish", "device-lost"), ("busy", "busy-device")])
def test_with_a_broken_device_the_other_clauses_are_still_judged(tmp_path, fault, reason):
    (tmp_path / "quick.toml").write_text(SPEC + "[timeouts]\ninfer_call = 5.0\n")
    narrowed = ["-k", "test_dataset or test_coverage or test_the_graph", f"--spec={tmp_path / 'quick.toml'}"]
    done = gate(tmp_path, f"sim:310P3,fault={fault}", *narrowed)
    last = done.stdout.rstrip().splitlines()[-1]
    assert {reason, "simulated"} <= set(last.rpartition(": ")[2].split(", ")), done.stdout[-4000:]
    assert done.returncode == 10
    for clause in ("dataset_pins", "graph_contract"):
        (row, *_) = [line for line in done.stdout.splitlines() if line.startswith(f" {clause} ")]
        assert row.rstrip().endswith("accepted")
