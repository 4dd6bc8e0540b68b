"""What the user asked for, independent of the command line it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.capabilities import CPU
from support.clauses import Mode
from support.errors import UsageError
from support.simulator.host import Simulation
from support.spec import AcceptanceSpec

__all__ = ["RunOptions", "batch_sizes_from_text", "device_ids_from_text"]

#: Chips whose models are compiled by atc and run by aclruntime.
NPU_PREFIX = "310"


@dataclass(frozen=True)
class RunOptions:
    """
    One run as asked for.

    Paths are absolute or relative to the working directory; None means the spec's default. `onnx`, `om` and `results`
    are paths of prebuilt models or result files in which ``{batch}`` stands for the batch size. `comparing` asks for
    the comparison with saved runs.
    """

    spec: str = "efficientdet_d0"
    chip: str = CPU
    device_ids: tuple[int, ...] | None = None
    checkpoint: Path | None = None
    coco_root: Path | None = None
    onnx: str | None = None
    om: str | None = None
    results: str | None = None
    route: Literal["worker", "files"] = "worker"
    wait_device: float = 0.0
    allow_busy: bool = False
    acl_python: Path | None = None
    ais_infer: Path | None = None
    scratch: Path | None = None
    reference: Path | None = None
    record_reference: Path | None = None
    release: bool = False
    artifacts: Path = Path("artifacts")
    batch_sizes: tuple[int, ...] | None = None
    limit: int | None = None
    rungs: Literal["on", "off"] = "on"
    scorer: Literal["hotcoco", "pycocotools"] = "hotcoco"
    write_bins: Path | None = None
    report_dir: Path | None = None
    images: bool = True
    waivers: Path | None = None
    comparing: bool = False

    @property
    def mode(self) -> Mode:
        """Where the candidate comes from."""
        given: dict[Mode, str | None] = {"results": self.results, "om": self.om, "onnx": self.onnx}
        return next((mode for mode, path in given.items() if path), "build")

    @property
    def simulation(self) -> Simulation | None:
        """The simulated chip asked for, if it is one."""
        return Simulation.parse(self.chip) if self.chip.startswith("sim:") else None

    @property
    def chip_name(self) -> str:
        """Name of the chip, also of a simulated one."""
        return self.simulation.chip if self.simulation else self.chip

    @property
    def on_npu(self) -> bool:
        """Whether the chip is an Ascend one."""
        return self.chip_name.startswith(NPU_PREFIX)

    @property
    def device(self) -> str:
        """What is judged, in words; a simulated chip always says so."""
        return self.simulation.label if self.simulation else self.chip

    def batches(self, spec: AcceptanceSpec) -> tuple[int, ...]:
        """Batch sizes to run: those asked for, else those of the spec."""
        return self.batch_sizes or spec.batch_sizes

    def required(
        self, spec: AcceptanceSpec, scopes: frozenset[str] = frozenset({"gate", "throughput"})
    ) -> tuple[tuple[str, int | None], ...]:
        """Name every clause, and batch size where it has one, that this run has to measure."""
        return spec.required(mode=self.mode, chip=self.chip_name, scopes=scopes, comparing=self.comparing)

    def check(self, spec: AcceptanceSpec) -> None:
        """
        Refuse what makes no sense with this spec.

        Raises
        ------
        UsageError
            For a chip or batch size the spec does not know, a prebuilt model without ``{batch}``, or options that
            exclude each other.
        """
        known = (CPU, *spec.throughput.same_chip)
        if self.chip_name not in known:
            raise UsageError(f"--chip={self.chip}: unknown to {spec.name}", required=f"one of {', '.join(known)}")
        self._check_candidate()
        self._check_devices()
        foreign = sorted(set(self.batches(spec)) - set(spec.batch_sizes))
        if foreign:
            raise UsageError(
                f"--batch-sizes: {foreign} not in {spec.name}", required=f"some of {list(spec.batch_sizes)}"
            )
        for option, path in {"--onnx": self.onnx, "--om": self.om}.items():
            if path and "{batch}" not in path and len(self.batches(spec)) > 1:
                raise UsageError(f"{option}={path}: one file for several batch sizes", required="{batch} in the path")
        if self.reference and self.record_reference:
            raise UsageError("--reference and --record-reference exclude each other")
        if self.record_reference and self.mode != "build":
            raise UsageError("--record-reference measures the checkpoint", remedy=f"leave out --{self.mode}")
        if self.record_reference and self.limit is not None:
            raise UsageError("--record-reference needs every image", remedy="leave out --limit")

    def _check_candidate(self) -> None:
        given = [name for name in ("onnx", "om", "results") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in given)} exclude each other")
        for name in ("om", "acl_python", "ais_infer", "scratch"):
            if getattr(self, name) and not self.on_npu:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} needs an Ascend chip, not {self.chip}", remedy="for example --chip=310P3")
        if self.route == "files" and (not self.on_npu or self.results):
            raise UsageError("--route=files runs ais_bench on an Ascend chip", remedy="leave it out")

    def _check_devices(self) -> None:
        if self.device_ids is None or self.on_npu:
            return
        if self.chip == CPU or len(self.device_ids) > 1:
            text = ",".join(map(str, self.device_ids))
            raise UsageError(f"--device-id={text}: {self.chip} has no such choice", remedy="leave it out")

    def not_release(self, spec: AcceptanceSpec) -> tuple[str, ...]:
        """Everything that makes this run something other than a release run."""
        given = {
            "--chip=cpu": self.chip == CPU,
            f"{self.device} is simulated": self.simulation is not None,
            "--results: the device that made them was not seen": self.results is not None,
            "--allow-busy": self.allow_busy,
            f"{spec.name} is not a published spec": not spec.published,
            f"--spec={self.spec} is not one of this suite": not spec.of_this_suite,
            "--limit": self.limit is not None,
            "--batch-sizes": self.batch_sizes is not None,
        }
        return tuple(what for what, on in given.items() if on)


def device_ids_from_text(text: str) -> tuple[int, ...]:
    """
    Read a comma-separated list of device ids.

    Raises
    ------
    UsageError
        If an entry is not an integer from 0, or is repeated.

    Examples
    --------
    >>> device_ids_from_text("2,0")
    (2, 0)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(
        parts
    ):
        raise UsageError(f"--device-id={text}: not a list of different device ids", required="for example 0 or 0,1")
    return tuple(int(part) for part in parts)


def batch_sizes_from_text(text: str) -> tuple[int, ...]:
    """
    Read a comma-separated list of batch sizes.

    Raises
    ------
    UsageError
        If an entry is not a positive integer, or there is none.

    Examples
    --------
    >>> batch_sizes_from_text("4,1,4")
    (1, 4)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch-sizes={text}: not a list of positive integers", required="for example 1,4,8")
    return tuple(sorted({int(part) for part in parts}))
