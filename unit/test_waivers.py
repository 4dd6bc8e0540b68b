import datetime as dt

import pytest

from support.errors import UsageError
from support.verdict import ClauseVerdict, judge
from support.waivers import MAX_BYTES, Waiver, load_waivers, waive

TODAY = dt.date(2026, 11, 24)
REQUIRED = (("dataset_pins", None), ("coverage", 1), ("coverage", 4))


def table(**changes):
    facts = {"clause": '"coverage"', "reason": '"known"', "owner": '"QA"', "expires": "2026-11-24", **changes}
    return "[[waiver]]\n" + "".join(f"{key} = {value}\n" for key, value in facts.items() if value is not None)


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "waivers.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_waivers(path, REQUIRED, TODAY)

    return load


def test_a_waiver_holds_on_its_last_day(load):
    assert load(table()) == (Waiver(clause="coverage", reason="known", owner="QA", expires=TODAY),)


@pytest.mark.parametrize("expires", ["2026-11-23", "1999-12-31"])
def test_an_expired_waiver_is_refused_with_its_owner_and_reason(load, expires):
    text = (
        rf"waivers.toml: expired: coverage, waived by QA until {expires}: known\n  required: a date from 2026-11-24 on"
    )
    with pytest.raises(UsageError, match=text):
        load(table(expires=expires))


@pytest.mark.parametrize(
    "changes",
    [{"clause": '"coverag"'}, {"clause": '"om_contract"'}, {"batch": 8}, {"clause": '"dataset_pins"', "batch": 1}],
)
def test_a_waiver_of_what_the_run_does_not_measure_is_refused(load, changes):
    with pytest.raises(UsageError, match=r"waivers.toml: for nothing that this run measures: \w+.* waived by QA"):
        load(table(**changes))


@pytest.mark.parametrize("second", [{}, {"batch": 4}, {"owner": '"somebody else"'}])
def test_two_waivers_of_one_clause_and_batch_size_are_refused(load, second):
    with pytest.raises(UsageError, match=r"--waivers=.*waivers.toml: one of several for the same: coverage"):
        load(table(**second) + table())
    with pytest.raises(
        UsageError, match=r"one of several for the same: coverage.*, waived by .*\n  required: one for a clause"
    ):
        load(table() + table(**second))


def test_batch_sizes_may_have_waivers_of_their_own(load):
    assert [waiver.batch for waiver in load(table(batch=1) + table(batch=4))] == [1, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "waiver: Field required"),
        ("waiver = []", "waiver: Tuple should have at least 1 item"),
        ("waiver = 3", "waiver: Input should be a valid tuple"),
        ("[[waiver]", "Expected ']]'"),
        (b"[[waiver]]\nowner = '\xff'", "'utf-8' codec can't decode byte 0xff"),
        ("a = " + "[" * 100_000, "waivers.toml: "),
        (table() + "until = 2027-01-01\n", r"waiver.0.until: Extra inputs are not permitted"),
        ("version = 1\n" + table(), "version: Extra inputs are not permitted"),
        *(
            (table(**{key: None}), f"waiver.0.{key}: Field required")
            for key in ("clause", "reason", "owner", "expires")
        ),
        *((table(**{key: '""'}), f"waiver.0.{key}: String should have") for key in ("clause", "reason", "owner")),
        (table(expires='"soon"'), "waiver.0.expires: Input should be a valid date"),
        (table(expires="2026-02-30"), "waivers.toml: "),
        (table(expires=4102444800), "waiver.0.expires: .*Input should be a valid date"),
        (table(batch=0), "waiver.0.batch: Input should be greater than 0"),
        (table(batch="true"), "waiver.0.batch: Input should be a valid integer"),
        (table(batch=1.5), "waiver.0.batch: Input should be a valid integer"),
    ],
)
def test_a_file_that_is_none_of_waivers_is_refused_naming_what_is_wrong(load, text, message):
    with pytest.raises(UsageError, match=rf"--waivers=.*{message}") as caught:
        load(text)
    assert "a table [[waiver]] with clause, reason, owner, expires" in str(caught.value)


def test_a_file_too_large_to_be_any_is_not_parsed(load):
    with pytest.raises(UsageError, match=rf"waivers.toml: it has [0-9]+ bytes, {MAX_BYTES} are the most"):
        load(table() + "#" * MAX_BYTES)
    assert load(table() + "#" * (MAX_BYTES - len(table())))


@pytest.mark.parametrize(("make", "message"), [(None, "No such file"), ("mkdir", "Is a directory")])
def test_a_file_that_is_not_there_is_told(tmp_path, make, message):
    path = tmp_path / "w.toml"
    if make:
        path.mkdir()
    with pytest.raises(UsageError, match=rf"--waivers=.*w.toml: {message}"):
        load_waivers(path, REQUIRED, TODAY)


# --- what a waiver does


def waiver(**changes):
    return Waiver(**{"clause": "coverage", "reason": "known", "owner": "QA", "expires": TODAY, **changes})


def red(**changes):
    return ClauseVerdict(**{"clause": "coverage", "batch": 4, "word": "rejected", "findings": ("lost 3",), **changes})


def test_a_waived_rejection_is_undetermined_and_tells_who_answers_for_it():
    verdict = waive(red(), [waiver(clause="dataset_pins"), waiver()])
    assert (verdict.word, verdict.reason) == ("undetermined", "waived")
    assert verdict.findings == ("waived by QA until 2026-11-24: known", "lost 3")


@pytest.mark.parametrize(
    "verdict",
    [
        red(word="accepted"),
        red(word="undetermined", reason="tool-error"),
        red(informative=True),
        red(batch=8),
        red(clause="dataset_pins", batch=None),
    ],
)
def test_nothing_else_is_changed_by_a_waiver(verdict):
    assert waive(verdict, [waiver(batch=4)]) is verdict


def test_a_waiver_without_a_batch_size_is_for_all_of_them():
    assert [waive(red(batch=batch), [waiver()]).reason for batch in (1, 4)] == ["waived", "waived"]


def test_the_numbers_of_a_waived_clause_stay(judged_red):
    verdict = waive(judged_red, [waiver(clause="dataset_pins")])
    assert verdict.readings == judged_red.readings != ()


@pytest.fixture
def judged_red():
    from support.spec import load_spec
    from support.verdict import Measurement

    clause = load_spec("shapes_d0").clauses["dataset_pins"]
    return judge("dataset_pins", clause, Measurement({"images": 132}, 133, 133))
