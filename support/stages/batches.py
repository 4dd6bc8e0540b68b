"""The batch size a graph was made for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from support.errors import BuildFailedError
from support.onnx_files import input_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["require_batch"]


def require_batch(model: onnx.ModelProto, path: Path, batch: int) -> dict[str, list[int]]:
    """
    Return the shapes of the inputs, all fixed and of the batch size wanted.

    Raises
    ------
    BuildFailedError
        If the graph was made for another batch size or for any.
    """
    given = {name: list(shape) for name, shape in input_shapes(model).items()}
    fixed = {name: [size for size in shape if isinstance(size, int)] for name, shape in given.items()}
    if not given or fixed != given or any(shape[:1] != [batch] for shape in fixed.values()):
        raise BuildFailedError(f"{path} has the inputs {given}", required=f"fixed shapes of batch {batch}")
    return fixed
