"""What may be wrong with a throughput however well it compares: caches, clocks, throttling, drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from support.errors import NoTimingError
from support.intervals import student_t
from support.load import load_findings, throttled
from support.rates import rates
from support.spec import AcceptanceSpec, Throughput
from support.steadiness import WarmUp, drift
from support.timing import PassTiming
from support.verdict import Measurement

__all__ = ["fresh_inputs", "scrutinised"]

#: Relative difference that the order of a summation explains, with much room.
ROUNDING = 1e-6


def fresh_inputs(timing: PassTiming, rules: Throughput) -> Measurement:
    """
    Compare calls on an image that was just computed with calls on new ones.

    A runtime that keeps the outputs of an input answers the repeated image many times as fast. ``speedup`` is what is
    certain of it: the ratio of the mean times, less what the noise of the pass explains (Student's t at the confidence
    of a look), and not more than the ratio to the fastest call on a new image. Other load can only slow calls down; so
    it never makes a repeated image look faster than the fastest of all others.

    Parameters
    ----------
    timing : PassTiming
        With `repeats`.
    rules : support.spec.Throughput
        How many calls there must be, and the confidence.

    Raises
    ------
    NoTimingError
        If nothing was repeated, or there are too few calls to know their noise.
    """
    repeats, calls = timing.repeats, [call.seconds for call in timing.calls]
    if repeats is None or not repeats.fresh or not repeats.repeated or len(calls) < max(2, rules.minimum_calls):
        raise NoTimingError(
            f"batch {timing.batch} on {timing.chip}: no image was repeated beside new ones",
            required=f"{rules.repeat_calls} calls on one image, and a timed pass",
        )
    fresh, repeated = np.array(repeats.fresh), float(np.mean(repeats.repeated))
    mean = float(fresh.mean()) / repeated
    noise = _noise([np.array(calls), fresh]) * math.sqrt(1 / len(fresh) + 1 / len(repeats.repeated))
    degrees = len(calls) + len(fresh) - 2
    # The first call has the input of the warm-up.
    fastest = min(*calls[1:], *repeats.fresh) / repeated
    certain = min(mean * math.exp(-student_t(rules.judged_confidence, degrees) * noise), fastest)
    finding = (
        f"one image repeated: {repeated * 1e3:.2f} ms a call over {len(repeats.repeated)} calls, new images "
        f"{float(fresh.mean()) * 1e3:.2f} ms over {len(fresh)}, the fastest of all {fastest * repeated * 1e3:.2f} ms"
    )
    return Measurement(
        {"speedup": certain},
        len(repeats.repeated),
        rules.repeat_calls,
        findings=(finding,),
        origin={"timer": timing.timer},
    )


def _noise(groups: Sequence[NDArray[np.float64]]) -> float:
    """Relative standard deviation within groups that need not have the same mean."""
    squares = sum(float(np.sum((group / group.mean() - 1) ** 2)) for group in groups)
    return math.sqrt(squares / (sum(map(len, groups)) - len(groups)))


def scrutinised(
    measurement: Measurement,
    timing: PassTiming,
    spec: AcceptanceSpec,
    *,
    figure: float,
    chip: str,
    outputs_agree: Callable[[], bool],
) -> Measurement:
    """
    Add to a compared throughput what else the samples show, and doubt it where they show too much.

    * A figure that is not batch size × calls / seconds of the samples is none of this device, whoever computed it.
    * A figure above `plausible` times the published one of the same chip is doubted, until new images were shown to
      take as long as a repeated one, and the outputs of the timed pass to be those of an independent one.
    * A repeated image that is certainly faster means that the runtime keeps outputs, and clocks that contradict each
      other mean that one of them is wrong; then no figure is believed, fast or slow.
    * Throttling can only slow a device down. A throttled pass that keeps its limit all the same is as good as any
      other, but one that does not proves nothing about the device at its own clocks: its interval has no upper end.
    * Drift is told and changes nothing: it widens the interval, whose blocks it moves apart.

    Parameters
    ----------
    measurement : Measurement
        Of a throughput clause.
    timing : PassTiming
        The passes it comes from.
    spec : AcceptanceSpec
        Published tables and rules.
    figure : float
        Images per second that were compared.
    chip : str
        Chip under test.
    outputs_agree : callable
        Whether the outputs of the timed pass are those of an independent pass; asked only if the figure is doubtful.
    """
    rules = spec.throughput
    speedup = _certain_speedup(timing, rules)
    limit = spec.clauses["throughput_fresh_inputs"].limits["speedup"].number
    doubts = [text for one in timing.passes for text in rates(one).contradictions(rules.clock_tolerance)]
    doubts += _otherwise_computed(figure, timing)
    if speedup is not None and speedup > limit:
        doubts.append(f"outputs are kept: one image repeated is at least {speedup:.2f} times as fast as new ones")
    beyond = _beyond_plausible(timing, spec, chip)
    if beyond:
        unproven = [
            *([] if speedup is not None and speedup <= limit else ["that new images take as long as a repeated one"]),
            *([] if outputs_agree() else ["that the outputs are those of an independent pass"]),
        ]
        doubts += [f"{beyond}, and it is not shown {' nor '.join(unproven)}"] if unproven else []
    slowed = any(throttled(one.load) for one in timing.passes)
    cleared = (f"{beyond}; new images and the outputs show it to be real",) if beyond and not doubts else ()
    return replace(
        measurement,
        findings=(*doubts, *measurement.findings, *cleared, *_findings(timing, rules)),
        optimistic=dict.fromkeys(measurement.values, math.inf) if slowed else measurement.optimistic,
        doubt="implausible" if doubts else "",
    )


def _otherwise_computed(figure: float, timing: PassTiming) -> Iterator[str]:
    seconds = [call.seconds for one in timing.passes for call in one.calls]
    follows = timing.batch * len(seconds) / sum(seconds)
    if not math.isclose(figure, follows, rel_tol=ROUNDING):
        yield f"{figure:.3f} images/s does not follow from the samples, which give {follows:.3f}"


def _certain_speedup(timing: PassTiming, rules: Throughput) -> float | None:
    try:
        return fresh_inputs(timing, rules).values["speedup"]
    except NoTimingError:
        return None


def _beyond_plausible(timing: PassTiming, spec: AcceptanceSpec, chip: str) -> str:
    rules = spec.throughput
    name = rules.same_chip.get(chip)
    figure = spec.baselines[name].images_per_second.get(timing.batch) if name else None
    if figure is None:
        return ""
    rate = timing.batch * len(timing.calls) / sum(call.seconds for call in timing.calls)
    if rate <= rules.plausible.number * figure:
        return ""
    return f"{rate:.3f} images/s is {rate / figure:.2f} times the published {figure:g} of a {chip}"


def _findings(timing: PassTiming, rules: Throughput) -> Iterator[str]:
    for number, one in enumerate(timing.passes, 1):
        where = f"pass {number}: " if timing.further else ""
        yield f"{where}images/s by definition: {rates(one)}"
        if len(one.warm_up) >= 2 * rules.warm_up_calls and not WarmUp(rules).steady(one.warm_up):
            yield f"{where}never steady: times still changed after {len(one.warm_up)} calls of warm-up"
        change = drift([call.seconds for call in one.calls], rules)
        if change:
            word = "slower" if change > 0 else "faster"
            yield f"{where}never steady: calls at the head were {abs(change):.1%} {word} than in the second half"
        yield from (f"{where}{text}" for text in load_findings(one.load))
