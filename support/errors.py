"""Errors a user can act on, each carrying the verdict reason it leads to."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BuildFailedError",
    "ContractViolationError",
    "DeviceBusyError",
    "DeviceLostError",
    "NoBaselineError",
    "NoDataError",
    "NoDeviceError",
    "NoReferenceError",
    "NoSpaceError",
    "NoTimingError",
    "NotFiniteError",
    "NotSerialError",
    "PartialRunError",
    "RejectedEarlyError",
    "SpecError",
    "SuiteError",
    "SuiteTimeoutError",
    "ToolError",
    "UsageError",
    "WrongDataError",
    "WrongDeviceError",
]


class SuiteError(Exception):
    """
    Something the run needs is not as it must be.

    Parameters
    ----------
    found : str
        What was seen, with the file, key or device it was seen in.
    required : str, optional
        What would have been right.
    remedy : str, optional
        What the user can do about it.

    Examples
    --------
    >>> print(NoDataError("coco_data/val2017 does not exist", required="a folder of JPEGs", remedy="--coco-root=DIR"))
    coco_data/val2017 does not exist
      required: a folder of JPEGs
      what to do: --coco-root=DIR
    """

    #: The word of the verdict table this error leads to.
    reason: ClassVar[str] = "internal-error"

    def __init__(self, found: str, *, required: str = "", remedy: str = "") -> None:
        super().__init__(found, required, remedy)
        self.found = found
        self.required = required
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive the default pickling, and errors cross process borders.
        return _rebuild, (type(self), self.found, self.required, self.remedy)

    def __str__(self) -> str:
        lines = [self.found]
        if self.required:
            lines.append(f"  required: {self.required}")
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)


def _rebuild(kind: type[SuiteError], found: str, required: str, remedy: str) -> SuiteError:
    return kind(found, required=required, remedy=remedy)


class UsageError(SuiteError):
    """The command line or environment asks for something that makes no sense; ends as pytest's usage error."""

    reason = "usage"


class PartialRunError(SuiteError):
    """The run was asked for too little to measure this."""

    reason = "partial"


class SpecError(UsageError):
    """A spec file is malformed or contradicts itself."""


class ContractViolationError(SuiteError):
    """An artifact is readable but is not what its contract says: the one error that means *rejected*."""

    reason = "contract"


class RejectedEarlyError(SuiteError):
    """An early rung rejected a candidate: the clause it judges is *rejected*, all that need every image unmeasured."""

    reason = "rejected-early"


class NotFiniteError(ContractViolationError):
    """
    A model gave values that are not finite.

    Parameters
    ----------
    slot : int
        Place in the batch, or among the images decoded together.
    row : int, optional
        Row of the feed, once somebody knows it.
    """

    def __init__(
        self, found: str, *, required: str = "", remedy: str = "", slot: int = 0, row: int | None = None
    ) -> None:
        super().__init__(found, required=required, remedy=remedy)
        self.slot, self.row = slot, row

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_not_finite, (self.found, self.required, self.remedy, self.slot, self.row)


def _rebuild_not_finite(found: str, required: str, remedy: str, slot: int, row: int | None) -> NotFiniteError:
    return NotFiniteError(found, required=required, remedy=remedy, slot=slot, row=row)


class NoDeviceError(SuiteError):
    """The device asked for is not here."""

    reason = "no-device"


class WrongDeviceError(SuiteError):
    """A device is here, but not the one asked for."""

    reason = "wrong-device"


class DeviceBusyError(SuiteError):
    """Somebody else uses the device."""

    reason = "busy-device"


class DeviceLostError(SuiteError):
    """The device or its runtime went away during the run."""

    reason = "device-lost"


class NoDataError(SuiteError):
    """Images, annotations or weights are missing."""

    reason = "no-data"


class WrongDataError(SuiteError):
    """Images, annotations or results are there but are not the ones required, or are damaged."""

    reason = "wrong-data"


class NoReferenceError(SuiteError):
    """There is nothing to compare the candidate with."""

    reason = "no-reference"


class NoBaselineError(SuiteError):
    """There is no earlier throughput to compare with."""

    reason = "no-baseline"


class NoTimingError(SuiteError):
    """The run produced no usable timing samples."""

    reason = "no-timing"


class BuildFailedError(SuiteError):
    """A stage could not make its artifact."""

    reason = "build-failed"


class ToolError(SuiteError):
    """An external tool or library failed."""

    reason = "tool-error"


class SuiteTimeoutError(SuiteError):
    """A step took longer than its limit."""

    reason = "timeout"


class NoSpaceError(SuiteError):
    """A disk or memory file system is full or too small."""

    reason = "no-space"


class NotSerialError(SuiteError):
    """Throughput was asked for under parallel workers."""

    reason = "not-serial"
