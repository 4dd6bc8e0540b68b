from typing import get_args

import pytest

from support.clauses import CATALOGUE, Direction, Scope, Unit


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_clause_measures_something_in_a_known_way(name):
    kind = CATALOGUE[name]
    assert kind.quantities
    assert kind.scope in get_args(Scope)
    for quantity in kind.quantities.values():
        assert quantity.unit in get_args(Unit)
        assert quantity.direction in get_args(Direction)


def test_only_one_clause_has_variants_and_both_measure_the_same():
    variants = {name: {q.variant for q in kind.quantities.values()} for name, kind in CATALOGUE.items()}
    assert {name: found for name, found in variants.items() if found != {""}} == {"stage_tensors": {"folded", "kept"}}
    quantities = CATALOGUE["stage_tensors"].quantities
    for name in ("logit_error", "box_error"):
        assert (quantities[name].variant, quantities[f"padded_{name}"].variant) == ("folded", "kept")
        assert quantities[name].unit == quantities[f"padded_{name}"].unit


def test_only_throughput_is_compared_with_saved_runs():
    assert {kind.scope for kind in CATALOGUE.values() if kind.comparing} == {"throughput"}


@pytest.mark.parametrize("table", [CATALOGUE, *(kind.quantities for kind in CATALOGUE.values())])
def test_the_catalogue_cannot_be_changed_by_accident(table):
    with pytest.raises(TypeError, match="does not support item assignment"):
        table["new"] = None
