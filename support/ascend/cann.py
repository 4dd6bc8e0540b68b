"""Which CANN toolkit is installed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["cann_version"]

#: ``version=8.0.RC2`` of an install.info, and ``runtime_running_version=[7.6.0.1.220:8.0.0]`` of a version.cfg, where
#: the version of the component precedes that of CANN.
VERSION = re.compile(r"^\s*\w*version\s*=\s*\[?(?:[^\s:\]]+:)?([0-9][^\s:\]]*)", re.IGNORECASE | re.MULTILINE)


def cann_version(env: Mapping[str, str]) -> str:
    """
    Version of the toolkit an environment points to; empty if it cannot be told.

    Parameters
    ----------
    env : mapping of str to str
        With ``ASCEND_TOOLKIT_HOME`` or ``ASCEND_HOME_PATH``, which set_env.sh sets.
    """
    for path in _files(env):
        try:
            match = VERSION.search(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if match:
            return match[1]
    return ""


def _files(env: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        if env.get(variable):
            home = Path(env[variable])
            yield home / f"{platform.machine()}-linux" / "ascend_toolkit_install.info"
            yield home / "ascend_toolkit_install.info"
            yield home / "version.cfg"
