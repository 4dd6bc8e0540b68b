"""Where the tools of CANN are found, and the environment they run in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from support.errors import ToolError

__all__ = ["AscendHost", "real_host"]

#: What brings a tool, as the vendor's installers lay it out.
REMEDIES = {
    "atc": "source /usr/local/Ascend/ascend-toolkit/set_env.sh (CANN 8.5 and later: /usr/local/Ascend/cann/set_env.sh)",
    "npu-smi": "install the Ascend driver and put npu-smi (/usr/local/bin or sbin) on PATH; in a container, mount it",
}
#: Logs on stdout would hide what is parsed there; translated messages would not be recognised.
FIXED = {"ASCEND_SLOG_PRINT_TO_STDOUT": "0", "ASCEND_GLOBAL_LOG_LEVEL": "3", "LC_ALL": "C"}


@dataclass(frozen=True)
class AscendHost:
    """
    A host with Ascend devices, or one that simulates them.

    Parameters
    ----------
    env : mapping of str to str
        The whole environment every tool and every worker is started in.
    simulation : str
        What is simulated, in words for every report; empty on hardware.
    """

    env: Mapping[str, str]
    simulation: str = ""

    def tool(self, name: str) -> Path:
        """
        Path of an executable.

        Raises
        ------
        ToolError
            If it is not on PATH.
        """
        found = shutil.which(name, path=self.env.get("PATH", ""))
        if found is None:
            raise ToolError(f"{name} is not on PATH", remedy=REMEDIES.get(name, f"install {name}"))
        return Path(found)


def real_host() -> AscendHost:
    """Return this host, as its environment describes it."""
    return AscendHost({**os.environ, **FIXED})
