"""The catalogue of clauses: what this suite can measure, in which unit, and which direction is good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "CATALOGUE",
    "RUNG_CLAUSE",
    "RUNG_QUANTITIES",
    "ClauseKind",
    "Direction",
    "Mode",
    "Precision",
    "Quantity",
    "Scope",
    "Unit",
]

Mode = Literal["build", "onnx", "om", "results"]
Scope = Literal["gate", "throughput"]
#: Whether a candidate computes in float32 throughout, or in half precision where its compiler chose so.
Precision = Literal["full", "mixed"]
Direction = Literal["min", "max"]
Unit = Literal[
    "AP points", "count", "fraction", "images", "images/s", "logit", "p-value", "px", "ratio", "relative", "score"
]


@dataclass(frozen=True)
class Quantity:
    """
    One number of a clause: its unit, and whether its limit is a minimum or a maximum.

    A quantity with a `variant` is measured only where the measurement names that variant: the same number has one
    limit for graphs whose -inf Pads were folded away and another for graphs in which they were kept and edited, one for
    candidates in full precision and another for those in mixed precision.
    """

    unit: Unit
    direction: Direction
    variant: str = ""


@dataclass(frozen=True)
class ClauseKind:
    """
    What a clause measures.

    Parameters
    ----------
    scope : {"gate", "throughput"}
        Throughput clauses belong to the gate and can also be judged alone.
    per_batch : bool
        Whether the clause is judged once per batch size or once per run.
    comparing : bool
        Required only where the user asks for a comparison with saved runs.
    quantities : mapping of str to Quantity
        Every number the clause needs; the spec gives exactly one limit for each.
    """

    scope: Scope
    per_batch: bool
    quantities: Mapping[str, Quantity]
    comparing: bool = False


def _most(**units: Unit) -> Mapping[str, Quantity]:
    return MappingProxyType({name: Quantity(unit, "max") for name, unit in units.items()})


def _variant(variant: str, prefix: str, **units: Unit) -> Mapping[str, Quantity]:
    return {f"{prefix}{name}": Quantity(unit, "max", variant) for name, unit in units.items()}


def _together(*parts: Mapping[str, Quantity]) -> Mapping[str, Quantity]:
    return MappingProxyType({name: quantity for part in parts for name, quantity in part.items()})


def _least(**units: Unit) -> Mapping[str, Quantity]:
    return MappingProxyType({name: Quantity(unit, "min") for name, unit in units.items()})


#: Every clause a spec gives limits for; one with an unknown, missing or differently measured clause is refused.
CATALOGUE: Mapping[str, ClauseKind] = MappingProxyType(
    {
        "checkpoint_contract": ClauseKind("gate", False, _most(key_violations="count")),
        "dataset_pins": ClauseKind("gate", False, _least(images="images")),
        "input_contract": ClauseKind("gate", False, _most(different_tensors="images")),
        "graph_contract": ClauseKind("gate", True, _most(violations="count")),
        "weights_account": ClauseKind("gate", True, _most(unaccounted="count", unused="count", fold_error="relative")),
        "simplified_equals_raw": ClauseKind("gate", True, _most(logit_error="logit", box_error="relative")),
        "modified_edit": ClauseKind("gate", True, _most(differences="count")),
        "pad_edit": ClauseKind("gate", False, _most(differences="count", kept_pads="count")),
        "om_contract": ClauseKind("gate", True, _most(violations="count")),
        "stage_tensors": ClauseKind(
            "gate",
            True,
            _together(
                _variant("folded", "", logit_error="logit", box_error="relative"),
                _variant("kept", "padded_", logit_error="logit", box_error="relative"),
                _variant("mixed", "mixed_", logit_error="logit", box_error="relative"),
            ),
        ),
        "stage_ap": ClauseKind(
            "gate",
            False,
            _together(
                _most(ap_change="AP points", padded_ap_change="AP points"),
                _variant("mixed", "mixed_", ap_change="AP points"),
            ),
        ),
        "reference_ap": ClauseKind("gate", False, _most(ap_difference="AP points")),
        "batch_invariance": ClauseKind(
            "gate",
            True,
            _together(
                _variant("full", "", unmatched="count", score_change="score", box_change="px", slot_error="logit"),
                _variant("mixed", "mixed_", unmatched="fraction", score_p99="score", box_p99="px", slot_error="logit"),
            ),
        ),
        "coverage": ClauseKind("gate", True, _most(missing="images", surplus="images", padded_scored="images")),
        "score_agreement": ClauseKind(
            "gate",
            True,
            _most(
                unmatched="fraction",
                score_p99="score",
                slope_error="relative",
                outliers="fraction",
                different_images="images",
                different_classes="count",
                box_shift="px",
            ),
        ),
        "accuracy_guide_floor": ClauseKind("gate", True, _least(ap="AP points")),
        "accuracy_guide_drop": ClauseKind("gate", True, _least(ap="AP points")),
        "accuracy_measured_drop": ClauseKind("gate", True, _least(ap_ratio="ratio")),
        "suspicious_gain": ClauseKind("gate", True, _most(ap_gain="AP points")),
        "class_size_guard": ClauseKind(
            "gate",
            True,
            MappingProxyType(
                {
                    "change_p_value": Quantity("p-value", "min"),
                    "class_ap_drop": Quantity("AP points", "max"),
                    "size_ap_drop": Quantity("AP points", "max"),
                }
            ),
        ),
        "scorer_agreement": ClauseKind("gate", False, _most(ap_difference="AP points")),
        "timed_outputs": ClauseKind(
            "throughput",
            True,
            _together(
                _variant("full", "", different_images="images"), _variant("mixed", "mixed_", different_images="images")
            ),
        ),
        "throughput_fresh_inputs": ClauseKind("throughput", True, _most(speedup="ratio")),
        "throughput_vs_310": ClauseKind("throughput", True, _least(ratio="ratio")),
        "throughput_vs_t4": ClauseKind("throughput", True, _least(ratio="ratio")),
        "throughput_best_vs_310": ClauseKind("throughput", False, _least(ratio="ratio")),
        "throughput_best_vs_t4": ClauseKind("throughput", False, _least(ratio="ratio")),
        "throughput_same_chip": ClauseKind("throughput", True, _least(ratio="ratio")),
        "throughput_regression": ClauseKind("throughput", True, _least(ratio="ratio"), comparing=True),
    }
)

#: The clause that an early rung judges on a few images.
RUNG_CLAUSE = "score_agreement"

#: What an early rung measures. It is no clause: it can reject a candidate, and says nothing about one it lets through.
RUNG_QUANTITIES: Mapping[str, Quantity] = _most(different="fraction", ruined_images="images")
