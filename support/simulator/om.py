"""The simulated compiled model: one file that holds what it computes and what its compiler knew."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.plain_files import read_plain

__all__ = ["BrokenOmError", "Om", "OmTensor", "read_om", "write_om"]

MAGIC = b"SIMULATED-OM-2\n"
#: Protobuf ends there, and so do models.
MAX_BYTES = 2**31
LENGTH = struct.Struct("<Q")


class BrokenOmError(Exception):
    """A file is not a whole compiled model."""


@dataclass(frozen=True)
class OmTensor:
    """
    Description of an input or output.

    `shape` has -1 for a dynamic axis; `dtype` is NumPy's name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Om:
    """
    A compiled model.

    Parameters
    ----------
    inputs, outputs : tuple of OmTensor
        As the runtime describes them.
    soc_version : str
        The chip it was compiled for.
    precision_mode : str
        Of its compilation.
    lowered : tuple of str
        Names of the operators that compute in half precision.
    gears : tuple of int
        Batch sizes of a dynamic model; empty for a static one.
    aipp : bool
        Whether it takes raw pixels.
    command, version : str
        Command line and version of the compiler.
    onnx : bytes
        The graph.
    """

    inputs: tuple[OmTensor, ...]
    outputs: tuple[OmTensor, ...]
    soc_version: str
    precision_mode: str
    lowered: tuple[str, ...]
    gears: tuple[int, ...]
    aipp: bool
    command: str
    version: str
    onnx: bytes


def write_om(path: Path, om: Om) -> None:
    """Write a compiled model."""
    facts = json.dumps({key: value for key, value in asdict(om).items() if key != "onnx"}).encode()
    content = LENGTH.pack(len(facts)) + facts + om.onnx
    path.write_bytes(MAGIC + hashlib.sha256(content).digest() + content)


def read_om(path: Path) -> Om:
    """
    Read a compiled model.

    Raises
    ------
    BrokenOmError
        If the file is none, or is not as it was written.
    """
    data = read_plain(path, MAX_BYTES)
    if not data.startswith(MAGIC):
        raise BrokenOmError(f"{path} is not a compiled model")
    start = len(MAGIC) + hashlib.sha256().digest_size
    digest, content = data[len(MAGIC) : start], data[start:]
    if hashlib.sha256(content).digest() != digest:
        raise BrokenOmError(f"{path} is damaged")
    try:
        (size,) = LENGTH.unpack_from(content)
        return _om(json.loads(content[LENGTH.size : LENGTH.size + size]), content[LENGTH.size + size :])
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenOmError(f"{path} holds something else than its magic says: {error}") from error


def _om(facts: Mapping[str, Any], graph: bytes) -> Om:
    tensors = {
        side: tuple(OmTensor(item["name"], tuple(item["shape"]), item["dtype"]) for item in facts[side])
        for side in ("inputs", "outputs")
    }
    lists = {name: tuple(facts[name]) for name in ("lowered", "gears")}
    return Om(**{**facts, **tensors, **lists, "onnx": graph})
