"""What a search for the cause of a red accuracy found."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

__all__ = ["BlockError", "BlockSearch", "HeadError", "Localisation", "StageError", "SuspectImage"]

#: A relative error that is more than rounding. Clean graphs of the kit in float32 (two images, ONNX Runtime 1.32
#: against torch 2.14): median of the blocks 4.4e-7, largest 4.8e-6.
ROUNDING = 1e-4
#: How far above the median of all blocks the error of one must be. Clean graphs in emulated half precision: 3 times.
ABOVE_MEDIAN = 10.0


class _Record(BaseModel):
    # As strings, because JSON has no infinity, which is the error of a block that gives no finite number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StageError(_Record):
    """
    How far the heads of one stage are from the checkpoint's on the golden images, beside the limits of its kind.

    `logit_error` and `box_error` are those of `support.measurements.tensors.TensorDistance`; `ap` is in points, None if
    it was not measured.
    """

    stage: str
    logit_error: float
    box_error: float
    logit_limit: float
    box_limit: float
    ap: float | None = None

    @property
    def is_red(self) -> bool:
        """Whether the stage is outside a limit."""
        return not (self.logit_error <= self.logit_limit and self.box_error <= self.box_limit)


class HeadError(_Record):
    """How far one head of the candidate is from the checkpoint's: logits, or relative box codes."""

    kind: Literal["class", "box"]
    level: int
    error: float
    limit: float

    @property
    def is_red(self) -> bool:
        """Whether the head is outside its limit."""
        return not self.error <= self.limit


class BlockError(_Record):
    """
    How far one block is from the network's, as a part of the greatest absolute value it should give.

    `local` is its error on golden inputs, `chained` that on the inputs the blocks before it give. `wiring` tells what
    it reads instead of what it should; empty if it reads that.
    """

    block: str
    local: float
    chained: float
    wiring: str = ""


class BlockSearch(_Record):
    """
    Every block of one graph beside the network's, in their order.

    `method` says what was computed how, `images` on how many images; `pads_undone` is how many Pads were filled with
    -inf again for it.
    """

    method: str
    images: int
    pads_undone: int = 0
    errors: tuple[BlockError, ...]

    @property
    def standing_out(self) -> tuple[BlockError, ...]:
        """Blocks that are wrong by themselves, worst first."""
        bound = self.bound
        found = [error for error in self.errors if error.local > bound or error.wiring]
        return tuple(sorted(found, key=lambda error: -error.local))

    @property
    def bound(self) -> float:
        """The local error from which a block stands out."""
        return max(ROUNDING, ABOVE_MEDIAN * float(np.median([error.local for error in self.errors])))

    @property
    def worst(self) -> BlockError:
        """The block with the largest error of its own."""
        return max(self.errors, key=lambda error: error.local)


class SuspectImage(_Record):
    """An image on which the candidate differs much: fields as in `support.report.worst.WorstImage`."""

    image_id: int
    difference: float
    missed: int


class Localisation(_Record):
    """
    Where to look first, and what stands behind it.

    Parameters
    ----------
    suspect : str
        Where to look first.
    red : tuple of str
        The clauses that made the search run.
    batch : int
        The batch size that was searched.
    stages : tuple of StageError
        From the export to the candidate; empty if not measured.
    heads : tuple of HeadError
        Of the candidate as it ran, class heads first.
    blocks : BlockSearch or None
        The deployed ONNX in float32 on the CPU; None if its blocks could not be compared.
    half_blocks : BlockSearch or None
        The same graph with half precision emulated, for candidates in mixed precision.
    groups : tuple of str
        Classes, object sizes and orientations that lose most.
    images : tuple of SuspectImage
        The worst first.
    notes : tuple of str
        What was not done, and why.
    seconds : float
        How long it took.
    """

    suspect: str
    red: tuple[str, ...]
    batch: int
    stages: tuple[StageError, ...] = ()
    heads: tuple[HeadError, ...] = ()
    blocks: BlockSearch | None = None
    half_blocks: BlockSearch | None = None
    groups: tuple[str, ...] = ()
    images: tuple[SuspectImage, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
