"""
ONNX to simplified ONNX: onnxsim with the input shape fixed.

onnxsim is native code, so it works in a process of its own: it can be stopped when it hangs, cannot take the session
down, and what it prints is kept instead of shown. ``python -m support.stages.simplified_onnx`` is that process.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.artifacts import Artifact, ArtifactStore, Recipe
from support.errors import BuildFailedError, SuiteTimeoutError
from support.onnx_files import input_shapes, load_onnx, opset_of, output_shapes, save_onnx
from support.pads import kept_pads
from support.progress import Progress
from support.stages.batches import require_batch
from support.stages.versions import tool_versions

if TYPE_CHECKING:
    import onnx

__all__ = ["simplified_onnx"]

_KIND, _FILE = "simplified_onnx", "model.onnx"
_CHECKOUT = Path(__file__).resolve().parents[2]


def simplified_onnx(
    store: ArtifactStore, source: Artifact, timeout_seconds: float, batch: int, progress: Progress
) -> Artifact:
    """
    Simplify a graph.

    Parameters
    ----------
    store : ArtifactStore
        Where the graph is kept.
    source : Artifact
        The raw graph.
    timeout_seconds : float
        When to give onnxsim up.
    batch : int
        Batch size of the graph.
    progress : Progress
        Told about the step.

    Returns
    -------
    artifact : Artifact
        ``model.onnx`` with the same inputs and outputs. Its facts hold the Pads that still fill with -inf and what
        onnxsim said.

    Raises
    ------
    BuildFailedError
        If onnxsim fails, or changes the opset, inputs or outputs.
    SuiteTimeoutError
        If it takes too long.
    ToolError
        If it is not installed.
    """
    recipe = Recipe(_KIND, 1, {"onnx": source.sha256}, {"fixed_batch": batch}, tool_versions("onnx", "onnxsim"))

    def build(path: Path) -> dict[str, Any]:
        raw = load_onnx(source.path)
        shapes = require_batch(raw, source.path, batch)
        command = [sys.executable, "-m", __name__, str(source.path.resolve()), str(path.resolve()), json.dumps(shapes)]
        with progress.step(f"simplify the graph of batch {batch}"):
            said = _run(command, timeout_seconds)
        simplified = load_onnx(path)
        _require_same_borders(raw, simplified)
        return {"kept_pads": kept_pads(simplified), "said": said}

    return store.get(recipe, _FILE, build)


def _run(command: Sequence[str], timeout_seconds: float) -> list[str]:
    try:
        done = subprocess.run(
            command,
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SuiteTimeoutError(
            f"onnxsim was stopped after {timeout_seconds:g} s", remedy="raise timeouts.export in the spec"
        ) from None
    # It repeats itself once a pass over the graph.
    said = list(dict.fromkeys(done.stdout.decode(errors="replace").splitlines()))
    if done.returncode and said and os.strerror(errno.ENOSPC) in said[-1]:
        raise OSError(errno.ENOSPC, said[-1])
    if done.returncode:
        raise BuildFailedError(
            f"onnxsim ended with status {done.returncode}:\n" + "\n".join(said[-20:]),
            required="status 0",
            remedy="try another release of onnxsim within the bounds of pyproject.toml",
        )
    return said


def _require_same_borders(raw: onnx.ModelProto, simplified: onnx.ModelProto) -> None:
    before, after = _borders(raw), _borders(simplified)
    for what, value in before.items():
        if after[what] != value:
            raise BuildFailedError(f"onnxsim changed the {what} from {value} to {after[what]}", required="no change")


def _borders(model: onnx.ModelProto) -> dict[str, Any]:
    # As lists, because the order of the outputs is part of the contract.
    return {
        "opset": opset_of(model),
        "inputs": list(input_shapes(model).items()),
        "outputs": list(output_shapes(model).items()),
    }


def _simplify(source: str, target: str, shapes: str) -> None:
    # Where torch is installed onnxsim imports it for features not used here, which takes longer than the rest together.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnxsim

    simplified, equal = onnxsim.simplify(load_onnx(Path(source)), overwrite_input_shapes=json.loads(shapes))
    if not equal:
        sys.exit("onnxsim's own comparison of the two graphs failed")
    save_onnx(simplified, Path(target))


if __name__ == "__main__":
    _simplify(*sys.argv[1:])
