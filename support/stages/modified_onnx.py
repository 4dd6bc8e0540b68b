"""
Simplified ONNX to modified ONNX: Pads that fill with -inf fill with 0 of the same type, and nothing else changes.

effdet's max pool pads with -inf, which some Ascend releases do not take. Where the simplifier has folded these Pads
into the pools there is nothing to change, and the stage says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.artifacts import Artifact, ArtifactStore, Recipe
from support.errors import BuildFailedError
from support.onnx_files import load_onnx, save_onnx
from support.pads import PadFill, drop_unused_constants, kept_pads, pad_fills
from support.progress import Progress
from support.stages.batches import require_batch
from support.stages.versions import tool_versions

if TYPE_CHECKING:
    import onnx

__all__ = ["graph_differences", "modified_onnx", "zero_pads"]

_KIND, _FILE = "modified_onnx", "model.onnx"


def modified_onnx(store: ArtifactStore, source: Artifact, batch: int, progress: Progress) -> Artifact:
    """
    Edit the Pads of a graph.

    Parameters
    ----------
    store : ArtifactStore
        Where the graph is kept.
    source : Artifact
        The simplified graph; a raw one keeps its -inf Pads, which shows what the edit costs on the whole network.
    batch : int
        Batch size of the graph.
    progress : Progress
        Told about the step.

    Returns
    -------
    artifact : Artifact
        ``model.onnx``. Its facts list the Pads that were edited; if there were none, the file is the source's copy.

    Raises
    ------
    BuildFailedError
        If a Pad's value is computed, so that the stage cannot tell what it fills with.
    """
    recipe = Recipe(_KIND, 1, {"onnx": source.sha256}, {"batch": batch}, tool_versions("onnx"))

    def build(path: Path) -> dict[str, Any]:
        with progress.step(f"modify the graph of batch {batch}"):
            model = load_onnx(source.path)
            require_batch(model, source.path, batch)
            edited = zero_pads(model)
            if edited:
                save_onnx(model, path)
            else:
                path.write_bytes(source.path.read_bytes())
        return {"edited_pads": edited, "summary": _summary(edited)}

    return store.get(recipe, _FILE, build)


def zero_pads(model: onnx.ModelProto) -> list[str]:
    """
    Make every Pad that fills with -inf fill with 0 of the same type, in place.

    Each of them gets a zero of its own, so that other users of the old constant still see -inf; a constant that
    nobody uses any more is removed.

    Returns
    -------
    names : list of str
        The Pads that were edited.

    Raises
    ------
    BuildFailedError
        If a Pad's value is computed by the graph.
    """
    pads = [pad for pad in pad_fills(model) if pad.is_negative_infinite]
    names, constants = [pad.name for pad in pads], [pad.constant for pad in pads]
    for pad in pads:
        pad.fill_with_zero()
    drop_unused_constants(model, constants)
    left = kept_pads(model)
    if left:
        raise BuildFailedError(
            f"{len(left)} Pads fill with a value the graph computes, the first is {left[0]!r}",
            required="a constant, so that -inf can be told from other values",
            remedy="simplify the graph first: that folds what can be computed beforehand",
        )
    return names


def graph_differences(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """
    List every difference between two graphs other than Pads that filled with -inf and now fill with 0.

    The zero must have the type and shape of the -inf it replaces; a Pad that still fills with -inf counts as a
    difference. Constants that only Pads use are compared as those Pads see them, wherever the graph keeps them.
    Everything else is compared byte by byte: nodes, weights, inputs and outputs in their order, value types, opset and
    all that the model says of itself.

    Parameters
    ----------
    before, after : onnx.ModelProto
        Graph before and after the edit; both are left as they are.

    Returns
    -------
    sentences : list of str
        One for each difference, Pads first.
    """
    rest_before, rest_after = _without_fills(before), _without_fills(after)
    return [
        *_fill_differences(pad_fills(before), pad_fills(after)),
        *_message_differences(rest_before.graph, rest_after.graph),
        *_message_differences(rest_before, rest_after),
    ]


def _summary(edited: list[str]) -> str:
    return f"{len(edited)} Pads edited" if edited else "no Pad fills with -inf: copied unchanged"


def _without_fills(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    pads = pad_fills(rest)
    constants = [pad.constant for pad in pads]
    for pad in pads:
        pad.forget_fill()
    drop_unused_constants(rest, constants)
    return rest


def _fill_differences(before: list[PadFill], after: list[PadFill]) -> Iterator[str]:
    if len(before) != len(after):
        yield f"{len(before)} Pads fill with a value before, {len(after)} after"
        return
    for old, new in zip(before, after, strict=True):
        if not _allowed(old, new):
            yield f"Pad {old.name} fills with {_described(old)} before, {_described(new)} after"


def _allowed(old: PadFill, new: PadFill) -> bool:
    if old.tensor is None or new.tensor is None:
        return old.tensor is new.tensor
    if (old.tensor.data_type, old.tensor.dims) != (new.tensor.data_type, new.tensor.dims):
        return False
    if old.is_negative_infinite:
        return bool((new.value == 0).all())
    return bool(old.value.tobytes() == new.value.tobytes())


def _described(pad: PadFill) -> str:
    return "a computed value" if pad.value is None else f"{pad.value.dtype} {pad.value.tolist()}"


def _message_differences(before: Any, after: Any) -> Iterator[str]:
    """Compare two protobuf messages field by field, the nested graph apart."""
    for field in before.DESCRIPTOR.fields:
        if field.name == "graph":
            continue
        old, new = _items(before, field.name), _items(after, field.name)
        yield from (f"{_label(item)} is gone or changed" for item in _surplus(old, new))
        yield from (f"{_label(item)} is new or changed" for item in _surplus(new, old))
        if old != new and Counter(old) == Counter(new):
            yield f"{field.name}: the order changed"


def _items(message: Any, field: str) -> list[tuple[str, str, bytes]]:
    value = getattr(message, field)
    single = isinstance(value, (str, bytes, int, float)) or hasattr(value, "SerializeToString")
    return [_item(field, item) for item in ([value] if single else value)]


def _item(field: str, item: Any) -> tuple[str, str, bytes]:
    if hasattr(item, "SerializeToString"):
        name = getattr(item, "name", "") or getattr(item, "op_type", "")
        return field, name, item.SerializeToString(deterministic=True)
    return field, repr(item), repr(item).encode()


def _surplus(items: list[tuple[str, str, bytes]], others: list[tuple[str, str, bytes]]) -> list[tuple[str, str, bytes]]:
    return list((Counter(items) - Counter(others)).elements())


def _label(item: tuple[str, str, bytes]) -> str:
    return f"{item[0]} {item[1]}".rstrip()
