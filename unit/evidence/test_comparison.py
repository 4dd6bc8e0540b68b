import pytest

from support.evidence.bundle import read_bundle
from support.evidence.comparison import Figures, compare
from support.evidence.model import CheckpointRecord
from unit.evidence.bundles import World, found, the_spec


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    old = World("T4", seconds=0.02)
    new = World("T4", seconds=0.01, spec=the_spec(clauses__suspicious_gain__limits__ap_gain__value=9.0))
    new.passes[8] = found(new.truth, seed=1, spread=3.0)
    later = new.document.model_copy(update={"checkpoint": CheckpointRecord(sha256="b" * 64)})
    return read_bundle(old.write(folder / "old")), read_bundle(new.write(folder / "new", later))


def test_a_release_has_no_changes_against_itself(pair):
    same = compare(pair[0], pair[0])
    assert {change.before - change.after for change in [*same.ap.values(), *same.throughput.values()]} == {0.0}
    assert (same.limits, same.settings, same.models) == ((), {}, {})


def test_accuracy_is_compared_by_batch_size_and_class(pair):
    found = compare(*pair)
    assert found.ap[1].before == found.ap[1].after
    assert found.ap[8].before > found.ap[8].after
    assert len(found.by_category) == 10
    assert any(change.before > change.after for change in found.by_category.values())


def test_throughput_is_compared_by_batch_size(pair):
    change = compare(*pair).throughput[8]
    assert change.after == pytest.approx(2 * change.before)


def test_a_loosened_limit_is_flagged_and_comes_first(pair):
    found = compare(*pair)
    assert [str(limit) for limit in found.loosened] == ["LOOSENED limit suspicious_gain.ap_gain: 0.3 -> 9"]
    assert found.lines[0] == "LOOSENED limit suspicious_gain.ap_gain: 0.3 -> 9"


def test_what_was_shipped_is_compared_by_its_hash(pair):
    assert compare(*pair).lines[-1] == f"checkpoint: {'a' * 64} -> {'b' * 64}"


def test_a_batch_size_only_one_release_has_is_shown(pair):
    old, new = pair
    fewer = new.document.model_copy(update={"passes": {1: new.document.passes[1]}})
    found = compare(old, type(new)(new.folder, fewer))
    assert found.ap[8].after is None
    assert str(Figures(1.0, None)) == "1.000 -> none"
    assert all(change.after is None for change in found.by_category.values())
