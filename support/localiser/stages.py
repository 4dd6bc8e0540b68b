"""How far each stage is from the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from support.candidate import Stage
from support.capabilities import CPU
from support.heads import Heads
from support.localiser.record import StageError
from support.measurements.tensors import tensor_distance
from support.results import Results
from support.run import Run
from support.spec import AcceptanceSpec

__all__ = ["candidate_limits", "stage_errors"]


def stage_errors(run: Run, results: Results, batch: int, ap: Mapping[str, float]) -> Iterator[StageError]:
    """
    Compare the heads of the golden images from stage to stage with the checkpoint's, one after the other.

    Parameters
    ----------
    run : Run
        Gives stages and candidate.
    results : Results
        Gives the checkpoint's heads.
    batch : int
        The batch size.
    ap : mapping of str to float
        AP in points of the stages for which it is known.
    """
    for stage, heads, (logit_limit, box_limit) in _rungs(run, batch):
        distance = tensor_distance(results.golden, heads)
        yield StageError(
            stage=stage,
            logit_error=distance.logit_error,
            box_error=distance.box_error,
            logit_limit=logit_limit,
            box_limit=box_limit,
            ap=ap.get(stage),
        )


def _rungs(run: Run, batch: int) -> Iterator[tuple[str, Heads, tuple[float, float]]]:
    if run.options.mode == "build":
        unedited: tuple[Stage, ...] = ("raw onnx", "simplified onnx")
        for stage in unedited:
            yield stage, run.stage_heads(stage, batch), _limits(run.spec, "")
        if run.options.chip != CPU:
            edited = _limits(run.spec, "padded_" if run.pads_kept(batch) else "")
            yield "modified onnx", run.stage_heads("modified onnx", batch), edited
    yield "candidate", run.candidate(batch).golden, candidate_limits(run, batch)


def candidate_limits(run: Run, batch: int) -> tuple[float, float]:
    """Return the limits of the clause ``stage_tensors`` that hold for the candidate: logits, relative box codes."""
    # Result files do not tell which operators their model had.
    if run.options.mode != "results" and run.pads_kept(batch):
        return _limits(run.spec, "padded_")
    return _limits(run.spec, "mixed_" if run.precision == "mixed" else "")


def _limits(spec: AcceptanceSpec, prefix: str) -> tuple[float, float]:
    limits = spec.clauses["stage_tensors"].limits
    return limits[f"{prefix}logit_error"].number, limits[f"{prefix}box_error"].number
