"""The interpreter in which aclruntime can be imported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.errors import SuiteError, ToolError

__all__ = ["WORKER", "AclPython", "find_acl_python"]

WORKER = Path(__file__).with_name("acl_worker.py")
NAMES = (*(f"python3.{minor}" for minor in range(7, 15)), "python3")
#: Where the guides of the vendor install an interpreter.
USUAL = "usr/local/python3*/bin/python3"
#: Characters of an interpreter's output that the list of all of them quotes.
LAST = 200
NOT_SOURCED = (
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh (CANN 8.5 and later: /usr/local/Ascend/cann/set_env.sh)"
)


@dataclass(frozen=True)
class AclPython:
    """
    An interpreter that can import aclruntime.

    `generation` is V1, V2 or V3, told by what the module has; `wheel` its version, which does not tell V2 from V3.
    """

    path: Path
    python: str
    generation: Literal["V1", "V2", "V3"]
    wheel: str

    def __str__(self) -> str:
        return f"aclruntime {self.generation} (wheel {self.wheel or 'unknown'}) under Python {self.python}, {self.path}"


def find_acl_python(host: AscendHost, given: Path | None, *, timeout: float) -> AclPython:
    """
    Find an interpreter.

    Parameters
    ----------
    host : AscendHost
        Environment it runs in.
    given : Path or None
        The only one to try; else this one, those on PATH and those in the usual places.
    timeout : float
        Seconds an import may take.

    Raises
    ------
    ToolError
        If none can; the message tells what each of them said.
    """
    tried: dict[str, str] = {}
    for path in [given] if given else _candidates(host):
        facts = _probe(host, path, timeout)
        if "generation" in facts:
            return AclPython(path, facts["python"], facts["generation"], facts["wheel"])
        tried[str(path)] = facts["error"]
    raise _not_found(tried)


def _candidates(host: AscendHost) -> Iterator[Path]:
    seen = set()
    folders = host.env.get("PATH", "").split(os.pathsep)
    on_path = [Path(folder) / name for name in NAMES for folder in folders if folder]
    for path in [Path(sys.executable), *on_path, *sorted(Path("/").glob(USUAL))]:
        # Several names in a folder often lead to one interpreter. The link in a virtual environment leads to one, too,
        # but that one has other packages.
        place = path.parent.resolve(), path.resolve()
        if path.is_file() and os.access(path, os.X_OK) and place not in seen:
            seen.add(place)
            yield path


def _probe(host: AscendHost, path: Path, timeout: float) -> dict[str, Any]:
    try:
        done = run_tool([str(path), str(WORKER), "--probe"], env=host.env, timeout=timeout)
    except SuiteError as error:
        return {"error": error.found}
    for line in reversed(done.output.splitlines()):
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and facts.keys() & {"generation", "error"}:
            return facts
    last = " ".join(done.tail.split())[-LAST:]
    return {"error": f"ended with {done.status}: {last or 'no output'}"}


def _not_found(tried: dict[str, str]) -> ToolError:
    reasons = "".join(f"\n    {path}: {why}" for path, why in tried.items())
    text = reasons.lower()
    if "libascend" in text or "libacl" in text:
        remedy = NOT_SOURCED
    elif "no module named 'numpy'" in text and "no module named 'aclruntime'" not in text:
        remedy = "install numpy into the interpreter of aclruntime"
    else:
        remedy = (
            "pip install the aclruntime wheel of ais_bench into one of them, or name another with --acl-python=FILE"
        )
    return ToolError(f"no interpreter can import aclruntime:{reasons}", remedy=remedy)
