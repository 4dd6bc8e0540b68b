"""What the user asked for, independent of the command line it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.capabilities import CPU
from support.clauses import Mode
from support.errors import UsageError
from support.spec import SPEC_FOLDER, AcceptanceSpec, spec_path

__all__ = ["RunOptions", "batch_sizes_from_text"]


@dataclass(frozen=True)
class RunOptions:
    """
    One run as asked for.

    Paths are absolute or relative to the working directory; None means the spec's default. `onnx` is the path of a
    prebuilt model in which ``{batch}`` stands for the batch size. `comparing` asks for the comparison with saved runs.
    """

    spec: str = "efficientdet_d0"
    chip: str = CPU
    device_id: int = 0
    checkpoint: Path | None = None
    coco_root: Path | None = None
    onnx: str | None = None
    reference: Path | None = None
    record_reference: Path | None = None
    release: bool = False
    artifacts: Path = Path("artifacts")
    batch_sizes: tuple[int, ...] | None = None
    limit: int | None = None
    scorer: Literal["hotcoco", "pycocotools"] = "hotcoco"
    write_bins: Path | None = None
    comparing: bool = False

    @property
    def mode(self) -> Mode:
        """Where the candidate comes from."""
        return "onnx" if self.onnx else "build"

    def batches(self, spec: AcceptanceSpec) -> tuple[int, ...]:
        """Batch sizes to run: those asked for, else those of the spec."""
        return self.batch_sizes or spec.batch_sizes

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
        if self.chip not in known:
            raise UsageError(f"--chip={self.chip}: unknown to {spec.name}", required=f"one of {', '.join(known)}")
        foreign = sorted(set(self.batches(spec)) - set(spec.batch_sizes))
        if foreign:
            raise UsageError(
                f"--batch-sizes: {foreign} not in {spec.name}", required=f"some of {list(spec.batch_sizes)}"
            )
        if self.onnx and "{batch}" not in self.onnx and len(self.batches(spec)) > 1:
            raise UsageError(f"--onnx={self.onnx}: one file for several batch sizes", required="{batch} in the path")
        if self.reference and self.record_reference:
            raise UsageError("--reference and --record-reference exclude each other")
        if self.record_reference and self.mode != "build":
            raise UsageError("--record-reference measures the checkpoint", remedy="leave out --onnx")
        if self.record_reference and self.limit is not None:
            raise UsageError("--record-reference needs every image", remedy="leave out --limit")

    def not_release(self, spec: AcceptanceSpec) -> tuple[str, ...]:
        """Everything that makes this run something other than a release run."""
        given = {
            "--chip=cpu": self.chip == CPU,
            f"{spec.name} is not a published spec": not spec.published,
            f"--spec={self.spec} is not one of this suite": spec_path(self.spec).resolve().parent != SPEC_FOLDER,
            "--limit": self.limit is not None,
            "--batch-sizes": self.batch_sizes is not None,
        }
        return tuple(what for what, on in given.items() if on)


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
