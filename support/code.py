"""The suite's own code as an input of what it measures."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

__all__ = ["measuring_code"]

#: Modules that decide what a pass yields and how it is kept. A measurement of an earlier run is good only while none of
#: them has changed.
MEASURING = (
    "anchors",
    "arrays",
    "backends/base",
    "backends/onnx_runtime",
    "backends/torch_eager",
    "checkpoint",
    "detections",
    "engine",
    "feed",
    "heads",
    "inputs",
    "kernels",
    "onnx_files",
    "passes",
    "plain_files",
    "timing",
)


@lru_cache(maxsize=1)
def measuring_code() -> str:
    """SHA-256 over the source of every module from feed and checkpoint to the detections."""
    digest = hashlib.sha256()
    for name in MEASURING:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()
