"""All known faults, in the order of the steps they corrupt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from support.errors import UsageError
from support.faults import batching, checkpoints, data, decoding, devices, graphs, outputs, records, scoring, sessions
from support.faults.fault import Fault
from support.faults.record import STEPS

__all__ = ["CATALOGUE", "chosen"]

_REGISTRIES = (
    checkpoints.REGISTRY,
    graphs.REGISTRY,
    devices.COMPILE,
    data.REGISTRY,
    batching.REGISTRY,
    outputs.REGISTRY,
    decoding.REGISTRY,
    scoring.REGISTRY,
    scoring.TIMING,
    devices.REGISTRY,
    sessions.SPEC,
    records.REGISTRY,
    sessions.REGISTRY,
)

#: Every fault by its name.
CATALOGUE: Mapping[str, Fault] = MappingProxyType(
    {
        fault.name: fault
        for fault in sorted(
            (fault for registry in _REGISTRIES for fault in registry.faults), key=lambda fault: STEPS.index(fault.step)
        )
    }
)


def chosen(names: Sequence[str]) -> tuple[Fault, ...]:
    """
    Look up faults by name; all of them if none is named.

    Raises
    ------
    UsageError
        For a name that is not known; the message lists all.
    """
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise UsageError(f"--fault={unknown[0]}: not known", required=f"one of {', '.join(CATALOGUE)}")
    return tuple(CATALOGUE[name] for name in names) or tuple(CATALOGUE.values())
