"""om_from_onnx: compile an ONNX model for one chip, as the guide does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.artifacts import Artifact, ArtifactStore, Recipe, file_sha256
from support.ascend.atc import atc_arguments, compile_om
from support.ascend.cann import cann_version
from support.ascend.host import AscendHost
from support.backends.base import TensorInfo
from support.errors import BuildFailedError, NoDataError, SuiteError
from support.onnx_files import load_onnx
from support.progress import Progress
from support.spec import Atc

__all__ = ["given_om", "om_from_onnx", "om_path"]

VERSION = 1
MODEL, LOG, MIXLIST = "model.om", "atc.log", "ops_info.json"


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
        Keeps the compiled model, with the compiler's output and the mixed-precision list beside it.
    source : Artifact
        ONNX model with a static batch.
    host : AscendHost
        Where atc is.
    soc_version : str
        Chip to compile for.
    options : support.spec.Atc
        Of the compiler.
    batch : int
        Batch size, for the progress.
    timeout : float
        Seconds for atc.
    progress : Progress
        Told of the compilation.

    Returns
    -------
    artifact : Artifact
        A folder; `om_path` gives the model in it.

    Raises
    ------
    BuildFailedError
        If the model cannot be compiled; the compiler's output is kept, and the message says where.
    ToolError
        If this host cannot compile.
    SuiteTimeoutError
        If the compiler takes too long.
    """
    recipe = Recipe(
        "om",
        VERSION,
        inputs={"onnx": source.sha256},
        options={"soc_version": soc_version, "atc": options.model_dump(mode="json", exclude={"source"})},
        tools={"cann": cann_version(host.env) or "unknown"},
    )

    def build(folder: Path) -> Mapping[str, Any]:
        folder.mkdir()
        with progress.step(f"atc for {soc_version}, batch {batch}"):
            try:
                return _compiled(folder.resolve(), source, host, soc_version, options, timeout)
            except SuiteError as error:
                raise _with_kept_log(
                    error, folder / LOG, store.root / "failed" / f"atc-{recipe.key[:12]}.log"
                ) from error

    return store.get(recipe, "om", build)


def _compiled(
    folder: Path, source: Artifact, host: AscendHost, soc_version: str, options: Atc, timeout: float
) -> Mapping[str, Any]:
    mixlist = folder / MIXLIST if options.modify_mixlist else None
    if mixlist:
        mixlist.write_text(json.dumps({name: dict(change) for name, change in options.modify_mixlist.items()}))
    output = folder / "model"
    arguments = atc_arguments(source.path.resolve(), output, _input(source.path), soc_version, options, mixlist)
    made = compile_om(host, arguments, timeout=timeout, log=folder / LOG, output=output)
    made.rename(folder / MODEL)
    # V3 of the runtime refuses models that others may write.
    (folder / MODEL).chmod(0o644)
    return {"command": ["atc", *arguments], "cann": cann_version(host.env)}


def _input(path: Path) -> TensorInfo:
    model = load_onnx(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    if len(values) != 1:
        raise BuildFailedError(f"{path} has {len(values)} inputs", required="one input")
    return TensorInfo(values[0].name, tuple(dim.dim_value for dim in values[0].type.tensor_type.shape.dim), "float32")


def _with_kept_log(error: SuiteError, log: Path, kept: Path) -> SuiteError:
    """Save the compiler's output from a folder that is going to be removed, and name the copy in the message."""
    if log.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
    found = error.found.replace(str(log.resolve()), str(kept))
    return type(error)(found, required=error.required, remedy=error.remedy)


def om_path(artifact: Artifact) -> Path:
    """Return the compiled model itself: of a built artifact in its folder, of a given one the file."""
    return artifact.path / MODEL if artifact.path.is_dir() else artifact.path


def given_om(template: str, batch: int) -> Artifact:
    """
    Take a prebuilt model.

    Parameters
    ----------
    template : str
        Path in which ``{batch}`` stands for the batch size.
    batch : int
        The batch size.

    Raises
    ------
    NoDataError
        If there is no such file.
    """
    path = Path(template.replace("{batch}", str(batch)))
    if not path.is_file():
        raise NoDataError(f"there is no model {path}", remedy=f"put it there, or correct --om={template}")
    return Artifact("om", path, file_sha256(path), {"given": template}, ())
