"""Measurements on the ONNX graph itself: its contract, and where its weights come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.checkpoint import Checkpoint, build_model
from support.graph_contract import violations
from support.spec import AcceptanceSpec
from support.verdict import Measurement
from support.weights_account import account, call_order

if TYPE_CHECKING:
    import onnx

__all__ = ["graph_contract", "weights_account"]


def graph_contract(model: onnx.ModelProto, acceptance: AcceptanceSpec, batch: int) -> Measurement:
    """
    Count what a deployed graph has that its contract forbids, or lacks that it requires.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph that is compiled or run, so after its modification: no Pad may fill with -inf.
    acceptance : support.spec.AcceptanceSpec
        Its contract.
    batch : int
        Batch size it was made for.
    """
    found = violations(model, acceptance.graph, acceptance.model, batch, pads_allowed=False)
    return Measurement({"violations": len(found)}, count=1, expected=1, findings=tuple(found))


def weights_account(checkpoint: Checkpoint, model: onnx.ModelProto, acceptance: AcceptanceSpec) -> Measurement:
    """
    Account for every weight of a graph.

    Parameters
    ----------
    checkpoint : support.checkpoint.Checkpoint
        Where the weights must come from.
    model : onnx.ModelProto
        The graph, raw, simplified or modified.
    acceptance : support.spec.AcceptanceSpec
        Its limit of ``fold_error`` also decides which constants are accounted for.

    Returns
    -------
    measurement : Measurement
        `unaccounted` counts the constants of the graph without a source, `unused` the tensors of the checkpoint
        without a place, `fold_error` is the largest relative error of a place. Places are what is counted.

    Raises
    ------
    ContractViolationError
        If graph and network do not have the same number of convolutions or fusions.
    """
    result = account(
        model,
        call_order(build_model(checkpoint, acceptance.model), acceptance.model.image_size),
        checkpoint.tensors,
        tolerance=acceptance.clauses["weights_account"].limits["fold_error"].number,
    )
    return Measurement(
        {"unaccounted": len(result.unaccounted), "unused": len(result.unused), "fold_error": result.fold_error},
        count=result.places,
        expected=result.places,
        findings=result.findings,
    )
