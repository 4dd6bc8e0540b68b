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


def test_variants_are_of_pads_and_precision():
    variants = {name: {q.variant for q in kind.quantities.values()} for name, kind in CATALOGUE.items()}
    assert {name: found for name, found in variants.items() if found != {""}} == {
        "stage_tensors": {"folded", "kept", "mixed"},
        "stage_ap": {"", "mixed"},
        "batch_invariance": {"full", "mixed"},
        "timed_outputs": {"full", "mixed"},
    }


@pytest.mark.parametrize(("prefix", "variant"), [("padded_", "kept"), ("mixed_", "mixed")])
def test_every_variant_of_raw_heads_measures_the_same(prefix, variant):
    quantities = CATALOGUE["stage_tensors"].quantities
    for name in ("logit_error", "box_error"):
        assert (quantities[name].variant, quantities[f"{prefix}{name}"].variant) == ("folded", variant)
        assert quantities[name].unit == quantities[f"{prefix}{name}"].unit


def test_only_throughput_is_compared_with_saved_runs():
    assert {kind.scope for kind in CATALOGUE.values() if kind.comparing} == {"throughput"}


@pytest.mark.parametrize("table", [CATALOGUE, *(kind.quantities for kind in CATALOGUE.values())])
def test_the_catalogue_cannot_be_changed_by_accident(table):
    with pytest.raises(TypeError, match="does not support item assignment"):
        table["new"] = None
