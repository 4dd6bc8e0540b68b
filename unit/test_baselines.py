import json

import pytest

from support.baselines import (
    ThroughputRecord,
    best_accepted,
    machine_identity,
    saved_files,
    throughput_record,
    verdict_record,
)
from support.errors import NoBaselineError, UsageError, WrongDataError
from support.spec import load_spec
from support.timing import CallSample, PassTiming, estimate
from support.verdict import ClauseVerdict, release_verdict

HERE = "rack7, 96 x Kunpeng 920, chip 0x4c"

RULES = load_spec("efficientdet_d0").throughput


def record(rate=100.0, *, machine=HERE, spec="efficientdet_d0", **changes):
    calls = tuple(CallSample(4 / rate, 4) for _ in range(3))
    timing = PassTiming("310P3", 4, calls, (), "device compute only", False)
    whole = throughput_record(estimate(timing, RULES), spec=spec, machine=machine)
    return whole.model_copy(update=changes)


@pytest.fixture
def storage(tmp_path):
    folder = tmp_path / "Linux-CPython-3.11-64bit"
    folder.mkdir()

    def save(number, *records, word="accepted"):
        benchmarks = [{"extra_info": item.model_dump(mode="json"), "stats": {}} for item in records]
        verdict = {"word": word} if word else None
        run = {"datetime": "2026-11-01T10:00:00", "benchmarks": benchmarks, "verdict": verdict}
        path = folder / f"{number:04}_run.json"
        path.write_text(json.dumps(run))
        return path

    return save


def best(tmp_path, current=None):
    return best_accepted(saved_files(str(tmp_path)), current or record())


def test_the_fastest_accepted_run_is_the_baseline_not_the_latest(storage, tmp_path):
    storage(1, record(100))
    fastest = storage(2, record(120))
    storage(3, record(110))
    found = best(tmp_path)
    assert found.record.images_per_second == pytest.approx(120)
    assert (found.file, found.saved, found.accepted) == (fastest, "2026-11-01T10:00:00", True)


@pytest.mark.parametrize("word", ["rejected", "undetermined", ""])
def test_a_faster_run_that_was_not_accepted_is_no_baseline(storage, tmp_path, word):
    storage(1, record(100))
    storage(2, record(500), word=word)
    assert best(tmp_path).record.images_per_second == pytest.approx(100)


@pytest.mark.parametrize(
    "other",
    [
        record(500, batch=8),
        record(500, chip="310P"),
        record(500, spec="shapes_d0"),
        record(500, machine="rack8, 96 x Kunpeng 920, chip 0x4d"),
        record(500, timer="wall time"),
    ],
    ids=["batch", "chip", "spec", "machine", "timer"],
)
def test_only_runs_of_the_same_case_machine_and_timer_are_baselines(storage, tmp_path, other):
    storage(1, other, record(100))
    assert best(tmp_path).record.images_per_second == pytest.approx(100)


def test_runs_saved_by_another_python_are_found(storage, tmp_path):
    path = storage(1, record(100))
    path.parent.rename(tmp_path / "Linux-CPython-3.13-64bit")
    assert best(tmp_path).record == record(100)


def test_benchmarks_of_other_things_are_passed_over(storage, tmp_path):
    path = storage(1, record(100))
    run = json.loads(path.read_text())
    run["benchmarks"].insert(0, {"extra_info": {"images": 3}, "stats": {}})
    path.write_text(json.dumps(run))
    assert best(tmp_path).record == record(100)


def test_no_saved_run_is_no_baseline(tmp_path):
    with pytest.raises(
        NoBaselineError, match="efficientdet_d0 on 310P3 at batch 4 to compare with: there are no saved"
    ):
        best(tmp_path)


def test_runs_of_other_cases_are_no_baseline(storage, tmp_path):
    storage(1, record(batch=8))
    storage(2, record(chip="310P"))
    with pytest.raises(NoBaselineError, match="2 saved runs, none of this spec, chip and batch size"):
        best(tmp_path)


def test_what_was_found_instead_of_a_baseline_is_counted(storage, tmp_path):
    storage(1, record(machine="rack8"), record(machine="rack9"))
    storage(2, record(timer="wall time"))
    storage(3, record(), word="rejected")
    expected = (
        r"4 saved, 2 of another machine \(rack8; rack9\), 1 timed differently, 1 not accepted\n.*--benchmark-auto"
    )
    with pytest.raises(NoBaselineError, match=f"(?s){expected}"):
        best(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not the structure of a saved run: AttributeError"),
        ("{}", "not the structure of a saved run: KeyError: 'benchmarks'"),
        ('{"benchmarks": [{"extra_info": {"images_per_second": 1}}]}', "extra_info.spec: Field required"),
        ('{"benchmarks": [3]}', "not the structure of a saved run: TypeError"),
    ],
)
def test_a_damaged_file_is_named_and_not_passed_over(storage, tmp_path, text, problem):
    storage(1, record())
    storage(2, record()).write_text(text)
    with pytest.raises(WrongDataError, match=f"0002_run.json: {problem}"):
        best(tmp_path)


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "0", "-3", '"fast"'])
def test_a_damaged_figure_is_refused(storage, tmp_path, figure):
    path = storage(1, record())
    path.write_text(path.read_text().replace('"images_per_second": 100.0', f'"images_per_second": {figure}'))
    with pytest.raises(WrongDataError, match=r"0001_run\.json: extra_info\.images_per_second"):
        best(tmp_path)


def test_a_record_survives_json_without_an_upper_bound():
    calls = CallSample(0.1, 4), CallSample(1.0, 4)
    measured = estimate(PassTiming("cpu", 4, calls, (), "wall", True), RULES)
    noisy = throughput_record(measured, spec="shapes_d0", machine=HERE)
    assert noisy.upper is None
    assert ThroughputRecord.model_validate_json(noisy.model_dump_json()) == noisy


def test_the_saved_verdict_says_word_scope_and_reasons():
    clause = ClauseVerdict(clause="timed_outputs", word="undetermined", reason="partial")
    verdict = release_verdict([clause], [("timed_outputs", None)], scope="throughput", subject="shapes_d0 on cpu")
    assert verdict_record(verdict) == {
        "word": "undetermined",
        "scope": "throughput",
        "subject": "shapes_d0 on cpu",
        "is_release": False,
        "reasons": ["partial"],
    }
    assert verdict_record(None) is None


@pytest.mark.parametrize("changed", [{"node": "rack8"}, {"cpu": {"brand_raw": "Kunpeng 920", "count": 48}}])
def test_another_machine_has_another_identity(changed):
    info = {"node": "rack7", "cpu": {"brand_raw": "Kunpeng 920", "count": 96}}
    assert machine_identity(info) != machine_identity(info | changed)


def test_what_changes_from_run_to_run_is_not_part_of_the_identity():
    info = {"node": "rack7", "cpu": {"brand_raw": "Kunpeng 920", "count": 96, "hz_actual": 1}, "python_version": "3.11"}
    assert machine_identity(info, "0x4c") == HERE


def test_a_processor_without_a_brand_is_named_by_its_architecture():
    assert machine_identity({"node": "rack7", "machine": "aarch64", "cpu": {"count": 4}}) == "rack7, 4 x aarch64"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_saved_runs_are_listed_in_order_and_nothing_else_is(tmp_path, prefix):
    (tmp_path / "Linux").mkdir()
    for name in ("Linux/0002_b.json", "Linux/0001_a.json", "0003_c.json", "Linux/notes.json", "Linux/0001_a.txt"):
        (tmp_path / name).touch()
    found = [path.name for path in saved_files(f"{prefix}{tmp_path}")]
    assert found == ["0003_c.json", "0001_a.json", "0002_b.json"]


def test_a_storage_that_is_not_a_folder_is_refused():
    with pytest.raises(UsageError, match=r"elasticsearch\+http://host/.*from files only"):
        saved_files("elasticsearch+http://host/index")
