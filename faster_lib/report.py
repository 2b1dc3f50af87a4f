"""Tables of reported, counted and measured numbers side by side, and the figures drawn from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from faster_lib import paper
from faster_lib.aggregators import build_aggregator
from faster_lib.backbones import Backbone, check_clip_frames
from faster_lib.data.sampling import num_clips_covering
from faster_lib.faster import Schedule
from faster_lib.flops import video_gmacs
from faster_lib.paths import FIGURES
from faster_lib.profiles import Profile
from faster_lib.store import circumstances, write_whole

# One style for all figures: colour-blind safe, and told apart in print by their markers.
SERIES = {
    "FAST-GRU": ("o", sns.color_palette("colorblind")[0]),
    "average of the same mix": ("s", sns.color_palette("colorblind")[1]),
    "average, all cheap": ("v", sns.color_palette("colorblind")[2]),
}
WHY_DIFFERENT = {
    (16, 0): "differs: 980.2 / 16 has no one-decimal value, so the printed total breaks the table's own rounding",
}


def check_ratios(ratios: Sequence[int], clip_frames: int, profile: Profile) -> dict[int, Schedule]:
    """Turn the ratios 1:x of a study into schedules; an empty list asks for those that Table 4 has at this L.

    Raises: ValueError if L does not fit the profile, `ratios` is no list of whole numbers, or one does not divide N.
    """
    check_clip_frames(clip_frames)
    num_clips = num_clips_covering(profile.data.video_frames, clip_frames)
    if isinstance(ratios, str) or not isinstance(ratios, Sequence):
        raise ValueError(
            f"ratios is {ratios!r}; it must be a list, such as [0, 1, 3] (papermill -y 'ratios: [0, 1, 3]')"
        )
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"ratios is {list(ratios)}; each ratio may stand there once")
    printed = paper.TABLE_4_RATIOS.get(clip_frames, paper.TABLE_4_RATIOS[8])
    wanted = ratios or [x for x in printed if num_clips % (1 + x) == 0]
    return {x: Schedule.ratio(num_clips, x) for x in wanted}


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Raise ValueError unless `seeds` is a list of at least one whole number, each different."""
    if isinstance(seeds, str) or not isinstance(seeds, Sequence) or not seeds:
        raise ValueError(f"seeds is {seeds!r}; it must be a list of whole numbers, such as [0, 1, 2]")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(f"seeds is {list(seeds)}; each must be a whole number of at least 0")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {list(seeds)}; a seed that stands there twice would count twice")
    return list(seeds)


def ratio_name(cheap_per_expensive: int) -> str:
    """Name a ratio as Table 4 does."""
    return f"1:{cheap_per_expensive}" if cheap_per_expensive else "All E"


def count_ratios(schedules: Mapping[int, Schedule], clip_frames: int) -> pd.DataFrame:
    """Count Table 4's column for one L with the networks of the paper's size, beside what it prints.

    `rounded` is the count under the table's own rule: rounded per clip to one decimal, times N.
    """
    rows = {}
    for x, schedule in schedules.items():
        counted = video_gmacs(
            expensive="r2plus1d_50", cheap="r2d_26", aggregator="fast_gru", schedule=schedule, L=clip_frames
        )
        rounded = paper.printed_gmacs(counted, len(schedule))
        printed = _printed(x, clip_frames, len(schedule), "gmacs")
        rows[ratio_name(x)] = {
            "schedule": _short(schedule),
            "reported GFLOPs": printed,
            "counted GFLOPs": round(counted, 2),
            "counted, rounded": rounded,
            "status": _count_status(x, clip_frames, printed, rounded),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("#E:#C")


def join_ratio_study(
    profile: Profile,
    schedules: Mapping[int, Schedule],
    clip_frames: int,
    measured: Mapping[tuple[str, Schedule], Sequence[Mapping[str, float]]],
    *,
    expensive: Backbone,
    cheap: Backbone,
    size_px: int,
) -> pd.DataFrame:
    """Put Table 4's column for one L together: reported, counted at both sizes, and measured.

    Averaging has no aggregator to pay for, and nothing random to spread. Accuracies are percentages.
    """
    counted = count_ratios(schedules, clip_frames)
    aggregator = build_aggregator("fast_gru", expensive.channels, profile.networks.reduction)
    rows = {}
    for x, schedule in schedules.items():
        video1 = pd.Series([result["video@1"] for result in measured["fast_gru", schedule]])
        small = {"expensive": expensive, "cheap": cheap, "schedule": schedule, "L": clip_frames, "size_px": size_px}
        rows[ratio_name(x)] = {
            ("reported", "accuracy"): _printed(x, clip_frames, len(schedule), "accuracy"),
            ("reported", "GFLOPs"): counted.at[ratio_name(x), "reported GFLOPs"],
            ("counted", "GFLOPs, paper size"): counted.at[ratio_name(x), "counted, rounded"],
            ("counted", "GFLOPs, this profile"): round(video_gmacs(aggregator=aggregator, **small), 4),
            ("counted", "GFLOPs, averaging"): round(video_gmacs(aggregator=None, **small), 4),
            ("measured", "FAST-GRU"): round(video1.mean(), 1),
            ("measured", "± over seeds"): round(video1.std(ddof=1), 1) if len(video1) > 1 else None,
            ("measured", "seeds"): len(video1),
            ("measured", "averaging"): round(measured["avg_pool", schedule][0]["video@1"], 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("#E:#C")


def draw_ratio_study(
    table: pd.DataFrame, all_cheap: tuple[float, float], *, clip_frames: int, num_clips: int, profile: str
) -> Figure:
    """Draw accuracy against cost: the paper's points in one panel, ours in another, each on its own scales.

    Args:
        all_cheap: cost and accuracy of averaging the cheap network's clips alone, this profile's.
    """
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"How many clips may be cheap?  L = {clip_frames}, N = {num_clips}")
    reported = table["reported"].dropna()
    if reported.empty:
        left.text(0.5, 0.5, "Table 4 has no such cells", transform=left.transAxes, ha="center")
    else:
        _plot(left, "FAST-GRU", reported["GFLOPs"], reported["accuracy"], list(reported.index))
    left.set(title="reported: Kinetics-400, Table 4", xlabel="GFLOPs per video, as printed")
    measured = table["measured"]
    cost, cost_averaging = (1000 * table["counted"][f"GFLOPs, {name}"] for name in ("this profile", "averaging"))
    _plot(right, "average of the same mix", cost_averaging, measured["averaging"])
    _plot(right, "average, all cheap", [1000 * all_cheap[0]], [all_cheap[1]])
    _plot(right, "FAST-GRU", cost, measured["FAST-GRU"], list(table.index), spread=measured["± over seeds"])
    title = f"measured: generated videos, profile {profile}, {int(measured['seeds'].min())} seeds"
    right.set(title=title, xlabel="MFLOPs per video, counted for the small networks")
    for axes in (left, right):
        axes.set_xscale("log")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis(LogFormatter(minor_thresholds=(2, 0.8)))
        axes.set_ylabel("video accuracy (%)")
    right.legend(loc="lower right")
    return figure


def save(
    figure: Figure, table: pd.DataFrame, stem: str, provenance: Mapping[str, Any], *, folder: Path = FIGURES
) -> None:
    """Write `<stem>.png`, `.svg` and `.csv`; the CSV begins with its provenance, in lines that start with #."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": stem}):
        figure.savefig(folder / f"{stem}.png", dpi=150, metadata={"Software": None})
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    about = {**provenance, **{k: v for k, v in circumstances().items() if k != "finished"}}
    lines = [f"# {key}: {json.dumps(value)}\n" for key, value in about.items()]
    flat = table.set_axis([" ".join(name) if isinstance(name, tuple) else name for name in table.columns], axis=1)
    write_whole(folder / f"{stem}.csv", ("".join(lines) + flat.to_csv()).encode())


def _plot(axes, series: str, x, y, names: Sequence[str] = (), *, spread=None) -> None:
    marker, colour = SERIES[series]
    error = None if spread is None else pd.to_numeric(spread).fillna(0)
    axes.errorbar(x, y, yerr=error, marker=marker, color=colour, label=series, capsize=3, markersize=7)
    for name, a, b in zip(names, x, y, strict=False):
        axes.annotate(name, (a, b), textcoords="offset points", xytext=(-4, 9), ha="right", fontsize=10)
    axes.margins(0.12)


def _short(schedule: Schedule) -> str:
    return str(schedule) if len(schedule) <= 16 else f"{schedule[:13]}..."


def _printed(x: int, clip_frames: int, num_clips: int, column: str) -> float | None:
    """Find Table 4's cell, if the study is one that the table has."""
    if x not in paper.TABLE_4_RATIOS.get(clip_frames, ()) or num_clips * clip_frames != paper.VIDEO_FRAMES:
        return None
    return paper.reported(4, ratio_name(x), f"L={clip_frames} {column}").value


def _count_status(x: int, clip_frames: int, printed: float | None, rounded: float) -> str:
    if printed is None:
        return "not in Table 4"
    if printed == rounded:
        return "exact"
    return WHY_DIFFERENT.get((clip_frames, x), "differs")
