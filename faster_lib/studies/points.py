"""What the studies share: measured cells as points of accuracy and cost, with their panel and caption."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from faster_lib.flops import video_gmacs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Schedule
from faster_lib.report.figures import Panel, Series
from faster_lib.report.tables import Row
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair

Results = Mapping[Cell, Sequence[Mapping[str, Any]]]


def video_mflops(pair: FeaturePair, aggregator: str | None, schedule: Schedule) -> float:
    """Count a video's cost with the networks of the profile at hand, in 1e6 multiply-accumulates."""
    networks = {"expensive": pair.expensive.network, "cheap": pair.cheap.network}
    if aggregator not in (None, "avg_pool"):
        aggregator = build_aggregator(aggregator, pair.expensive.network.channels, pair.profile.networks.reduction)
    size = {"L": pair.expensive.clip_frames, "size_px": pair.profile.data.crop_px}
    return round(1000 * video_gmacs(**networks, aggregator=aggregator, schedule=schedule, **size), 2)


def video1(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Give video@1 in percent, one for each seed."""
    return [result["video@1"] for result in results]


def rows_of_real_videos(pair: FeaturePair, rows: Sequence[Row], cells: Sequence[Cell], measured: Results) -> list[Row]:
    """Give macro-F1 for each row of video@1 and its cell, and what the rows are to be judged by.

    That is: what always saying the commonest class would reach, how many of the listed videos could be used, and, where
    that is not all of them, video@1 over all that are listed.

    None for generated videos, whose classes are equally frequent and which can all be read.
    """
    if pair.profile.scene is not None:
        return []
    scores = [
        Row(row.quantity.replace("video@1", "macro-F1"), row.name, measured=[run["macro_f1"] for run in measured[cell]])
        for row, cell in zip(rows, cells, strict=True)
    ]
    first = measured[cells[0]][0]
    scores.append(Row("video@1 (%)", "always the commonest class", counted=round(first["commonest"], 2)))
    if first["used"] < first["expected"]:
        of_expected = ([run["video@1 of expected"] for run in measured[cell]] for cell in cells)
        scores += [
            Row(row.quantity.replace("(%)", "(% of expected)"), row.name, measured=values)
            for row, values in zip(rows, of_expected, strict=True)
        ]
    return scores + [Row("videos", key, counted=first[key]) for key in ("expected", "used", "missing", "corrupt")]


def seconds_of(pair: FeaturePair, measured: Results) -> float:
    """Add up what the training of the pair and of all cells took, whenever that was."""
    return (
        pair.expensive.seconds + pair.cheap.seconds + sum(run["seconds"] for runs in measured.values() for run in runs)
    )


def measured_series(
    name: str, pair: FeaturePair, cells: Sequence[Cell], measured: Results, labels: Sequence[str] = ()
) -> Series:
    """Turn measured cells into a series: cost in MFLOPs against the mean of video@1, with the spread over seeds."""
    costs = [video_mflops(pair, *cell) for cell in cells]
    values = [mean(video1(measured[cell])) for cell in cells]
    return Series(name, costs, values, [spread_of(measured[cell]) for cell in cells], labels)


def measured_panel(pair: FeaturePair, series: Sequence[Series]) -> Panel:
    """Make the panel of measured points."""
    return Panel(scale_of(pair), "MFLOPs per video, counted for these networks", "video@1 (%)", series)


def scale_of(pair: FeaturePair) -> str:
    """Say on which videos and in which profile a pair is measured."""
    data = "generated videos" if pair.profile.scene is not None else "real videos"
    return f"measured: {data}, profile {pair.profile.name}"


def caption_of(pair: FeaturePair, measured: Results) -> str:
    """Say what is reported, what is measured, on how many videos and with how many seeds."""
    videos = max(run["videos"] for runs in measured.values() for run in runs)
    seeds = max(len(runs) for runs in measured.values())
    ours = f"ours, {videos} {scale_of(pair).removeprefix('measured: ')}"
    return (
        f"Left: the paper's accuracies on Kinetics-400. Right: {ours}; bars are ± 1 standard deviation over {seeds} "
        "seed(s) of stage 2.\nThe two panels have scales of their own: their accuracies cannot be compared."
    )


def spread_of(results: Sequence[Mapping[str, Any]]) -> float:
    """Give the standard deviation of video@1 over seeds; 0 for a single value."""
    return stdev(video1(results)) if len(results) > 1 else 0.0
