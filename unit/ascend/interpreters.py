"""Interpreters the runtime may have been built for: the one of the suite, and the oldest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OURS, OLDEST = "ours", "python3.7"
#: Names the oldest one, where it is not on PATH.
VARIABLE = "ACL_PYTHON37"


def interpreter(name):
    if name == OURS:
        return Path(sys.executable)
    found = shutil.which(os.environ.get(VARIABLE) or OLDEST)
    if not found or subprocess.run([found, "-c", "import numpy"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs a Python 3.7 with NumPy, as {OLDEST} on PATH or in {VARIABLE}")
    return Path(found)
