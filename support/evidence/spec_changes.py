"""What changed from one spec to another: limits, and whether they let more pass; and everything else that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.spec import AcceptanceSpec, Baseline, Clause, Limit

__all__ = ["Change", "LimitChange", "limit_changes", "setting_changes"]

#: Keys that describe a rule and decide nothing.
_DESCRIBING = frozenset({"title", "suspect", "source", "batch_sizes_source", "allowed_operators_source"})
#: Tables whose changes are told as those of limits.
_LIMITS = frozenset({"clauses", "baselines"})


@dataclass(frozen=True)
class Change:
    """
    Something before and after; None where there was nothing.

    Examples
    --------
    >>> print(Change(33.4, 33.1))
    33.4 -> 33.1
    """

    before: Any
    after: Any

    def __str__(self) -> str:
        return " -> ".join("none" if side is None else f"{side}" for side in (self.before, self.after))


@dataclass(frozen=True)
class LimitChange:
    """A limit that is another one now; `loosened` if it lets something pass that it did not let pass before."""

    clause: str
    quantity: str
    change: Change
    loosened: bool

    def __str__(self) -> str:
        return f"{'LOOSENED ' if self.loosened else ''}limit {self.clause}.{self.quantity}: {self.change}"


def limit_changes(old: AcceptanceSpec, new: AcceptanceSpec) -> tuple[LimitChange, ...]:
    """
    Name every limit that changed, those that were loosened first.

    Limits are those of the clauses with their rounding, where a clause is required, and the figures of the tables that
    throughput is compared with.
    """
    # Every spec has every clause of the catalogue, with every limit.
    found = [change for name in old.clauses for change in _of_clause(name, old.clauses[name], new.clauses[name])]
    found += _of_tables(old.baselines, new.baselines)
    return tuple(sorted(found, key=lambda change: not change.loosened))


def _of_clause(name: str, old: Clause, new: Clause) -> Iterator[LimitChange]:
    for quantity, before in old.limits.items():
        after = new.limits[quantity]
        shown = Change(_shown(before), _shown(after))
        if shown.before != shown.after:
            looser = _reach(after) < _reach(before) if after.direction == "min" else _reach(after) > _reach(before)
            yield LimitChange(name, quantity, shown, looser)
    if set(old.modes) != set(new.modes):
        fewer = not set(old.modes) <= set(new.modes)
        yield LimitChange(name, "modes", Change(", ".join(old.modes), ", ".join(new.modes)), fewer)
    if set(old.chips) != set(new.chips):
        # No chip named means every chip.
        fewer = bool(new.chips) and not (old.chips and set(old.chips) <= set(new.chips))
        yield LimitChange(name, "chips", Change(_chips(old), _chips(new)), fewer)


def _chips(clause: Clause) -> str:
    return ", ".join(clause.chips) or "all"


def _shown(limit: Limit) -> str:
    return f"{limit.number:g}" + ("" if limit.rounding is None else f" of a value rounded to {limit.rounding} decimals")


def _reach(limit: Limit) -> float:
    """Return the last value that passes: rounding half up lets a minimum reach half a digit lower."""
    half = 0.0 if limit.rounding is None else 0.5 * 10.0**-limit.rounding
    return limit.number - half if limit.direction == "min" else limit.number + half


def _of_tables(old: Mapping[str, Baseline], new: Mapping[str, Baseline]) -> Iterator[LimitChange]:
    for name in {**old, **new}:
        before, after = (dict(side[name].images_per_second) if name in side else {} for side in (old, new))
        for batch in sorted(before.keys() | after.keys()):
            change = Change(before.get(batch), after.get(batch))
            if change.before != change.after:
                looser = change.after is None or (change.before is not None and change.after < change.before)
                yield LimitChange(f"baselines.{name}", f"batch {batch}", change, looser)


def setting_changes(old: AcceptanceSpec, new: AcceptanceSpec) -> Mapping[str, Change]:
    """Return every other number and word of the spec that changed, by its key; what only describes is left out."""
    before, after = (dict(_flat(spec.model_dump(mode="json"), "")) for spec in (old, new))
    changes = {key: Change(before.get(key), after.get(key)) for key in before | after}
    return {key: change for key, change in changes.items() if change.before != change.after}


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield key, node
        return
    for name, value in node.items():
        if name not in _DESCRIBING and not (not key and name in _LIMITS):
            yield from _flat(value, f"{key}.{name}" if key else name)
