"""om_from_onnx: compile an ONNX model for one chip, as the guide does."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.artifacts import Artifact, ArtifactStore, Recipe, file_sha256
from support.ascend.atc import atc_arguments, compile_om
from support.ascend.cann import cann_version
from support.ascend.host import AscendHost
from support.backends.base import TensorInfo
from support.errors import BuildFailedError, SuiteError
from support.onnx_files import input_shapes, load_onnx
from support.progress import Progress
from support.spec import Atc

__all__ = ["om_from_onnx", "om_path"]

VERSION = 1
MODEL, LOG, MIXLIST, COMMAND = "model.om", "atc.log", "ops_info.json", "command.txt"


def om_from_onnx(
    store: ArtifactStore,
    source: Artifact,
    host: AscendHost,
    soc_version: str,
    options: Atc,
    batch: int,
    timeout: float,
    progress: Progress,
) -> Artifact:
    """
    Compile a model.

    Parameters
    ----------
    store : ArtifactStore
        Keeps the compiled model, with the compiler's command, output and mixed-precision list beside it.
    source : Artifact
        ONNX model of this batch size, or with an open one.
    host : AscendHost
        Where atc is.
    soc_version : str
        Chip to compile for.
    options : support.spec.Atc
        Of the compiler.
    batch : int
        Batch size, for a model that leaves it open.
    timeout : float
        Seconds for atc.
    progress : Progress
        Told of the compilation.

    Returns
    -------
    artifact : Artifact
        A folder; `om_path` gives the model in it, to which `sha256` belongs.

    Raises
    ------
    BuildFailedError
        If the model cannot be compiled; the compiler's output and logs are kept, and the message says where.
    ToolError
        If this host cannot compile.
    SuiteTimeoutError
        If the compiler takes too long.
    """
    recipe = Recipe(
        "om",
        VERSION,
        inputs={"onnx": source.sha256},
        options={
            "soc_version": soc_version,
            "batch": batch,
            "atc": options.model_dump(mode="json", exclude={"source"}),
        },
        tools={"cann": cann_version(host.env) or "unknown"},
    )
    records_folder = store.root.resolve() / "logs" / f"om-{recipe.key[:20]}"

    def build(folder: Path) -> Mapping[str, Any]:
        folder.mkdir()
        model, output, tensor = source.path.resolve(), folder.resolve() / "model", _input(source.path, batch)
        with (
            progress.step(f"atc for {soc_version}, batch {batch}"),
            _records(records_folder, folder) as records,
        ):
            mixlist = _mixlist(records, options)
            arguments = atc_arguments(model, output, tensor, soc_version, options, mixlist)
            (records / COMMAND).write_text(shlex.join(["atc", *arguments]) + "\n", encoding="utf-8")
            made = compile_om(host, arguments, timeout=timeout, log=records / LOG, output=output)
            # V3 of the runtime refuses models that others may write.
            made.rename(folder / MODEL).chmod(0o644)
        return {"command": ["atc", *arguments], "cann": cann_version(host.env)}

    artifact = store.get(recipe, "om", build)
    # The records tell times, which differ between equal models.
    return replace(artifact, sha256=file_sha256(om_path(artifact)))


@contextmanager
def _records(records: Path, target: Path) -> Iterator[Path]:
    """
    Folder for everything that is written beside a compiled model, which moves to `target` in the end.

    It stays where it is after a failure, which it explains, and goes after an interruption.
    """
    shutil.rmtree(records, ignore_errors=True)
    records.mkdir(parents=True)
    try:
        yield records
        for path in list(records.iterdir()):
            shutil.move(path, target)
        records.rmdir()
    except SuiteError:
        raise
    except BaseException:
        shutil.rmtree(records, ignore_errors=True)
        raise


def _mixlist(folder: Path, options: Atc) -> Path | None:
    if not options.modify_mixlist:
        return None
    path = folder / MIXLIST
    lists = {name: dict(changes) for name, changes in options.modify_mixlist.items()}
    path.write_text(json.dumps(lists), encoding="utf-8")
    return path


def _input(path: Path, batch: int) -> TensorInfo:
    import onnx

    model = load_onnx(path)
    shapes = input_shapes(model)
    inputs = [value for value in model.graph.input if value.name in shapes]
    if len(inputs) != 1:
        raise BuildFailedError(f"{path} has the inputs {list(shapes)}", required="one input")
    name, shape, kind = inputs[0].name, shapes[inputs[0].name], inputs[0].type.tensor_type.elem_type
    # The compiler fixes a batch that is open.
    sides = (batch if place == 0 and not isinstance(side, int) else side for place, side in enumerate(shape))
    fixed = tuple(side for side in sides if isinstance(side, int))
    if len(fixed) != len(shape):
        raise BuildFailedError(f"{path} has an input {name} of the shape {list(shape)}", required="a fixed image size")
    return TensorInfo(name, fixed, onnx.helper.tensor_dtype_to_np_dtype(kind).name)


def om_path(artifact: Artifact) -> Path:
    """Return the compiled model itself: of a built artifact in its folder, of a given one the file."""
    return artifact.path / MODEL if artifact.path.is_dir() else artifact.path
