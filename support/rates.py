"""The definitions of throughput beside each other: computing, with copies, end to end, and one image repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from support.timing import PassTiming

__all__ = ["Rates", "rates"]


@dataclass(frozen=True)
class Rates:
    """
    Images per second of one pass by every definition; None where it was not measured.

    The official figure of a pass is the mean over all its calls, by the clock that the timing names: `compute` on an
    NPU, `with_copies` elsewhere. All of these count padded slots as images, so that they can be compared.

    Parameters
    ----------
    compute : float or None
        The device computing, nothing else.
    with_copies : float or None
        With the copies to and from the device.
    end_to_end : float or None
        The whole pass: reading, normalising, computing, decoding.
    pure : float or None
        One image again and again, by the clock of the official figure: what tools call pure inference. Quick, and no
        figure of a data set.
    """

    compute: float | None
    with_copies: float | None
    end_to_end: float | None
    pure: float | None

    def contradictions(self, tolerance: float) -> Iterator[str]:
        """
        Say where a definition that includes more is faster than one that includes less, which no clock can show.

        Parameters
        ----------
        tolerance : float
            Relative difference that clocks of device and host may have.
        """
        known = [
            (name, rate)
            for name, rate in (
                ("computing alone", self.compute),
                ("with copies", self.with_copies),
                ("end to end", self.end_to_end),
            )
            if rate is not None
        ]
        for (less, fast), (more, slow) in pairwise(known):
            if slow > fast * (1 + tolerance):
                yield f"the clocks contradict each other: {slow:.3f} images/s {more}, {fast:.3f} {less}"

    def __str__(self) -> str:
        named = (
            ("computing", self.compute),
            ("with copies", self.with_copies),
            ("end to end", self.end_to_end),
            ("one image repeated", self.pure),
        )
        return ", ".join(f"{name} {rate:.3f}" for name, rate in named if rate is not None)


def rates(timing: PassTiming) -> Rates:
    """
    Compute every definition of throughput that a pass has the samples of.

    Parameters
    ----------
    timing : PassTiming
        Of one pass; further ones do not count.
    """
    images, seconds = timing.batch * len(timing.calls), sum(call.seconds for call in timing.calls)
    copies = [call.copies for call in timing.calls if call.copies is not None]
    copied = seconds + sum(copies) if len(copies) == len(timing.calls) else None
    repeated = timing.repeats.repeated if timing.repeats else ()
    return Rates(
        compute=None if timing.includes_copies else _rate(images, seconds),
        with_copies=_rate(images, seconds if timing.includes_copies else copied),
        end_to_end=_rate(images, timing.pass_seconds),
        pure=_rate(timing.batch * len(repeated), sum(repeated)),
    )


def _rate(images: int, seconds: float | None) -> float | None:
    return images / seconds if seconds else None
