"""Table 4: how many clips may be cheap."""

from collections.abc import Mapping, Sequence

import pandas as pd

from faster_lib import paper
from faster_lib.flops import video_gmacs
from faster_lib.models.aggregators import AGGREGATORS
from faster_lib.models.faster import Schedule
from faster_lib.paths import FIGURES
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, Table, command, judge, load, printed_cell, ratio_name
from faster_lib.studies.aggregation import NAMES
from faster_lib.studies.points import (
    Results,
    caption_of,
    measured_panel,
    measured_series,
    rows_of_real_videos,
    video1,
    video_mflops,
)
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair


def count_ratios(schedules: Mapping[int, Schedule], clip_frames: int) -> list[Row]:
    """Count Table 4's column for one L with the networks of the paper's size, beside what it prints.

    `rounded` is the count under the table's own rule: rounded per clip to one decimal, times N.
    """
    rows = []
    for x, schedule in schedules.items():
        size = {"expensive": "r2plus1d_50", "cheap": "r2d_26", "aggregator": "fast_gru", "L": clip_frames}
        counted = video_gmacs(**size, schedule=schedule)
        printed = _table_4(x, schedule, clip_frames, "gmacs")
        rounded = paper.printed_gmacs(counted, len(schedule)) if printed else None
        rows.append(Row("GFLOPs", ratio_name(x), printed, round(counted, 2), rounded))
    return rows


def cells_of_ratios(schedules: Mapping[int, Schedule], others: Sequence[str] = ()) -> list[Cell]:
    """List what the ratio study measures: FAST-GRU and averaging over each mix, and averaging all cheap clips.

    Args:
        others: aggregators that are tried on each mix beside these two.

    Raises: ValueError for an aggregator that there is not.
    """
    if isinstance(others, str) or set(others) - set(AGGREGATORS):
        raise ValueError(f"others is {others!r}; it must be a list of some of {', '.join(AGGREGATORS)}")
    num_clips = len(next(iter(schedules.values())))
    baselines = [Schedule(letter * num_clips) for letter in "EC"]
    mixes = [(name, schedule) for schedule in schedules.values() for name in ("avg_pool", "fast_gru", *others)]
    return list(dict.fromkeys([*mixes, *(("avg_pool", schedule) for schedule in baselines)]))


def ratio_rows(pair: FeaturePair, schedules: Mapping[int, Schedule], measured: Results) -> list[Row]:
    """Give the measured rows of Table 4 for one L, and the small networks' costs; averaging pays no aggregator."""
    all_cheap, clip_frames = Schedule("C" * pair.num_clips), pair.expensive.clip_frames
    others = [name for name in NAMES if name in {name for name, _ in measured} - {"fast_gru", "avg_pool"}]
    rows, cells = [], []
    for aggregator in ("fast_gru", "avg_pool", *others):
        quantity = f"video@1 (%), {'averaging' if aggregator == 'avg_pool' else NAMES[aggregator]}"
        for x, schedule in schedules.items():
            printed = _table_4(x, schedule, clip_frames, "accuracy") if aggregator == "fast_gru" else None
            rows.append(Row(quantity, ratio_name(x), printed, measured=video1(measured[aggregator, schedule])))
            cells.append((aggregator, schedule))
        if aggregator == "avg_pool":
            rows.append(Row(quantity, "All C", measured=video1(measured["avg_pool", all_cheap])))
            cells.append(("avg_pool", all_cheap))
    costs = [(ratio_name(x), video_mflops(pair, "fast_gru", schedule)) for x, schedule in schedules.items()]
    costs.append(("All C", video_mflops(pair, None, all_cheap)))
    rows += rows_of_real_videos(pair, rows, cells, measured)
    return [*rows, *(Row("MFLOPs, small", name, counted=cost) for name, cost in costs)]


def draw_ratios(pair: FeaturePair, schedules: Mapping[int, Schedule], measured: Results) -> Figure:
    """Draw accuracy against cost for one L: the paper's points beside ours, each on its own scales."""
    clip_frames = pair.expensive.clip_frames
    costs = count_ratios(schedules, clip_frames)
    cells = [_table_4(x, schedule, clip_frames, "accuracy") for x, schedule in schedules.items()]
    kept = [(row, cell) for row, cell in zip(costs, cells, strict=True) if cell is not None and row.reported]
    reported = Series(
        "FAST-GRU", [r.reported.value for r, _ in kept], [c.value for _, c in kept], (), [r.name for r, _ in kept]
    )
    names = [ratio_name(x) for x in schedules]
    all_cheap = Schedule("C" * pair.num_clips)
    series = [
        measured_series("average of the same mix", pair, [("avg_pool", s) for s in schedules.values()], measured),
        measured_series("average, all cheap", pair, [("avg_pool", all_cheap)], measured),
        measured_series("FAST-GRU", pair, [("fast_gru", s) for s in schedules.values()], measured, names),
    ]
    panels = [
        Panel("reported: Kinetics-400, Table 4", "GFLOPs per video, as printed", "video@1 (%)", [reported]),
        measured_panel(pair, series),
    ]
    title = f"How many clips may be cheap?  L = {clip_frames}, N = {pair.num_clips}"
    return draw_panels(panels, title=title, caption=caption_of(pair, measured))


def judge_ratios(schedules: Mapping[int, Schedule], measured: Results, clip_frames: int) -> list[Claim]:
    """Test what the paper says of Table 4, for one L."""
    mixes = [schedule for x, schedule in schedules.items() if x]
    claims = []
    if mixes:
        sides = ([measured[name, schedule] for schedule in mixes] for name in ("fast_gru", "avg_pool"))
        claims.append(
            judge(f"FAST-GRU beats averaging the same mix of clips, L = {clip_frames}", "Tables 3, 4", *sides)
        )
    if 1 in schedules:
        baseline = measured["avg_pool", Schedule("E" * len(schedules[1]))]
        statement = f"1:1 matches all-expensive averaging at 57 % of its cost, L = {clip_frames}"
        claims.append(judge(statement, "Table 4", [measured["fast_gru", schedules[1]]], [baseline], margin=1.0))
    if 0 in schedules:
        baseline = measured["avg_pool", schedules[0]]
        statement = f"FAST-GRU beats averaging over all-expensive clips too, L = {clip_frames}"
        claims.append(judge(statement, "Tables 2, 4", [measured["fast_gru", schedules[0]]], [baseline]))
    return claims


def join_ratio_studies(profile: str) -> Table:
    """Join what has been run of Table 4 in one profile, one column for each L; `±` is over seeds."""
    columns: dict[tuple[str, str], dict[str, str]] = {}
    stems = {
        int(path.stem.rsplit("L", 1)[1]): path.stem
        for path in FIGURES.glob(f"04_ratio_study_{profile}_L*.csv")
        if path.stem.rsplit("L", 1)[1].isdecimal()
    }
    for clip_frames, stem in sorted(stems.items()):
        for (quantity, of), cell in load(stem)[0].iterrows():
            columns.setdefault((quantity, f"L = {clip_frames}"), {})[of] = _joined(cell)
    quantities = list(dict.fromkeys(quantity for quantity, _ in columns))
    rows = list(dict.fromkeys(of for column in columns.values() for of in column))
    ordered = sorted(columns, key=lambda key: quantities.index(key[0]))
    frame = pd.DataFrame({key: pd.Series(columns[key], dtype=object).reindex(rows, fill_value="") for key in ordered})
    caption = f"Table 4, counted and measured, profile {profile}, for each L that has been run"
    return Table(frame, caption=caption, command=command("04_ratio_study", profile=profile, L=8))


def _table_4(x: int, schedule: Schedule, clip_frames: int, column: str) -> paper.Reported | None:
    """Find Table 4's cell, if the study is one that the table has."""
    if len(schedule) * clip_frames != paper.VIDEO_FRAMES:
        return None
    return printed_cell(4, ratio_name(x), f"L={clip_frames} {column}")


def _joined(cell: pd.Series) -> str:
    if pd.isna(cell["measured"]):
        return f"{cell['counted']:g}"
    return f"{cell['measured']:.1f}" if pd.isna(cell["±"]) else f"{cell['measured']:.1f} ± {cell['±']:.1f}"
