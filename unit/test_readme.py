import argparse
import datetime as dt
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.options import pytest_addoption
from support.clauses import CATALOGUE
from support.dataset import open_dataset
from support.options import RunOptions
from support.simulator.host import FAULTS
from support.spec import load_spec, tomllib
from support.verdict import EXIT_STATUS, REASONS
from support.waivers import load_waivers
from unit.evidence import bundles

CHECKOUT = Path(__file__).resolve().parents[1]
KIT = CHECKOUT / "fixtures/data/shapes"
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FENCE = re.compile(r"(?:^<!-- needs: (?P<needs>.+?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)

# Five images and two batch sizes: seconds instead of minutes, still with a padded tail. So few images have another AP.
SMALL = """
extends = "shapes_d0"
name = "shapes_small"
batch_sizes = [1, 4]
accuracy = {{ ladder_batch = 4 }}

[dataset]
root = {root}
image_count = {images}
annotation_digest = "{annotations}"
size_digest = "{sizes}"

[clauses.dataset_pins.limits.images]
value = {images}
unit = "images"
direction = "min"
source = "unit/test_readme.py"
date = 2026-11-24

[clauses.reference_ap.limits.ap_difference]
value = 100
unit = "AP points"
direction = "max"
source = "unit/test_readme.py"
date = 2026-11-24
"""
IMAGES = 5


@dataclass(frozen=True)
class Command:
    text: str
    needs: str = ""


@dataclass(frozen=True)
class How:
    """How a command is executed: the tests it is narrowed to, the exit statuses it may have, what it must print."""

    tests: str
    statuses: tuple[int, ...]
    prints: tuple[str, ...]


GATE = "pytest -m acceptance --chip=cpu --spec=shapes_d0"
PERF = "pytest -m perf --chip=cpu --spec=shapes_d0"
RECORD = f"{GATE} --record-reference=REF"
BINS = f"{GATE} --write-bins=DIR"
JUNIT = f"{GATE} --junitxml=report.xml"
SIMULATED = "pytest -m acceptance --chip=sim:310P3 --spec=shapes_d0"
AUTOSAVE = f"{PERF} --benchmark-autosave"
REPORT = f"{GATE} --report-dir=reports/new"
REPLAY = "pytest --replay=reports/new"
SIGN = "python -m support.evidence sign reports/new --key=release_key"
SIGNED = f"{REPLAY} --signers=allowed_signers"
JOIN = "pytest --replay=reports/310P3 --replay=reports/310 --replay=reports/T4 --report-dir=reports/joined --release"
COMPARE = "python -m support.evidence compare reports/old reports/new"
# Executed on evidence that is made for them.
EVIDENCE = (REPORT, REPLAY, SIGN, SIGNED, JOIN, COMPARE)

# Exact text as shown: how it is executed. REF, DIR and other paths become existing ones outside the checkout.
EXECUTED = {
    RECORD: How("acceptance/test_reference.py", (10,), ("partial",)),
    # In full it is what `make acceptance` does.
    GATE: How("acceptance/test_coverage.py", (10,), ("undetermined: shapes_small on cpu (not a release): partial",)),
    f"{GATE} --limit=4 --batch-sizes=1,4": How("acceptance/test_inputs.py", (10,), ("partial", "4 of 5")),
    f"{GATE} --onnx='model/d0_bs{{batch}}.onnx' --reference=REF": How(
        "acceptance/test_score_agreement.py", (10,), ("partial", "candidate: onnx")
    ),
    BINS: How("acceptance/test_inputs.py", (10,), ("partial",)),
    JUNIT: How("acceptance/test_dataset.py", (10,), ("partial",)),
    SIMULATED: How("acceptance/test_coverage.py", (10,), ("simulated 310P3 (aclruntime V3, compute mode)", "partial")),
    AUTOSAVE: How("perf", (0,), ("accepted: throughput of shapes_small", "Saved benchmark data")),
    # Any verdict is right: on a busy machine the second run may be slower than the first.
    f"{PERF} --benchmark-compare": How("perf", (0, 1, 10), ("throughput of shapes_small", "throughput_regression")),
    "pytest perf/test_decode_budget.py -m budget -s": How("", (0,), ("times as fast",)),
}
ACTIVATE = ". .venv/bin/activate"
T4_PROTOCOL = ".venv-cuda/bin/python -m support.t4_protocol --onnx='model/d0_bs{batch}.onnx' --json=t4.json"
# Needs hardware or the network, and has no options of ours.
PREPARES = (
    "curl ",
    "npu-smi info",
    "python3 -m pip download ",
    "python3 -m venv ",
    "source ",
    "unzip ",
    ".venv-cuda/bin/python -m pip install ",
    ".venv/bin/python -m pip install ",
)


def commands(text):
    found = []
    for block in FENCE.finditer(text):
        lines = block["body"].replace("\\\n  ", "").splitlines() if block["language"] == "sh" else []
        found += [Command(line, block["needs"] or "") for line in lines if line]
    return found


def is_explained(command):
    if command.text in EVIDENCE:
        return True
    if command.needs:
        is_pytest = command.text.split()[0].endswith("/pytest")
        return is_pytest or command.text == T4_PROTOCOL or command.text.startswith(PREPARES)
    return command.text in EXECUTED or command.text == ACTIVATE or command.text.startswith("make ")


SHOWN = commands(README)
HARDWARE = [command.text for command in SHOWN if command.needs and command.text.split()[0].endswith("/pytest")]


@dataclass(frozen=True)
class World:
    """Existing paths outside the checkout for everything a command names."""

    folder: Path

    @property
    def places(self):
        moved = {"REF": "ref", "DIR": "bins", "shapes_d0": "small.toml", "model/d0_bs{batch}.onnx": "d0_bs{batch}.onnx"}
        same = ("report.xml", "t4.json", "coco_data", "model/d0.pth")
        return {**moved, **{name: Path(name).name for name in same}}

    def placed(self, word):
        option, equals, value = word.partition("=")
        place = self.places.get(value)
        return f"{option}={self.folder / place}" if equals and place else word

    def pytest(self, text, tests, *more):
        _, *words = shlex.split(text)
        kept = ["-p", "no:cacheprovider", f"--artifacts={self.folder / 'store'}"]
        kept += [f"--benchmark-storage={self.folder / 'benchmarks'}", f"--report-dir={self.folder / 'report'}"]
        # Paths come first: after --benchmark-compare one would be its value.
        return python("-m", "pytest", *tests.split(), *kept, *map(self.placed, words), *more)

    def run(self, text):
        how = EXECUTED[text]
        done = self.pytest(text, how.tests)
        assert done.returncode in how.statuses, done.stdout + done.stderr
        for words in how.prints:
            assert words in done.stdout + done.stderr, done.stdout + done.stderr


def python(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    for name in ("ref", "bins", "coco_data"):
        (folder / name).mkdir()
    (folder / "d0.pth").touch()
    write_small_dataset(folder / "coco")
    data = open_dataset(folder / "coco", load_spec("shapes_d0").dataset)
    pins = {"images": IMAGES, "annotations": data.annotation_digest, "sizes": data.size_digest}
    (folder / "small.toml").write_text(SMALL.format(root=json.dumps(str(folder / "coco")), **pins))
    return World(folder)


def write_small_dataset(root):
    truth = json.loads((KIT / "annotations/instances_val2017.json").read_text())
    truth["images"] = sorted(truth["images"], key=lambda image: image["id"])[:IMAGES]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in ids]
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(truth))
    for image in truth["images"]:
        shutil.copy(KIT / "val2017" / image["file_name"], root / "val2017")


@pytest.fixture(scope="module")
def recorded(world):
    world.run(RECORD)
    for manifest in world.folder.glob("store/modified_onnx/*/artifact.json"):
        batch = json.loads(manifest.read_text())["recipe"]["options"]["batch"]
        shutil.copy(manifest.parent / "model.onnx", world.folder / f"d0_bs{batch}.onnx")
    return world


# --- commands


@pytest.mark.parametrize("command", SHOWN, ids=lambda command: command.text)
def test_every_command_shown_is_executed_or_marked(command):
    assert is_explained(command)


@pytest.mark.parametrize(
    "command",
    [Command(f"{GATE} --quick"), Command("rm -rf /"), Command("rm -rf /", "T4"), Command(HARDWARE[0])],
    ids=lambda command: f"{command.text} {command.needs}",
)
def test_a_command_nobody_executes_is_noticed(command):
    assert not is_explained(command)


def test_every_command_of_the_table_is_shown():
    assert {*EXECUTED, *EVIDENCE, ACTIVATE, T4_PROTOCOL} <= {command.text for command in SHOWN}


def test_commands_are_found_behind_their_mark_and_joined_over_lines():
    text = "<!-- needs: T4 -->\n```sh\na\nb \\\n  c\n```\n```text\nd\n```\n\n```sh\ne\n```\n"

    assert commands(text) == [Command("a", "T4"), Command("b c", "T4"), Command("e")]


def test_only_shell_blocks_hold_commands():
    others = [block["body"] for block in FENCE.finditer(README) if block["language"] != "sh"]

    assert {block["language"] for block in FENCE.finditer(README)} == {"sh", "text", "toml"}
    assert not re.search(r"^(\S*/)?(pytest|python3?|make|pip|curl) ", "\n".join(others), re.M)


@pytest.mark.parametrize("command", [c.text for c in SHOWN if c.text.startswith("make ")])
def test_make_knows_the_target(command):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run([*command.split(), "-n"], cwd=CHECKOUT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_environment_can_be_activated():
    if not (Path(sys.prefix) / "bin/activate").is_file():
        pytest.skip("these tests do not run in a virtual environment")
    line = ACTIVATE.replace(".venv", shlex.quote(sys.prefix))
    done = subprocess.run(["sh", "-c", f"{line} && command -v pytest"], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == f"{sys.prefix}/bin/pytest"


def test_a_junit_report_tells_the_verdict(world):
    world.run(JUNIT)

    assert 'name="release verdict"' in (world.folder / "report.xml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.needs_torch
@pytest.mark.parametrize("command", [command for command in EXECUTED if command not in {RECORD, BINS, JUNIT}])
def test_a_command_ends_as_described(recorded, command):
    recorded.run(command)


@pytest.mark.slow
@pytest.mark.needs_torch
def test_a_recorded_reference_is_where_it_was_asked_for(recorded):
    assert {path.name for path in (recorded.folder / "ref").iterdir()} >= {"reference.json", "detections.npz"}


@pytest.mark.slow
@pytest.mark.needs_torch
def test_input_files_are_where_they_were_asked_for(recorded):
    recorded.run(BINS)

    assert len(list((recorded.folder / "bins").glob("*.bin"))) == IMAGES


@pytest.mark.slow
@pytest.mark.needs_torch
def test_the_t4_protocol_prints_a_table_for_the_spec(recorded):
    _, *words = shlex.split(T4_PROTOCOL)
    tried_out = ["--provider=cpu", "--calls=2", "--batch-sizes=1"]
    done = python(*map(recorded.placed, words), *tried_out)

    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["baselines"]
    assert (recorded.folder / "t4.json").is_file()


# --- evidence


@pytest.fixture
def shown(tmp_path):
    """Execute a command on evidence below a folder of its own."""

    def run(text):
        words = [
            re.sub(r"(^|=)(reports/|release_key|allowed_signers)", rf"\1{tmp_path}/\2", word) for word in text.split()
        ]
        arguments = words[1:] if words[0] == "python" else ["-m", "pytest", "-p", "no:cacheprovider", *words[1:]]
        done = python(*arguments)
        return done.returncode, done.stdout + done.stderr

    run.folder = tmp_path / "reports"
    return run


def test_evidence_is_left_and_replayed_as_shown(world, shown):
    done = world.pytest(REPORT.replace("reports/new", str(shown.folder / "new")), "acceptance/test_dataset.py")
    assert (shown.folder / "new/report.html").is_file(), done.stdout + done.stderr
    status, text = shown(REPLAY)
    assert status == 10, text
    assert "new: unsigned" in text
    assert text.endswith("undetermined: replay of shapes_small on cpu (not a release): partial\n")


def test_evidence_is_signed_as_shown(shown):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    bundles.World().write(shown.folder / "new")
    key = shown.folder.parent / "release_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (shown.folder.parent / "allowed_signers").write_text(f"manager {key.with_suffix('.pub').read_text()}")
    assert shown(SIGNED)[0] == 1
    assert shown(SIGN)[0] == 0
    status, text = shown(SIGNED)
    assert (status, "signed by manager, verified" in text) == (0, True), text


def test_evidence_of_three_hosts_is_joined_as_shown(shown):
    spec = bundles.the_spec(clauses__throughput_same_chip__limits__ratio__value=0.01)
    for chip, seconds in {"310P3": 0.01, "310": 0.03, "T4": 0.05}.items():
        bundles.World(chip, spec=spec, seconds=seconds).write(shown.folder / chip)
    status, text = shown(JOIN)
    assert status == 10, text
    assert "small_d0 on 310P3 + 310 + T4 (not a release): not-a-release" in text
    assert (shown.folder / "joined/report.html").is_file()


def test_releases_are_compared_as_shown(shown):
    bundles.World().write(shown.folder / "old")
    looser = bundles.the_spec(clauses__suspicious_gain__limits__ap_gain__value=9.0)
    bundles.World(spec=looser).write(shown.folder / "new")
    status, text = shown(COMPARE)
    assert (status, "LOOSENED limit suspicious_gain.ap_gain: 0.3 -> 9" in text) == (1, True), text


def test_the_waiver_shown_is_one(tmp_path):
    (example,) = [block["body"] for block in FENCE.finditer(README) if block["language"] == "toml"]
    (tmp_path / "waivers.toml").write_text(example)
    required = RunOptions(spec="shapes_d0").required(load_spec("shapes_d0"))
    (waiver,) = load_waivers(tmp_path / "waivers.toml", required, dt.date(2027, 1, 31))
    assert (waiver.clause, waiver.batch) == ("class_size_guard", 64)


@pytest.mark.parametrize("command", HARDWARE)
def test_pytest_accepts_every_option_of_a_command_for_hardware(world, command):
    done = world.pytest(command, "acceptance/test_dataset.py", "--collect-only", "-q")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 test collected" in done.stdout


def test_pytest_refuses_an_option_it_does_not_know(world):
    done = world.pytest(f"{HARDWARE[0]} --quick", "acceptance/test_dataset.py", "--collect-only", "-q")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--quick" in done.stderr


def test_extras_that_are_installed_exist():
    named = {name for found in re.findall(r"'\.\[([\w,]+)\]'", README) for name in found.split(",")}

    assert named
    assert named <= PROJECT["optional-dependencies"].keys()


# --- tables


def test_the_table_of_faults_is_that_of_the_simulator():
    assert {row[0].strip("`"): row[1].lower() for row in table("Fault")} == {
        name: text.lower() for name, text in FAULTS.items()
    }


def table(first):
    text = README.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def names(lines):
    return [re.match(r"[\w-]+", line)[0] for line in lines]


def words_in_code(text):
    return re.findall(r"`([^`]+)`", text)


class Group:
    """A group of pytest's parser, as a plain argument parser."""

    def __init__(self):
        self.parser = argparse.ArgumentParser(add_help=False)

    def getgroup(self, *_):
        return self

    def addoption(self, name, **keywords):
        self.parser.add_argument(name, **keywords)


@pytest.fixture
def options():
    group = Group()
    pytest_addoption(group)
    return group.parser


def test_the_table_of_options_is_that_of_the_parser(options):
    defaults = {action.option_strings[0]: action.help for action in options._actions}

    assert [row[0].strip("`") for row in table("Option")] == list(defaults)
    for option, default, *_ in table("Option"):
        assert f"(default: {default.strip('`')})" in defaults[option.strip("`")]


def test_every_example_of_an_option_is_accepted(options):
    for option, *_, example in table("Option"):
        (word,) = shlex.split(example.strip("`"))
        assert word.startswith(option.strip("`"))
        options.parse_args([word])


def test_every_clause_has_a_row_that_tells_whether_it_is_judged_at_every_batch_size():
    rows = {words_in_code(row[0])[0]: "†" in row[0] for row in table("Clause")}

    assert rows == {name: kind.per_batch for name, kind in CATALOGUE.items()}


def test_every_verdict_and_reason_has_a_row():
    assert {row[0]: int(row[1]) for row in table("Verdict")} == dict(EXIT_STATUS)
    assert [row[0].strip("`") for row in table("Reason")] == list(REASONS)


def test_every_required_package_has_a_row():
    extras = {extra: set(names(lines)) for extra, lines in PROJECT["optional-dependencies"].items()}

    assert [row[0].strip("`") for row in table("Package")] == names(PROJECT["dependencies"])
    assert {row[0].strip("`"): set(row[1].split(", ")) for row in table("Extra")} == extras


SOURCES = [
    path.read_text(encoding="utf-8") for folder in ("support", "fixtures") for path in (CHECKOUT / folder).rglob("*.py")
]


def is_printed(message):
    parts = [part.strip() for part in message.split("…") if part.strip()]
    return bool(parts) and any(all(part in source for part in parts) for source in SOURCES)


@pytest.mark.parametrize("message", [word for row in table("Message") for word in words_in_code(row[0])])
def test_a_message_that_is_explained_is_one_the_code_prints(message):
    assert is_printed(message)


def test_a_message_the_code_does_not_print_is_noticed():
    assert not is_printed("the moon of … is full")


def test_every_folder_of_the_layout_exists():
    assert all((CHECKOUT / row[0].strip("`")).is_dir() for row in table("Folder"))


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)\s]+)\)", README)

    assert targets
    assert all((CHECKOUT / target).exists() for target in targets)
