"""The compiler's command line: its arguments, and when a compilation counts as good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.ascend.atc_errors import explain
from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.backends.base import TensorInfo
from support.errors import BuildFailedError
from support.spec import Atc

__all__ = ["SUCCESS", "atc_arguments", "compile_om"]

SUCCESS = "ATC run success"


def atc_arguments(
    model: Path, output: Path, tensor: TensorInfo, soc_version: str, options: Atc, mixlist: Path | None
) -> list[str]:
    """
    Arguments of ``atc`` as the guide gives them.

    Parameters
    ----------
    model : Path
        ONNX file.
    output : Path
        Compiled model without its suffix, which atc adds.
    tensor : TensorInfo
        Name and shape of the input, as the ONNX has them.
    soc_version : str
        Chip to compile for, such as ``Ascend310P3``.
    options : support.spec.Atc
        Everything else.
    mixlist : Path, optional
        File with the operators that keep their precision.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> guide = SimpleNamespace(framework=5, input_format="NCHW", precision_mode="allow_mix_precision", log="error")
    >>> info = TensorInfo("x.1", (8, 3, 512, 512), "float32")
    >>> atc_arguments(Path("d0.onnx"), Path("d0_bs8"), info, "Ascend310P3", guide, None)[3:5]
    ['--input_format=NCHW', '--input_shape=x.1:8,3,512,512']
    """
    shape = ",".join(str(side) for side in tensor.shape)
    return [
        f"--framework={options.framework}",
        f"--model={model}",
        f"--output={output}",
        f"--input_format={options.input_format}",
        f"--input_shape={tensor.name}:{shape}",
        f"--log={options.log}",
        f"--soc_version={soc_version}",
        f"--precision_mode={options.precision_mode}",
        *([f"--modify_mixlist={mixlist}"] if mixlist else []),
    ]


def compile_om(host: AscendHost, arguments: Sequence[str], *, timeout: float, log: Path, output: Path) -> Path:
    """
    Compile a model.

    atc is believed only if it ends with 0, prints its line of success *and* leaves a new file that is not empty.

    Parameters
    ----------
    host : AscendHost
        Where atc is.
    arguments : sequence of str
        From `atc_arguments`.
    timeout : float
        Seconds.
    log : Path
        Keeps what it prints; its folder takes whatever else it writes, such as logs of its own.
    output : Path
        As in the arguments, absolute.

    Returns
    -------
    om : Path
        The compiled model.

    Raises
    ------
    BuildFailedError
        If the model cannot be compiled.
    ToolError
        If this host cannot compile.
    SuiteTimeoutError
        If it takes too long.
    """
    before = set(_models(output))
    env = {**host.env, "ASCEND_PROCESS_LOG_PATH": str(log.parent / "plog")}
    done = run_tool([str(host.tool("atc")), *arguments], env=env, timeout=timeout, cwd=log.parent, log=log)
    if done.status != 0:
        raise explain(done.status, done.output, str(log))
    made = [path for path in _models(output) if path not in before and path.stat().st_size > 0]
    if SUCCESS not in done.output or len(made) != 1:
        raise BuildFailedError(
            f"atc ended with 0, left {len(made)} new models and printed {done.tail[-200:]!r}; its output is in {log}",
            required=f"the line {SUCCESS!r} and one new file {output.name}.om that is not empty",
            remedy="look whether the disk is full, and run the command by hand",
        )
    return made[0]


def _models(output: Path) -> list[Path]:
    # Some versions put system and architecture into the name.
    return sorted(output.parent.glob(f"{output.name}*.om"))
