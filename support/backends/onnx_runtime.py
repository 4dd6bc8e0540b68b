"""ONNX Runtime, on the CPU or on a CUDA GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from support.backends.base import Backend, TensorInfo, only_input, runtime_failure
from support.errors import ContractViolationError, NoDeviceError, SuiteError, ToolError, WrongDeviceError
from support.onnx_files import load_onnx

__all__ = ["CudaBackend", "OnnxCpuBackend"]

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class _OnnxBackend(Backend):
    provider: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: Any = None

    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        runtime = _import_runtime()
        if self.provider not in runtime.get_available_providers():
            raise NoDeviceError(
                f"ONNX Runtime {runtime.__version__} has no {self.provider}: {runtime.get_available_providers()}",
                remedy="pip uninstall onnxruntime && pip install '.[cuda]' in the checkout",
            )
        # The runtime would follow the names of further files that a model may hold.
        load_onnx(self._path)
        try:
            self._session = runtime.InferenceSession(
                str(self._path), sess_options=self._options(runtime), providers=self._providers()
            )
        except Exception as error:  # the runtime raises classes of its own that share no useful base
            raise runtime_failure(f"ONNX Runtime loading {self._path.name}", error) from error
        self._check_provider()
        inputs = tuple(self._info(value) for value in self._session.get_inputs())
        return only_input(inputs, self._path.name), tuple(self._info(value) for value in self._session.get_outputs())

    def _options(self, runtime: Any) -> Any:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        return options

    def _providers(self) -> list[Any]:
        return [self.provider]

    def _check_provider(self) -> None:
        used = self._session.get_providers()
        if used[:1] != [self.provider]:
            raise WrongDeviceError(
                f"ONNX Runtime fell back to {used}",
                required=f"{self.provider} first",
                remedy="check that CUDA and cuDNN of this host fit the onnxruntime-gpu wheel",
            )

    def _info(self, value: Any) -> TensorInfo:
        if not all(isinstance(side, int) for side in value.shape) or value.type not in DTYPES:
            raise ContractViolationError(
                f"{self._path.name}: {value.name} is {value.type}{value.shape}",
                required="a static shape of floating-point numbers",
                remedy="export with a fixed batch size",
            )
        return TensorInfo(value.name, tuple(value.shape), DTYPES[value.type])

    def _run(self, tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        names = [info.name for info in self.outputs]
        try:
            arrays = self._session.run(names, {self.input.name: tensor})
        except SuiteError:  # the alarm of a deadline, which arrives when the native call returns
            raise
        except Exception as error:  # as above
            raise runtime_failure(f"ONNX Runtime running {self._path.name}", error) from error
        return dict(zip(names, arrays, strict=True))

    def _close(self) -> None:
        self._session = None


class OnnxCpuBackend(_OnnxBackend):
    """
    ONNX Runtime on the CPU.

    Parameters
    ----------
    path : Path
        ONNX file with a static batch.
    """

    provider = "CPUExecutionProvider"
    timer = "wall time of session.run"
    includes_copies = True

    def _options(self, runtime: Any) -> Any:
        options = super()._options(runtime)
        _share_memory(runtime)
        options.add_session_config_entry("session.use_env_allocators", "1")
        # A pattern would take all memory anew in the second call: it is made of what the first took piece by piece.
        options.enable_mem_pattern = False
        return options


class CudaBackend(_OnnxBackend):
    """
    ONNX Runtime on a CUDA GPU; a model or a node that would run on the CPU instead is an error.

    Parameters
    ----------
    path : Path
        ONNX file with a static batch.
    device_id : int
        Position among the GPUs visible to CUDA, in PCI order.
    """

    provider = "CUDAExecutionProvider"
    timer = "wall time of session.run, copies included"
    includes_copies = True

    def __init__(self, path: Path, device_id: int) -> None:
        super().__init__(path)
        self._device_id = device_id

    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        # nvidia-smi lists PCI order, CUDA by default the fastest GPU first: an id must mean the same in both.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return super()._open()

    def _options(self, runtime: Any) -> Any:
        options = super()._options(runtime)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options

    def _providers(self) -> list[Any]:
        return [(self.provider, {"device_id": self._device_id})]


@cache
def _share_memory(runtime: Any) -> None:
    """
    Let all sessions of this process that ask for it take memory from one arena, which keeps what one leaves.

    At batch 64 a session takes 4.5 GB, and to be given pages anew costs as much time as two calls take to compute. A
    process that goes through all batch sizes comes to 10 GB: pieces of an arena are not merged.
    """
    # 1: the arena grows by what is asked for, not by powers of two, of which a batch of 64 fills little more than half.
    grows = runtime.OrtArenaCfg({"arena_extend_strategy": 1})
    kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT), grows)


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolError(
            f"onnxruntime cannot be imported: {error}", remedy="pip install '.[cpu]' (or '.[cuda]') in the checkout"
        ) from error
    return onnxruntime
