import datetime as dt

import pytest

from support.faults.record import CleanRun, Outcome, SelfTest
from support.report.selftest import render_selftest

CAUGHT = Outcome(
    fault="tail-dropped",
    step="batching",
    corrupts="The tail is dropped",
    expected="coverage[bs8] rejected",
    suspect="tail batch",
    word="rejected",
    reason="",
    found_suspect="tail batch, image order or stale results",
    findings=("not scored: 2 image ids",),
    caught=True,
    seconds=1.25,
)
HUNG = CAUGHT.model_copy(
    update={
        "fault": "device-hang",
        "step": "device",
        "word": "undetermined",
        "found_suspect": "",
        "findings": ("call 1",),
    }
)
MISSED = CAUGHT.model_copy(
    update={
        "fault": "half-lost",
        "caught": False,
        "word": "accepted",
        "found_suspect": "",
        "findings": ("[bold]\x1b[2J",),
    }
)
CLEAN = CleanRun(name="seed0-bs1-bs8", seed=0, images=66, batch_sizes=(1, 8), clauses=36, red=(), seconds=20.0)
ALARMED = CLEAN.model_copy(update={"name": "seed1", "red": ("coverage[bs8] rejected",)})


@pytest.fixture
def render():
    def render(faults=(CAUGHT, HUNG), clean_runs=(CLEAN,), **options):
        ended = dt.datetime(2026, 11, 24, tzinfo=dt.timezone.utc)
        result = SelfTest(code="0" * 64, ended=ended, full=False, faults=faults, clean_runs=clean_runs)
        return render_selftest(result, **{"width": 160, "color": False, **options})

    return render


def test_every_fault_and_every_clean_run_has_a_row(render):
    text = render()
    (row,) = [" ".join(line.split()) for line in text.splitlines() if "tail-dropped" in line]
    assert row == "batching tail-dropped coverage[bs8] rejected tail batch caught 1.2"
    assert [line for line in text.splitlines() if "device-hang" in line and "caught" in line]
    (row,) = [" ".join(line.split()) for line in text.splitlines() if "seed0-bs1-bs8" in line]
    assert row == "seed0-bs1-bs8 66 1, 8 36 accepted 20.0"
    assert text.splitlines()[-1] == ("self-test: 2 of 2 faults caught (100.0 %), 0 of 1 clean runs with a false alarm")


def test_a_missed_fault_is_explained(render):
    text = render(faults=(CAUGHT, MISSED))
    assert "MISSED  half-lost: The tail is dropped" in text
    assert "must be coverage[bs8] rejected, pointing at 'tail batch'; is accepted" in text
    assert text.splitlines()[-1].startswith("self-test: 1 of 2 faults caught (50.0 %)")


def test_a_false_alarm_names_its_clauses(render):
    text = render(clean_runs=(CLEAN, ALARMED))
    assert [line for line in text.splitlines() if "seed1" in line and "coverage[bs8] rejected" in line]
    assert text.splitlines()[-1].endswith("1 of 2 clean runs with a false alarm")


def test_nothing_that_was_found_commands_the_terminal(render):
    text = render(faults=(MISSED,))
    assert "\x1b" not in text
    assert r"[bold]\x1b[2J" in text


def test_single_faults_have_no_table_of_clean_runs(render):
    assert "Clean runs" not in render(clean_runs=())


def test_colours_are_written_only_where_wanted(render):
    assert "\x1b[" in render(color=True)
