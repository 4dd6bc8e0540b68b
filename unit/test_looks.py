import pytest

from support.looks import settled
from support.spec import load_spec
from support.verdict import Measurement

CLAUSE = load_spec("efficientdet_d0").clauses["throughput_same_chip"]
MOST = 3


def ratio(low, high, **fields):
    return Measurement({"ratio": low}, 5000, fields.pop("expected", 5000), optimistic={"ratio": high}, **fields)


UNDECIDED = ratio(0.9, 1.0)


def looked_at(*measurements):
    asked = []

    def look(count):
        asked.append(count)
        return measurements[count - 1]

    return settled("throughput_same_chip", CLAUSE, look, most=MOST), asked


@pytest.mark.parametrize(
    "decided",
    [ratio(1, 1.1), ratio(0.8, 0.9), ratio(0.9, 1.0, expected=5001), ratio(0.9, 1.0, doubt="implausible")],
    ids=["accepted", "rejected", "partial", "implausible"],
)
def test_only_noise_earns_another_look(decided):
    assert looked_at(decided) == (decided, [1])


def test_a_later_look_decides():
    assert looked_at(UNDECIDED, ratio(0.96, 1.0)) == (ratio(0.96, 1.0), [1, 2])
    assert looked_at(UNDECIDED, UNDECIDED, ratio(0.8, 0.9)) == (ratio(0.8, 0.9), [1, 2, 3])


def test_there_are_never_more_looks_than_the_budget_was_shared_among():
    found, asked = looked_at(*[UNDECIDED] * 9)
    assert found is UNDECIDED
    assert asked == [1, 2, 3]


def test_looks_end_where_no_further_pass_can_be_had():
    assert looked_at(UNDECIDED, None) == (UNDECIDED, [1, 2])


def test_without_any_pass_there_is_nothing_to_look_at():
    with pytest.raises(ValueError, match="throughput_same_chip: not even one pass"):
        looked_at(None)


def test_an_error_of_a_further_pass_is_not_swallowed():
    def look(count):
        if count == 2:
            raise OSError("the device is gone")
        return UNDECIDED

    with pytest.raises(OSError, match="the device is gone"):
        settled("throughput_same_chip", CLAUSE, look, most=MOST)
