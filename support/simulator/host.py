"""The simulated host: tools, runtime and devices in a folder, found through an environment."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from filelock import FileLock

from support.ascend.host import FIXED, AscendHost
from support.errors import UsageError
from support.simulator.pace import COPY_RATE

__all__ = ["FAULTS", "Generation", "Simulation", "simulated_host"]

Generation = Literal["V1", "V2", "V3"]
Mode = Literal["compute", "paced"]

#: Everything that can be wrong with a simulated host, and what it does.
FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "alarm": "npu-smi reports health Alarm",
        "busy": "another process uses the device from the start",
        "crash": "the runtime aborts in the first run",
        "crash-at-load": "the runtime aborts when it loads a model",
        "hang": "a run never ends",
        "job-starts": "another process appears on the device after the first runs",
        "mixlist-ignored": "atc ignores the list of operators that keep their precision",
        "nan-at-64": "outputs at batch 64 have NaN",
        "no-atc": "there is no compiler",
        "no-memory": "models do not fit into the device's memory",
        "no-process-table": "npu-smi lists no processes",
        "not-sourced": "the environment of CANN is missing",
        "previous-outputs": "a run returns the outputs of the one before",
        "renumbered": "the environment numbers devices in a way nobody can follow",
        "throttled": "the clock falls while the device is at work",
        "vanish": "the device falls off the bus in the middle of a pass",
    }
)
CHIPS = ("310", "310P3", "310B1")
#: What belongs to a generation of the runtime: CANN, driver and firmware of its time, and the version of its wheel.
TIMES: Mapping[str, tuple[str, str, str, str]] = MappingProxyType(
    {
        "V1": ("5.1.RC1", "21.0.4", "1.80.22.2.220", "0.0.1"),
        "V2": ("6.0.1", "22.0.4", "1.83.10.1.230", "0.0.2"),
        "V3": ("8.0.0", "24.1.0.1", "7.5.0.3.220", "0.0.2"),
    }
)
BASELINES: Mapping[str, str] = MappingProxyType({"310": "310-cann5", "310P3": "310P3-cann6", "310B1": "310B1"})
PROJECT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "site"


@dataclass(frozen=True)
class Simulation:
    """
    Which host is simulated.

    Parameters
    ----------
    chip : {"310", "310P3", "310B1"}
        Its devices.
    generation : {"V1", "V2", "V3"}
        Of aclruntime and its command-line tool.
    mode : {"compute", "paced"}
        Whether outputs are computed and time is virtual, or outputs are replayed and time is real.
    devices : int
        How many.
    faults : tuple of str
        Names of `FAULTS`.
    """

    chip: str
    generation: Generation = "V3"
    mode: Mode = "compute"
    devices: int = 1
    faults: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Simulation:
        """
        Read what follows ``--chip=``.

        Raises
        ------
        UsageError
            If a part is not known, or two contradict each other; the message lists what is known.

        Examples
        --------
        >>> Simulation.parse("sim:310P3,v1,devices=4").label
        'simulated 310P3 (aclruntime V1, compute mode)'
        """
        chip, *parts = text.removeprefix("sim:").split(",")
        if chip not in CHIPS:
            raise UsageError(f"--chip={text}: {chip!r} cannot be simulated", required=f"one of {', '.join(CHIPS)}")
        found: dict[str, Any] = {}
        faults: list[str] = []
        for part in parts:
            name, value = _option(part)
            if name == "fault":
                faults.append(value)
            elif name in found or not name:
                raise UsageError(
                    f"--chip={text}: {part!r} {'is one too many' if name else 'is not known'}",
                    required="v1, v2 or v3; compute or paced; devices=N; fault=NAME with NAME one of "
                    f"{', '.join(FAULTS)}",
                )
            else:
                found[name] = value
        return cls(chip, faults=tuple(dict.fromkeys(faults)), **found)

    @property
    def label(self) -> str:
        """What is simulated, in words, for every page that shows a figure."""
        faults = f", {', '.join(self.faults)}" if self.faults else ""
        return f"simulated {self.chip} (aclruntime {self.generation}, {self.mode} mode{faults})"


def _option(part: str) -> tuple[str, Any]:
    """Field and value that a part of the option means; an empty field if it means none."""
    key, _, value = part.partition("=")
    if part.upper() in get_args(Generation):
        return "generation", part.upper()
    if part in get_args(Mode):
        return "mode", part
    if key == "devices" and value.isdecimal() and 1 <= int(value) <= 64:
        return "devices", int(value)
    if key == "fault" and value in FAULTS:
        return "fault", value
    return "", None


def simulated_host(folder: Path, simulation: Simulation) -> AscendHost:
    """
    Make a simulated host, or find the one that is there.

    Parameters
    ----------
    folder : Path
        Where it lives; workers of one session share it.
    simulation : Simulation
        What it is.

    Raises
    ------
    UsageError
        If another host is there: its tools would not be what the label says.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path, description = folder / "host.json", _description(folder, simulation)
    # All workers of a session may come at once.
    with FileLock(folder / "host.lock"):
        if not path.is_file():
            _make(folder, simulation)
            path.write_text(description, encoding="utf-8")
    if path.read_text(encoding="utf-8") != description:
        raise UsageError(f"{folder} holds another simulated host", remedy="choose another folder, or remove this one")
    return AscendHost(_environment(folder, simulation), simulation.label)


def _make(folder: Path, simulation: Simulation) -> None:
    for name in ("bin", "site", "state", "toolkit"):
        (folder / name).mkdir(exist_ok=True)
    cann, *_, wheel = TIMES[simulation.generation]
    (folder / "toolkit" / "version.cfg").write_text(
        f"[toolkit]\nversion={cann}+simulated.{_code()}\n", encoding="utf-8"
    )
    _install(folder, simulation, wheel)
    for name in ("npu-smi",) if "no-atc" in simulation.faults else ("atc", "npu-smi"):
        _executable(folder / "bin" / name, _shell(f"support.simulator.{name.replace('-', '_')}"))


def _install(folder: Path, simulation: Simulation, wheel: str) -> None:
    site = folder / "site"
    shutil.copy(SITE / "aclruntime.py", site)
    record = site / f"aclruntime-{wheel}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aclruntime\nVersion: {wheel}\n", encoding="utf-8")
    if simulation.generation == "V1":
        script = f"#!{sys.executable}\nimport sys\nfrom ais_infer_frontend import main\n\nsys.exit(main())\n"
        shutil.copy(SITE / "ais_bench" / "__main__.py", site / "ais_infer_frontend.py")
        _executable(folder / "bin" / "ais_infer.py", script)
    else:
        shutil.copytree(SITE / "ais_bench", site / "ais_bench", dirs_exist_ok=True)


def _shell(module: str) -> str:
    python = shlex.join([sys.executable, "-m", module])
    return f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(PROJECT))} exec {python} "$@"\n'


def _executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _code() -> str:
    """Digest of what decides a compiled model, so that none outlives a change of the simulated compiler."""
    digest = hashlib.sha256()
    for name in ("simulator/atc", "simulator/om", "simulator/precision", "ascend/operators"):
        digest.update((PROJECT / "support" / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def _description(folder: Path, simulation: Simulation) -> str:
    """Text of ``host.json``, which every simulated tool reads."""
    from support.spec import load_spec

    cann, driver, firmware, _ = TIMES[simulation.generation]
    table = load_spec("efficientdet_d0").baselines[BASELINES[simulation.chip]].images_per_second
    # No two hosts have the same card, or their sessions would wait for each other.
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    facts = {
        "chip": simulation.chip,
        "soc_version": f"Ascend{simulation.chip}",
        "generation": simulation.generation,
        "mode": simulation.mode,
        "faults": list(simulation.faults),
        "saturates": simulation.generation == "V3",
        "cann": cann,
        "driver": driver,
        "firmware": firmware,
        "process_table": simulation.generation == "V3" and simulation.chip != "310B1",
        "device_python": sys.executable,
        "project": str(PROJECT),
        "images_per_second": dict(table),
        "copy_rate": COPY_RATE,
        "devices": [_device(simulation.chip, number, mark) for number in range(simulation.devices)],
    }
    return json.dumps(facts, indent=1)


def _device(chip: str, number: int, mark: str) -> dict[str, Any]:
    # Four chips share a card of a 310; elsewhere every chip has its own. Ids of cards are no device ids.
    card, place = divmod(number, 4) if chip == "310" else (number, 0)
    bus = "NA" if chip == "310B1" else f"0000:{0x3B + card:02X}:{place:02X}.0"
    return {
        "npu_id": 2144 + 32 * card,
        "chip_id": place,
        "logic_id": number,
        "bus_id": bus,
        "serial": f"SIMULATED{mark}{card:04d}",
    }


def _environment(folder: Path, simulation: Simulation) -> dict[str, str]:
    env = {**os.environ, **FIXED, "ASCEND_SIMULATED_HOST": str(folder)}
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_RT_VISIBLE_DEVICES"):
        env.pop(name, None)
    # The tools of a real host would be found behind the simulated ones.
    rest = [part for part in env.get("PATH", "").split(os.pathsep) if not (Path(part) / "atc").exists()]
    env["PATH"] = os.pathsep.join([str(folder / "bin"), *rest])
    env["PYTHONPATH"] = str(folder / "site")
    if "not-sourced" not in simulation.faults:
        env["ASCEND_TOOLKIT_HOME"] = str(folder / "toolkit")
    if "renumbered" in simulation.faults:
        env["ASCEND_RT_VISIBLE_DEVICES"] = "NPU-7"
    return env
