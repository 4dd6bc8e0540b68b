"""The suite's own code as an input of what it measures."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

__all__ = ["measuring_code"]

#: Modules that decide what a pass yields. A measurement kept from an earlier run is good only while none has changed.
MEASURING = (
    "anchors",
    "backends/base",
    "backends/onnx_runtime",
    "backends/torch_eager",
    "detections",
    "engine",
    "heads",
    "inputs",
    "kernels",
)


@lru_cache(maxsize=1)
def measuring_code() -> str:
    """SHA-256 over the source of every module between the input feed and the detections."""
    digest = hashlib.sha256()
    for name in MEASURING:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()
