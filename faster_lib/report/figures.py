"""Figures of accuracy against cost, number of clips or time: one style, panels for reported and for measured points."""

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from faster_lib.flops import video_gmacs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Schedule
from faster_lib.report.claims import Side
from faster_lib.report.tables import Table
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair

_COLOURS = sns.color_palette("colorblind")
# One look for each series in all figures: told apart by colour, by marker and, in print, by the line.
STYLES: Mapping[str, tuple[str, tuple, str]] = {
    "FAST-GRU": ("o", _COLOURS[0], "-"),
    "FAST-GRU, started anew": ("D", _COLOURS[7], ":"),
    "average of the same mix": ("s", _COLOURS[1], "--"),
    "average, all cheap": ("v", _COLOURS[2], ":"),
    "average, all expensive": ("^", _COLOURS[3], "-."),
    "GRU": ("D", _COLOURS[4], "--"),
    "LSTM": ("P", _COLOURS[5], "-."),
    "Concat": ("X", _COLOURS[7], ":"),
    "Learned mean": ("d", (0.15, 0.15, 0.15), "--"),
    "R2D-26": ("v", _COLOURS[2], ":"),
    "R(2+1)D-50": ("^", _COLOURS[3], "-."),
    "R3D-50": ("h", _COLOURS[9], "-"),
    **{f"L = {L}": (marker, _COLOURS[i], "-") for i, (L, marker) in enumerate(zip((8, 16, 32), "os^", strict=True))},
    **{f"L = {L}, averaging": ("", _COLOURS[i], ":") for i, L in enumerate((8, 16, 32))},
    "pre-trained on ImageNet": ("s", _COLOURS[1], ""),
    "trained from scratch": ("o", _COLOURS[0], ""),
    "FASTER": ("*", _COLOURS[3], ""),
    "FASTER, cost counted": ("o", "black", ""),
    "best so far as cost grows": ("", (0.5, 0.5, 0.5), "-"),
    "fitted line": ("", (0.5, 0.5, 0.5), "--"),
}
_OTHERS = (("o", _COLOURS[7], ""), ("*", _COLOURS[8], ""), ("d", _COLOURS[6], ""))
VERDICTS: Mapping[str, Mapping] = {
    "holds": {"fmt": "o", "color": _COLOURS[0]},
    "does not hold": {"fmt": "X", "color": _COLOURS[3]},
    "undecided": {"fmt": "D", "color": (0.45, 0.45, 0.45), "markerfacecolor": "white"},
}
LEGEND_BELOW = {"ncols": 2, "loc": "upper center", "bbox_to_anchor": (0.5, -0.19)}  # where it leaves all points free


@dataclass(frozen=True)
class Series:
    """Points of one kind in a panel."""

    name: str  # in the legend; a name in STYLES fixes the look
    x: Sequence[float]
    y: Sequence[float]  # in the order in which a line joins the points
    spread: Sequence[float] = ()  # half the length of each point's error bar, in y's unit
    labels: Sequence[str] = ()  # written beside the points
    is_joined: bool = True
    label_offset: tuple[float, float] = (5, 6)  # from its point, in points of the page
    is_hollow: bool = False  # only the marker's rim is drawn, larger, so that it can lie around another point


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn in it; without any point it says that the paper has no such cells."""

    title: str  # says whether the points are reported, counted or measured
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    is_log: bool = True  # of the x axis
    ticks: Sequence[float] = ()  # on the x axis, where it is a count such as N
    is_legend_below: bool = False
    margin: float = 0.13  # room around the points for their labels, as a share of their range

    def __call__(self, ax: Axes) -> None:
        ax.set(title=self.title, xlabel=self.xlabel, ylabel=self.ylabel)
        if not any(len(series.x) for series in self.series):
            ax.text(0.5, 0.5, "the paper has no such cells", transform=ax.transAxes, ha="center")
            ax.set(xticks=[], yticks=[])
            return
        spare = iter(_OTHERS)
        for series in self.series:
            _draw_points(series, *(STYLES.get(series.name) or next(spare)), ax)
        ax.margins(self.margin)
        if self.is_log:  # plain numbers at the ticks asked for or else at 1, 2 and 5 of each decade
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(self.ticks) if self.ticks else LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        elif self.ticks:
            ax.set_xticks(self.ticks)
        for series in self.series:
            _write_labels(series, ax)
        if len(self.series) > 1:
            ax.legend(fontsize=9, **(LEGEND_BELOW if self.is_legend_below else {}))


def draw_panels(panels: Sequence[Callable[[Axes], None]], *, title: str, caption: str) -> Figure:
    """Let panels, or functions of axes, draw side by side, each on its own scales, with the caption under them."""
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        form = {"figsize": (5.8 * len(panels), 5.0), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(1, len(panels), **form)
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize=9, color="0.3")
    for panel, ax in zip(panels, axes[0], strict=True):
        panel(ax)
    return figure


def draw_claims(verdicts: Table) -> Figure:
    """Draw each claim's difference with the interval that its verdict uses, and the mark that it has to pass."""
    number = len(verdicts.frame)
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure, ax = plt.subplots(figsize=(9, 1.7 + 0.6 * number), layout="constrained")
    for y, claim in enumerate(verdicts.frame.itertuples()):
        kind = claim.verdict if claim.verdict in VERDICTS else "undecided"
        ax.errorbar(claim.difference, y, xerr=claim.uncertainty, label=kind, capsize=4, markersize=8, **VERDICTS[kind])
        ax.vlines(-claim.margin, y - 0.35, y + 0.35, color="black", linewidth=2, label="to be passed")
    ax.set_yticks(range(number), [textwrap.fill(each, 48) for each in verdicts.frame.index])
    ax.set(ylim=(number - 0.4, -0.6), xlabel="difference and 95 % interval, in the table's unit")
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=10, ncols=4, loc="outside upper right")
    return figure


def _draw_points(series: Series, marker: str, colour: tuple, line: str, ax: Axes) -> None:
    look = {"marker": marker, "color": colour, "linestyle": line if series.is_joined else "", "capsize": 3}
    look["markersize"] = 13 if series.is_hollow else 12 if marker == "*" else 7
    look["markerfacecolor"] = "none" if series.is_hollow else colour
    ax.errorbar(series.x, series.y, yerr=list(series.spread) or None, label=series.name, **look)


def _write_labels(series: Series, ax: Axes) -> None:
    """Write each label beside its point, lifted where it would lie on that of a point close below."""
    to_points = ax.transData.transform(np.column_stack([series.x, series.y])) * 72 / ax.figure.dpi
    written: list[tuple[float, float]] = []
    for i in np.argsort(to_points[: len(series.labels), 1], kind="stable"):
        x, y = to_points[i]
        lift = max([0.0, *(below + 12 - y for beside, below in written if abs(beside - x) < 30)])
        written.append((x, y + lift))
        offset = (series.label_offset[0], series.label_offset[1] + lift)
        ax.annotate(series.labels[i], (series.x[i], series.y[i]), textcoords="offset points", xytext=offset, fontsize=9)


def video_mflops(pair: FeaturePair, aggregator: str | None, schedule: Schedule) -> float:
    """Count a video's cost with the networks of the profile at hand, in 1e6 multiply-accumulates."""
    expensive, profile = pair.expensive.network, pair.profile
    built = aggregator and build_aggregator(aggregator, expensive.channels, profile.networks.reduction)
    parts = {"expensive": expensive, "cheap": pair.cheap.network, "aggregator": built, "schedule": schedule}
    return round(1000 * video_gmacs(**parts, L=pair.expensive.clip_frames, size_px=profile.data.crop_px), 2)


def measured_series(
    name: str, pair: FeaturePair, cells: Sequence[Cell], percents: Mapping[Cell, Sequence[float]], labels: Sequence = ()
) -> Series:
    """Turn measured cells into a series: cost in MFLOPs against the mean of video@1, with the spread over runs."""
    accuracies, costs = [percents[cell] for cell in cells], [video_mflops(pair, *cell) for cell in cells]
    return Series(name, costs, [mean(each) for each in accuracies], [spread_of(each) for each in accuracies], labels)


def spread_of(numbers: Sequence[float]) -> float:
    """Give the standard deviation over runs; 0 for a single value."""
    return stdev(numbers) if len(numbers) > 1 else 0.0


def measured_panel(pair: FeaturePair, series: Sequence[Series]) -> Panel:
    """Make the panel of accuracy against cost for what is measured."""
    return Panel(measured_title(pair), "MFLOPs per video, counted for these networks", "video@1 (%)", series)


def measured_title(pair: FeaturePair) -> str:
    """Say on which videos and in which profile a pair is measured."""
    return f"measured: {'real' if pair.profile.scene is None else 'generated'} videos, profile {pair.profile.name}"


def caption_of(pair: FeaturePair, sides: Collection[Side]) -> str:
    """Say what is reported, what is measured, on how many videos and with how many trainings and seeds."""
    marks = [each for side in sides for each in side.marks.values()]  # (seeds, videos) each
    trainings, seeds, videos = max(len(side.marks) for side in sides), max(map(len, marks)), marks[0].shape[1]
    ours = f"ours, {videos} {measured_title(pair).removeprefix('measured: ')}"
    runs = f"trainings of the clip networks ({trainings}) and seeds of stage 2 ({seeds})"
    bars = f"Bars are ± 1 standard deviation over {runs}; intervals stand with the verdicts."
    scales = "The two panels have scales of their own: their accuracies cannot be compared."
    return f"Left: the paper's accuracies on Kinetics-400. Right: {ours}.\n{bars}\n{scales}"
