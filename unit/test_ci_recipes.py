import importlib.util
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.capabilities import CPU
from support.errors import UsageError
from support.spec import load_spec, tomllib
from support.verdict import EXIT_STATUS

yaml = pytest.importorskip("ruamel.yaml", reason="ruamel.yaml is not installed: it comes with the extra dev")

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = CHECKOUT / ".ci"
GITHUB, GITLAB = "github-actions.yml", "gitlab-ci.yml"
RECIPES = {name: (FOLDER / name).read_text(encoding="utf-8") for name in (GITHUB, GITLAB)}

EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

#: Chips of the release gate; the joined gate replays the evidence of each.
RELEASED = {"310", "310P3", "T4"}
BY_HAND_OR_TAG = {
    GITHUB: "github.event_name == 'workflow_dispatch' || github.ref_type == 'tag'",
    GITLAB: [{"if": "$CI_COMMIT_TAG"}, {"if": '$CI_PIPELINE_SOURCE == "web"'}],
}
#: What lets a job pass that has failed.
FORGIVING_KEYS = re.compile(r"(?m)^ *(?:- )?(continue-on-error|allow_failure|when: manual)")
FORGIVING_SHELL = re.compile(r"\|\||\bset \+\w*e|\bexit\b")
MISSING = object()


@dataclass(frozen=True)
class Job:
    """One job as it will run: a row of a matrix, or a job with everything it extends."""

    name: str
    script: str
    variables: dict
    on_device: bool
    started_by: object
    has_time_limit: bool
    keeps_report: bool

    @property
    def lines(self):
        """The script with the job's variables in their places; what only a user can tell is X."""
        text = self.script.replace("\\\n", " ")
        return string.Template(text).safe_substitute(defaultdict(lambda: "X", self.variables)).splitlines()

    @property
    def gates(self):
        return [shlex.split(line) for line in self.lines if line.startswith(".ci/judge ")]


def loaded(text):
    # YAML 1.2, as GitHub reads it: `on` is a word. A key that is there twice is an error.
    return yaml.YAML(typ="safe", pure=True).load(text)


def jobs_of(recipe, document):
    return list(github_jobs(document) if recipe == GITHUB else gitlab_jobs(document))


def github_jobs(document):
    for name, job in document["jobs"].items():
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            yield github_job(name, job, row)


def github_job(name, job, row):
    uploads = [step for step in job["steps"] if str(step.get("uses", "")).startswith("actions/upload-artifact@")]
    return Job(
        name=f"{name} {row.get('chip', '')}".strip(),
        script="\n".join(step["run"] for step in job["steps"] if "run" in step),
        variables={
            key: re.sub(r"\$\{\{ matrix\.([\w-]+) \}\}", lambda found: row[found[1]], str(value))
            for key, value in job.get("env", {}).items()
        },
        on_device="self-hosted" in job["runs-on"],
        started_by=job.get("if"),
        has_time_limit="timeout-minutes" in job,
        keeps_report=any(
            step.get("if") == "always()"
            and step["with"].get("path") == "reports"
            and step["with"].get("if-no-files-found") == "error"
            for step in uploads
        ),
    )


def gitlab_jobs(document):
    for name, job in document.items():
        if isinstance(job, dict) and "script" in extended(document, job) and not name.startswith("."):
            yield gitlab_job(name, extended(document, job))


def extended(document, job):
    parents = job.get("extends", [])
    merged = {}
    for name in [parents] if isinstance(parents, str) else parents:
        merged |= extended(document, document[name])
    # Of nested keys our recipe overrides variables alone.
    return {**merged, **job, "variables": {**merged.get("variables", {}), **job.get("variables", {})}}


def gitlab_job(name, job):
    artifacts = job.get("artifacts", {})
    return Job(
        name=name,
        script="\n".join([*job.get("before_script", []), *job["script"]]),
        variables=job["variables"],
        on_device="tags" in job,
        started_by=job.get("rules"),
        has_time_limit="timeout" in job,
        keeps_report=artifacts.get("when") == "always"
        and "reports/" in artifacts.get("paths", [])
        and artifacts.get("reports") == {"junit": "reports/*.xml"},
    )


# --- what must hold in every recipe


def problems(recipe, text, knows):
    """Everything that is wrong with a recipe; `knows` tells whether pytest has an option."""
    document = loaded(text)
    jobs = jobs_of(recipe, document)
    found = [f"{job.name}: {problem}" for job in jobs for problem in problems_of_job(recipe, job, knows)]
    found += [f"forgiving: {key}" for key in FORGIVING_KEYS.findall(text)]
    chips = {value for job in jobs for gate in job.gates for value in values(gate, "--chip")} - {CPU}
    replayed = {value for job in jobs for gate in job.gates for value in values(gate, "--replay")}
    if chips != RELEASED or replayed != {f"reports/{chip}" for chip in RELEASED}:
        found.append(f"released {sorted(chips)}, joined {sorted(replayed)}")
    return [*found, *(problems_of_workflow(document) if recipe == GITHUB else ())]


def problems_of_job(recipe, job, knows):
    if not job.has_time_limit:
        yield "no time limit"
    yield from (f"forgiving: {words}" for words in FORGIVING_SHELL.findall(job.script))
    if "${{" in job.script:
        yield "text of others becomes code"
    if job.on_device and job.started_by != BY_HAND_OR_TAG[recipe]:
        yield "a stranger can start it on a device"
    extras = {name for names in re.findall(r"\.\[([^]]*)\]", "\n".join(job.lines)) for name in names.split(",")}
    yield from (f"unknown extra {name!r}" for name in sorted(extras - EXTRAS.keys()))
    if "pytest" in job.script and job.script.count("pytest") != len(job.gates):
        yield "pytest without .ci/judge"
    if job.gates and not job.keeps_report:
        yield "no report is kept"
    for gate in job.gates:
        yield from problems_of_gate(job, gate, knows)


def problems_of_gate(job, gate, knows):
    _, folder, program, *words = gate
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    yield from (f"unknown option {option}" for option in options if option != "-m" and not knows(option))
    if not program.endswith("/pytest"):
        yield f"runs {program}"
    if values(gate, "--report-dir") != [folder]:
        yield f"the report is not in {folder}"
    # A bundle is sealed: a file that does not belong to it breaks it.
    if [Path(path).parent for path in values(gate, "--junitxml")] != [Path(folder).parent]:
        yield "JUnit is not beside the bundle"
    if ("--release" in words) != (values(gate, "--chip") != [CPU]):
        yield "--release is for a release, and for nothing else"
    try:
        spec = load_spec(*values(gate, "--spec") or ["efficientdet_d0"])
    except UsageError as error:
        yield str(error)
        return
    known = (CPU, *spec.throughput.same_chip)
    yield from (f"unknown chip {chip}" for chip in values(gate, "--chip") if chip not in known)


def values(gate, option):
    return [word.partition("=")[2] for word in gate if word.startswith(f"{option}=")]


def problems_of_workflow(document):
    used = [step["uses"] for job in document["jobs"].values() for step in job["steps"] if "uses" in step]
    yield from (f"not pinned: {action}" for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+", action))
    if [document["permissions"], *filter(None, (job.get("permissions") for job in document["jobs"].values()))] != [
        {"contents": "read"}
    ]:
        yield "more permissions than it needs"
    if document["on"].keys() != {"push", "pull_request", "workflow_dispatch"}:
        yield f"started by {', '.join(document['on'])}"


@pytest.fixture
def knows(pytestconfig):
    return lambda option: pytestconfig.getoption(option, MISSING) is not MISSING


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_no_problem(recipe, knows):
    assert problems(recipe, RECIPES[recipe], knows) == []


ANYWHERE = [
    ("--report-dir=reports/kit", "--report-folder=reports/kit", "unknown option --report-folder"),
    ("--chip=cpu", "--chip=410", "unknown chip 410"),
    ("--spec=shapes_d0", "--spec=shapes_d9", "shapes_d9"),
    (".ci/judge reports/kit .venv", ".venv", "pytest without .ci/judge"),
    (".ci/judge reports/kit", ".ci/judge reports/another", "the report is not in reports/another"),
    (".ci/judge reports/kit .venv/bin/pytest", ".ci/judge reports/kit echo pytest", "runs echo"),
    ("reports/kit.xml", "reports/kit/junit.xml", "JUnit is not beside the bundle"),
    ("--junitxml=reports/joined.xml", "--junitxml=reports/joined.xml || true", "joined: forgiving: ||"),
    ("make test", "make test || true", "tests: forgiving: ||"),
    ("make test", "set +e; make test", "tests: forgiving: set +e"),
    ("make test", "make test; exit 0", "tests: forgiving: exit"),
    ('--chip="$CHIP" --release', '--chip="$CHIP"', "--release is for a release"),
    ("--spec=shapes_d0", "--spec=shapes_d0 --release", "--release is for a release"),
    ("--replay=reports/T4", "", "joined ['reports/310', 'reports/310P3']"),
]
ON_GITHUB = [
    ("chip: T4", "chip: T5", "unknown chip T5"),
    ("export,cuda", "export,gpu", "unknown extra 'gpu'"),
    ("if: always()", "if: success()", "no report is kept"),
    ("path: reports\n", "path: report\n", "no report is kept"),
    ("if-no-files-found: error", "if-no-files-found: ignore", "no report is kept"),
    ("    timeout-minutes: 45\n", "", "no time limit"),
    ("    timeout-minutes: 45\n", "    timeout-minutes: 45\n    continue-on-error: true\n", "forgiving: continue"),
    ('"$CHECKPOINT"', '"${{ inputs.checkpoint }}"', "text of others becomes code"),
    ("contents: read", "contents: write", "more permissions"),
    ("    needs: gate\n", "    needs: gate\n    permissions: write-all\n", "more permissions"),
    ("pull_request:", "pull_request_target:", "pull_request_target"),
    ("github.ref_type == 'tag'", "github.event_name == 'pull_request'", "a stranger can start it"),
    ("actions/checkout@v4", "actions/checkout@main", "not pinned: actions/checkout@main"),
    ("actions/checkout@v4", "somebody/checkout@v4", "not pinned: somebody/checkout@v4"),
]
ON_GITLAB = [
    ("CHIP: T4", "CHIP: T5", "unknown chip T5"),
    ("export,cuda", "export,gpu", "unknown extra 'gpu'"),
    ("    when: always\n    expose", "    when: on_success\n    expose", "no report is kept"),
    ("paths: [reports/]", "paths: [reports]", "no report is kept"),
    ("  timeout: 45m\n", "", "no time limit"),
    ("  timeout: 45m\n", "  timeout: 45m\n  allow_failure: true\n", "forgiving: allow_failure"),
    ("  timeout: 8h\n", "  timeout: 8h\n  allow_failure: {exit_codes: 10}\n", "forgiving: allow_failure"),
    ("  timeout: 8h\n", "  timeout: 8h\n  when: manual\n", "forgiving: when: manual"),
    ('$CI_PIPELINE_SOURCE == "web"\n  timeout', "$CI_MERGE_REQUEST_IID\n  timeout", "a stranger can start it"),
]
TWINS = [
    *((recipe, *twin) for recipe in RECIPES for twin in ANYWHERE),
    *((GITHUB, *twin) for twin in ON_GITHUB),
    *((GITLAB, *twin) for twin in ON_GITLAB),
]


@pytest.mark.parametrize(("recipe", "right", "wrong", "finds"), TWINS, ids=[f"{twin[0]} {twin[3]}" for twin in TWINS])
def test_a_recipe_with_one_fault_is_noticed(recipe, right, wrong, finds, knows):
    assert right in RECIPES[recipe]
    found = problems(recipe, RECIPES[recipe].replace(right, wrong), knows)

    assert any(finds in problem for problem in found), found


def test_a_key_that_is_there_twice_is_noticed():
    with pytest.raises(yaml.constructor.DuplicateKeyError):
        loaded(RECIPES[GITHUB].replace("  kit:\n", "  kit:\n    name: First\n"))


# --- linters, where they are installed


def tool(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: it comes with the extra dev, on x86_64")
    return found


def finished(*command, **keywords):
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False, **keywords)


def judged_by_schema(recipe, text, folder):
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed: it comes with the extra dev")
    schema = {GITHUB: "vendor.github-workflows", GITLAB: "vendor.gitlab-ci"}[recipe]
    (folder / recipe).write_text(text, encoding="utf-8")
    return finished(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(folder / recipe))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_the_schema_of_its_system(recipe, tmp_path):
    done = judged_by_schema(recipe, RECIPES[recipe], tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("recipe", "right", "wrong"),
    [(GITHUB, "runs-on: ubuntu-latest", "run-on: ubuntu-latest"), (GITLAB, "when: always", "when: ever")],
)
def test_a_recipe_that_does_not_fit_the_schema_is_noticed(recipe, right, wrong, tmp_path):
    assert judged_by_schema(recipe, RECIPES[recipe].replace(right, wrong), tmp_path).returncode == 1


def audited(text, folder):
    (folder / GITHUB).write_text(text, encoding="utf-8")
    command = (tool("zizmor"), "--offline", "--no-progress", "--config", str(FOLDER / "zizmor.yml"))
    return finished(*command, str(folder / GITHUB))


def test_an_audit_of_the_workflow_finds_nothing(tmp_path):
    done = audited(RECIPES[GITHUB], tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ('--checkpoint="$CHECKPOINT"', "--checkpoint=${{ inputs.checkpoint }}", "template-injection"),
        ("        with:\n          persist-credentials: false\n", "", "artipacked"),
        ("contents: read", "contents: write", "excessive-permissions"),
        ("pull_request:", "pull_request_target:", "dangerous-triggers"),
        ("actions/checkout@v4", "somebody/checkout@v4", "unpinned-uses"),
    ],
)
def test_an_audit_finds_an_unsafe_workflow(right, wrong, rule, tmp_path):
    assert right in RECIPES[GITHUB]
    done = audited(RECIPES[GITHUB].replace(right, wrong), tmp_path)

    assert done.returncode != 0
    assert f"[{rule}]" in done.stdout


JOBS = [(recipe, job) for recipe, text in RECIPES.items() for job in jobs_of(recipe, loaded(text))]
SCRIPTS = {f"{recipe} {job.name}": job.script for recipe, job in JOBS}
SCRIPTS["judge"] = (FOLDER / "judge").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_shell(name):
    done = finished("bash", "-n", input=SCRIPTS[name])

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    done = finished(tool("shellcheck"), "--shell=bash", "-", input=SCRIPTS[name])

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_shellcheck_finds_a_variable_of_a_user_without_quotes(recipe):
    bare = RECIPES[recipe].replace('"$CHECKPOINT"', "$CHECKPOINT")
    script = next(job.script for job in jobs_of(recipe, loaded(bare)) if job.on_device)

    assert "SC2086" in finished(tool("shellcheck"), "--shell=bash", "-", input=script).stdout


# --- executed, with a pytest that ends as asked

KILLED = 128 + 9
WORDS = {
    **{status: word for word, status in EXIT_STATUS.items()},
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.INTERNAL_ERROR: "internal error",
    pytest.ExitCode.USAGE_ERROR: "usage error",
    pytest.ExitCode.NO_TESTS_COLLECTED: "no tests",
    KILLED: "broken off",
}
SUMMARY = r"\*\*{}\*\* \(exit status {}\): .* There is no report\.\n"
LEVELS = {"accepted": "notice", "undetermined": "warning"}
# Prints its arguments, one a line, and writes a report where it is told to.
PYTEST = """#!/bin/sh
for word; do
    echo "<$word>"
    case $word in --report-dir=*) folder=${word#*=} ;; esac
done
if [ -n "$REPORT" ]; then mkdir -p "$folder"; echo "$REPORT" >"$folder/report.md"; fi
exit "$STATUS"
"""
GATES = [(recipe, job) for recipe, job in JOBS if job.gates]
HOSTILE = "$(touch owned) `touch owned`; touch owned '\" *"


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(FOLDER / "judge", tmp_path / ".ci")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in {"pytest": PYTEST, "python": "#!/bin/sh\n"}.items():
        (tmp_path / ".venv/bin" / name).write_text(text)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    # Found before the real one; the environment that a recipe makes is already there.
    (tmp_path / "python").symlink_to(".venv/bin/python")
    (tmp_path / "set_env.sh").write_text("export ASCEND_HOME_PATH=/sourced\n")
    return tmp_path


def run_job(checkout, job, status, *, report="# Report", **more):
    variables = {**job.variables, "CHECKPOINT": "d0.pth", "COCO_ROOT": "coco", "PYTHON": "./python", **more}
    if variables.get("SET_ENV"):
        variables["SET_ENV"] = "./set_env.sh"
    environment = {"PATH": f"{checkout}:{os.environ['PATH']}", "STATUS": str(int(status)), "REPORT": report}
    # Both systems run a script in this way.
    return finished("bash", "-eo", "pipefail", "-c", job.script, cwd=checkout, env={**environment, **variables})


@pytest.mark.parametrize("status", [*EXIT_STATUS.values(), pytest.ExitCode.USAGE_ERROR])
@pytest.mark.parametrize(("recipe", "job"), GATES, ids=lambda value: getattr(value, "name", value))
def test_a_job_ends_as_pytest_did_and_says_what_that_means(checkout, recipe, job, status):
    done = run_job(checkout, job, status)

    assert done.returncode == status
    assert done.stdout.splitlines()[-1].startswith(f"{WORDS[status]} (exit status {int(status)}): ")


def test_the_readme_explains_every_exit_status():
    table = (CHECKOUT / "README.md").read_text(encoding="utf-8").split("\n| Status |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]

    assert {int(status): word for status, word in rows[:-1]} == {
        int(status): word for status, word in WORDS.items() if status != KILLED
    }
    assert rows[-1] == ["any other", WORDS[KILLED]]


@pytest.mark.parametrize("status", WORDS)
def test_github_shows_at_the_run_why_it_is_red(checkout, status):
    done = run_job(checkout, GATES[0][1], status, GITHUB_ACTIONS="true")
    level = LEVELS.get(WORDS[status], "error")

    assert f"\n::{level} title={WORDS[status]}::exit status {int(status)}: " in done.stdout


@pytest.mark.parametrize("status", EXIT_STATUS.values())
def test_the_report_is_the_summary_whatever_the_verdict(checkout, status):
    run_job(checkout, GATES[0][1], status, GITHUB_STEP_SUMMARY="summary.md")

    assert (checkout / "summary.md").read_text() == "# Report\n"


def test_a_summary_without_a_report_says_so(checkout):
    run_job(checkout, GATES[0][1], EXIT_STATUS["undetermined"], report="", GITHUB_STEP_SUMMARY="summary.md")

    assert re.fullmatch(SUMMARY.format("undetermined", 10), (checkout / "summary.md").read_text())


@pytest.mark.parametrize("status", [status for status in WORDS if status not in EXIT_STATUS.values()])
def test_the_report_of_an_older_run_is_no_summary_of_one_without_a_verdict(checkout, status):
    run_job(checkout, GATES[0][1], status, GITHUB_STEP_SUMMARY="summary.md")

    assert re.fullmatch(SUMMARY.format(WORDS[status], int(status)), (checkout / "summary.md").read_text())


def test_a_job_whose_pytest_cannot_be_started_is_red(checkout):
    (checkout / ".venv/bin/pytest").unlink()
    done = run_job(checkout, GATES[0][1], 0)

    assert done.returncode == 127
    assert "broken off (exit status 127): " in done.stdout


def test_a_judge_without_a_command_is_a_usage_error(checkout):
    assert finished(".ci/judge", "reports/kit", cwd=checkout).returncode == pytest.ExitCode.USAGE_ERROR


DEVICES = [(recipe, job) for recipe, job in GATES if job.on_device]


@pytest.mark.parametrize(("recipe", "job"), DEVICES, ids=lambda value: getattr(value, "name", value))
def test_what_a_user_types_stays_one_word(checkout, recipe, job):
    done = run_job(checkout, job, 0, CHECKPOINT=HOSTILE)

    assert f"<--checkpoint={HOSTILE}>\n" in done.stdout
    assert not (checkout / "owned").exists()


@pytest.mark.parametrize(("recipe", "job"), DEVICES, ids=lambda value: getattr(value, "name", value))
def test_an_npu_host_has_the_environment_of_cann_and_a_t4_host_has_not(checkout, recipe, job):
    (checkout / ".venv/bin/pytest").write_text('#!/bin/sh\necho "<$ASCEND_HOME_PATH>"\n')

    assert ("</sourced>" in run_job(checkout, job, 0).stdout) == (job.variables["CHIP"] != "T4")
