"""A localisation as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from support.localiser.record import BlockSearch, Localisation, StageError

__all__ = ["lines"]

#: Blocks shown of each search; the record has all of them.
SHOWN = 5


def lines(found: Localisation) -> tuple[str, ...]:
    r"""
    Write a localisation for the terminal, the suspect first.

    Examples
    --------
    >>> print("\n".join(lines(Localisation(suspect="stem", red=("stage_tensors[bs1]",), batch=1, seconds=8.4))))
    look first at: stem
      red: stage_tensors[bs1]; searched at batch size 1 in 8.4 s
    """
    return tuple(_lines(found))


def _lines(found: Localisation) -> Iterator[str]:
    yield f"look first at: {found.suspect}"
    yield f"  red: {', '.join(found.red)}; searched at batch size {found.batch} in {found.seconds:g} s"
    yield from (f"  stage {_stage(stage)}" for stage in found.stages)
    if red := [f"{head.kind} P{head.level} {head.error:.2g}" for head in found.heads if head.is_red]:
        yield f"  heads outside their limits: {', '.join(red)}"
    for search in (found.blocks, found.half_blocks):
        if search is not None:
            yield from _blocks(search)
    yield from (f"  {group}" for group in found.groups)
    if found.images:
        yield f"  worst images: {', '.join(str(image.image_id) for image in found.images)}"
    yield from (f"  not done: {note}" for note in found.notes)


def _stage(stage: StageError) -> str:
    ap = "" if stage.ap is None else f", AP {stage.ap:.3f}"
    errors = f"logits {stage.logit_error:.2g} (limit {stage.logit_limit:g}), boxes {stage.box_error:.2g}"
    return f"{stage.stage}: {errors} (limit {stage.box_limit:g}){ap}{', red' if stage.is_red else ''}"


def _blocks(search: BlockSearch) -> Iterator[str]:
    pads = f", {search.pads_undone} Pads with -inf again" if search.pads_undone else ""
    yield f"  blocks of {search.method}, {search.images} images{pads}, relative errors:"
    standing = search.standing_out
    for error in standing[:SHOWN]:
        wiring = f", {error.wiring}" if error.wiring else ""
        yield f"    {error.block}: {error.local:.2g} on golden inputs, {error.chained:.2g} in the chain{wiring}"
    if len(standing) > SHOWN:
        yield f"    and {len(standing) - SHOWN} more"
    if not standing:
        yield f"    no block stands out; largest on golden inputs {search.worst.local:.2g}, {search.worst.block}"
