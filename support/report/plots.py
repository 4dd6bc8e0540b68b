"""Plots as SVG that takes its colours from the page, so that one drawing serves light, dark and paper."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from support.report.curves import RECALLS, PrecisionCurves
from support.report.text import shortened
from support.spec import Baseline
from support.timing import ThroughputEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ap_by_batch", "ap_by_group", "precision_recall", "stage_ladder", "throughput"]

#: Colours no plot uses otherwise, and what the page puts in their place.
INK, MUTED, GRID, CANDIDATE, REFERENCE, LIMIT = (f"#0{place}0{place}0{place}" for place in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    CANDIDATE: "var(--candidate)",
    REFERENCE: "var(--reference)",
    LIMIT: "var(--limit)",
}
#: Inches. Narrow, so that the letters are still read on a phone.
WIDTH, HEIGHT = 4.6, 3.0
LABEL_LENGTH = 24
#: Names and values.
Groups = Sequence[tuple[str, float]]
DASHES: Sequence[Any] = ("--", ":", "-.", (0, (1, 2, 5, 2)))
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: found by a search, read aloud, and small
    "text.parse_math": False,  # a dollar in a class name is a dollar
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def stage_ladder(stages: Mapping[str, float], *, name: str) -> str:
    """
    Draw AP from stage to stage.

    Parameters
    ----------
    stages : mapping of str to float
        AP in points by stage, in their order.
    name : str
        Makes the ids of this drawing differ from those of others on the page.
    """

    def draw(axes: Axes) -> None:
        values = list(stages.values())
        axes.plot(values, range(len(values)), color=CANDIDATE, marker="o")
        for place, value in enumerate(values):
            axes.annotate(f"{value:.2f}", (value, place), (6, 4), textcoords="offset points")
        axes.set_yticks(range(len(stages)), [shortened(stage, LABEL_LENGTH) for stage in stages])
        axes.set_xlabel("AP in points")
        axes.set_ylim(len(values) - 0.5, -0.5)
        # A ladder without a loss must look like one, and not like the noise of its last digit.
        middle = (min(values) + max(values)) / 2
        half = max(1.0, 0.7 * (max(values) - min(values)))
        axes.set_xlim(middle - half, middle + half)

    return _drawn(draw, name, height=0.9 + 0.4 * len(stages))


def precision_recall(candidate: PrecisionCurves, reference: PrecisionCurves | None, *, name: str) -> str:
    """Draw precision over recall at three overlaps: the candidate as lines, the reference as bands behind them."""

    def draw(axes: Axes) -> None:
        for curve in (reference.every, reference.at_50, reference.at_75) if reference else ():
            axes.plot(RECALLS, curve, color=REFERENCE, linewidth=5, alpha=0.35)
        for curve, style, label in (
            (candidate.every, "-", "mean over IoU 0.50 to 0.95"),
            (candidate.at_50, "--", "IoU 0.50"),
            (candidate.at_75, ":", "IoU 0.75"),
        ):
            axes.plot(RECALLS, curve, color=CANDIDATE, linestyle=style, linewidth=1.4, label=label)
        if reference:
            axes.plot([], [], color=REFERENCE, linewidth=5, alpha=0.35, label="reference")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
        _legend_above(axes)

    return _drawn(draw, name)


def ap_by_batch(candidate: Mapping[int, float], lines: Mapping[str, float], *, name: str) -> str:
    """
    Draw AP at each batch size.

    Parameters
    ----------
    candidate : mapping of int to float
        AP in points by batch size.
    lines : mapping of str to float
        What it is to be seen beside: the AP of the reference, limits.
    name : str
        Prefix of the ids of this drawing.
    """

    def draw(axes: Axes) -> None:
        places = range(len(candidate))
        axes.plot(places, list(candidate.values()), color=CANDIDATE, marker="o", label="candidate")
        for (label, value), style in zip(lines.items(), DASHES, strict=False):
            colour = REFERENCE if label == "reference" else LIMIT
            axes.axhline(value, color=colour, linestyle=style, label=f"{label} {value:.2f}")
        axes.set_xticks(places, [str(batch) for batch in candidate])
        axes.set(xlabel="batch size", ylabel="AP in points")
        every = [*candidate.values(), *lines.values()]
        room = max(0.5, 0.04 * (max(every) - min(every)))  # for the markers
        axes.set_ylim(min(every) - room, max(every) + room)
        _legend_above(axes)

    return _drawn(draw, name)


def ap_by_group(candidate: Groups, reference: Groups | None, *, name: str) -> str:
    """
    Draw AP of groups of objects, classes or sizes, beside that of the reference.

    Parameters
    ----------
    candidate : sequence of (str, float)
        Name of each group and its AP in points, top to bottom; two groups may share a name.
    reference : sequence of (str, float), optional
        The same groups.
    name : str
        Prefix of the ids of this drawing.
    """

    def draw(axes: Axes) -> None:
        places, values = range(len(candidate)), [value for _, value in candidate]
        if reference is not None:
            before = [value for _, value in reference]
            axes.hlines(places, before, values, color=MUTED, linewidth=1)
            axes.plot(before, places, "D", color=REFERENCE, markersize=8, fillstyle="none", label="reference")
        axes.plot(values, places, "o", color=CANDIDATE, markersize=5, label="candidate")
        axes.set_yticks(places, [shortened(group, LABEL_LENGTH) for group, _ in candidate])
        axes.set(xlabel="AP in points", xlim=(0, 100), ylim=(len(values) - 0.5, -0.5))
        _legend_above(axes)

    return _drawn(draw, name, height=1.0 + 0.22 * len(candidate))


def throughput(estimates: Sequence[ThroughputEstimate], baselines: Sequence[Baseline], *, name: str) -> str:
    """
    Draw the measured throughput with its intervals, and other tables.

    Parameters
    ----------
    estimates : sequence of ThroughputEstimate
        By ascending batch size.
    baselines : sequence of Baseline
        Published tables, or what other hosts measured.
    name : str
        Prefix of the ids of this drawing.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    def draw(axes: Axes) -> None:
        batches = [item.batch for item in estimates]
        values = [item.images_per_second for item in estimates]
        below = [item.images_per_second - item.lower for item in estimates]
        # An interval without an upper end is drawn up to twice the value.
        above = [min(item.upper, 2 * item.images_per_second) - item.images_per_second for item in estimates]
        axes.errorbar(
            range(len(batches)), values, yerr=[below, above], color=CANDIDATE, marker="o", capsize=3, label="measured"
        )
        for place, baseline in enumerate(baselines):
            figures = [baseline.images_per_second.get(batch, math.nan) for batch in batches]
            colour, style = (MUTED if baseline.includes_copies else REFERENCE), DASHES[place % len(DASHES)]
            label = shortened(baseline.chip, LABEL_LENGTH)
            axes.plot(range(len(batches)), figures, color=colour, linestyle=style, marker=".", label=label)
        axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set(xlabel="batch size", ylabel="images per second", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _legend_above(axes)

    return _drawn(draw, name, height=3.4)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, columnspacing=1.2)


def _drawn(draw: Callable[[Axes], None], name: str, *, height: float = HEIGHT) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg")
    return _inlined(stream.getvalue(), name)


def _inlined(svg: str, name: str) -> str:
    """Make a drawing part of a page: ids of its own, colours of the page, and nothing that acts beyond it."""
    root = ET.fromstring(svg)  # noqa: S314 - written by matplotlib a moment ago
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.attrib[key.removeprefix(XLINK)] = _own(value, key, name)
        # The style sheet would reach the whole page; the page has one for plots.
        for child in [child for child in element if child.tag in (f"{SVG}metadata", f"{SVG}style")]:
            element.remove(child)
    kept = {"viewBox": root.attrib["viewBox"], "class": "plot", "aria-hidden": "true"}
    root.attrib.clear()
    root.attrib.update(kept)
    return ET.tostring(root, encoding="unicode")


def _own(value: str, key: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, variable)
    return value.replace("url(#", f"url(#{name}-") if key != f"{XLINK}href" else value.replace("#", f"#{name}-", 1)
