"""What each experiment of the paper compares: its cells, the rows of its table, its figure, and the claims it tests."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from faster_lib import paper
from faster_lib.aggregators import build_aggregator
from faster_lib.evaluation import Cell
from faster_lib.faster import Schedule
from faster_lib.features import FeaturePair
from faster_lib.figures import Panel, Series, draw_panels
from faster_lib.flops import step_macs, video_gmacs
from faster_lib.paths import FIGURES
from faster_lib.report import Claim, Row, Table, command, judge, load, printed_cell, ratio_name

Results = Mapping[Cell, Sequence[Mapping[str, Any]]]
NAMES = {"avg_pool": "Avg. pool", "concat": "Concat", "lstm": "LSTM", "gru": "GRU", "fast_gru": "FAST-GRU"}
PAPER_STEP = (1, 7, 7)  # l, h, w of a feature map at L = 8 and 224 x 224. Source: Table 1


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


def seconds_of(pair: FeaturePair, measured: Results) -> float:
    """Add up what the training of the pair and of all cells took, whenever that was."""
    return (
        pair.expensive.seconds + pair.cheap.seconds + sum(run["seconds"] for runs in measured.values() for run in runs)
    )


# Table 4: how many clips may be cheap.


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


def cells_of_ratios(schedules: Mapping[int, Schedule]) -> list[Cell]:
    """List what the ratio study measures: FAST-GRU and averaging over each mix, and averaging all cheap clips."""
    num_clips = len(next(iter(schedules.values())))
    baselines = [Schedule(letter * num_clips) for letter in "EC"]
    mixes = [(name, schedule) for schedule in schedules.values() for name in ("avg_pool", "fast_gru")]
    return list(dict.fromkeys([*mixes, *(("avg_pool", schedule) for schedule in baselines)]))


def ratio_rows(pair: FeaturePair, schedules: Mapping[int, Schedule], measured: Results) -> list[Row]:
    """Give the measured rows of Table 4 for one L, and the small networks' costs; averaging pays no aggregator."""
    clip_frames = pair.expensive.clip_frames
    accuracy, averaging, costs = [], [], []
    for x, schedule in schedules.items():
        name, printed = ratio_name(x), _table_4(x, schedule, clip_frames, "accuracy")
        accuracy.append(Row("video@1 (%), FAST-GRU", name, printed, measured=video1(measured["fast_gru", schedule])))
        averaging.append(Row("video@1 (%), averaging", name, measured=video1(measured["avg_pool", schedule])))
        costs.append(Row("MFLOPs, small", name, counted=video_mflops(pair, "fast_gru", schedule)))
    all_cheap = Schedule("C" * pair.num_clips)
    averaging.append(Row("video@1 (%), averaging", "All C", measured=video1(measured["avg_pool", all_cheap])))
    costs.append(Row("MFLOPs, small", "All C", counted=video_mflops(pair, None, all_cheap)))
    return [*accuracy, *averaging, *costs]


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
        _measured_series("average of the same mix", pair, [("avg_pool", s) for s in schedules.values()], measured),
        _measured_series("average, all cheap", pair, [("avg_pool", all_cheap)], measured),
        _measured_series("FAST-GRU", pair, [("fast_gru", s) for s in schedules.values()], measured, names),
    ]
    panels = [
        Panel("reported: Kinetics-400, Table 4", "GFLOPs per video, as printed", "video@1 (%)", [reported]),
        _measured_panel(pair, series),
    ]
    title = f"How many clips may be cheap?  L = {clip_frames}, N = {pair.num_clips}"
    return draw_panels(panels, title=title, caption=_caption(pair, measured))


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


# Table 3 and Fig. 3: aggregators, and FASTER against averaging, as N grows.


def count_aggregators() -> list[Row]:
    """Count each aggregator of Table 3 at the paper's size and L = 8: one step, and its parameters."""
    built = {name: build_aggregator(name, 2048) for name in NAMES}
    steps = [
        Row("GFLOPs, one step", NAMES[k], counted=round(step_macs(a, PAPER_STEP) / 1e9, 4)) for k, a in built.items()
    ]
    weights = [
        Row("parameters (M)", NAMES[k], counted=round(sum(p.numel() for p in a.parameters()) / 1e6, 2))
        for k, a in built.items()
    ]
    return steps + weights


def aggregator_rows(clips: Sequence[int], measured: Results) -> list[Row]:
    """Give Table 3: each aggregator at each N, the first clip expensive."""
    return [
        Row(
            f"video@1 (%), N = {n}",
            NAMES[name],
            printed_cell(3, NAMES[name], f"N={n} accuracy"),
            measured=video1(measured[name, Schedule.first_expensive(n)]),
        )
        for n in clips
        for name in NAMES
    ]


def draw_aggregators(pair: FeaturePair, clips: Sequence[int], measured: Results) -> Figure:
    """Draw accuracy against N for each aggregator: the paper's Table 3 beside ours."""
    panels = []
    looks = {**NAMES, "avg_pool": "average of the same mix"}
    printed = {k: [(n, printed_cell(3, NAMES[k], f"N={n} accuracy")) for n in clips] for k in NAMES}
    reported = [
        Series(looks[k], [n for n, cell in cells if cell], [cell.value for _, cell in cells if cell])
        for k, cells in printed.items()
    ]
    ours = [
        Series(
            looks[k],
            list(clips),
            [mean(video1(measured[k, Schedule.first_expensive(n)])) for n in clips],
            [_spread(measured[k, Schedule.first_expensive(n)]) for n in clips],
        )
        for k in NAMES
    ]
    for title, series in (("reported: Kinetics-400, Table 3", reported), (_scale(pair), ours)):
        panels.append(Panel(title, "clips per video, N (first expensive)", "video@1 (%)", series, ticks=tuple(clips)))
    title = f"Which aggregator?  L = {pair.expensive.clip_frames}, first clip expensive, the rest cheap"
    return draw_panels(panels, title=title, caption=_caption(pair, measured))


def judge_aggregators(clips: Sequence[int], measured: Results) -> list[Claim]:
    """Test that FAST-GRU is ahead for long sequences, N of at least 16 (or the largest there is)."""
    long = [n for n in clips if n >= 16] or [max(clips)]
    fast, *others = (
        [measured[k, Schedule.first_expensive(n)] for n in long]
        for k in ("fast_gru", "gru", "lstm", "concat", "avg_pool")
    )
    names = ("GRU", "LSTM", "Concat", "averaging")
    at = "N = " + " and ".join(map(str, long))
    return [
        judge(f"FAST-GRU beats {name} for long sequences, {at}", "Table 3", fast, other)
        for name, other in zip(names, others, strict=True)
    ]


def cells_of_growth(clips: Sequence[int]) -> dict[str, list[Cell]]:
    """List Fig. 3's three curves: FASTER with the first clip expensive, and averaging all clips of one network."""
    return {
        "FAST-GRU": [("fast_gru", Schedule.first_expensive(n)) for n in clips],
        "average, all expensive": [("avg_pool", Schedule("E" * n)) for n in clips],
        "average, all cheap": [("avg_pool", Schedule("C" * n)) for n in clips],
    }


def count_growth(clips: Sequence[int]) -> list[Row]:
    """Count the cost of Fig. 3's points at the paper's size and L = 8."""
    return [
        Row("GFLOPs", f"{name}, N = {n}", counted=_paper_cost(cell))
        for name, cells in cells_of_growth(clips).items()
        for n, cell in zip(clips, cells, strict=True)
    ]


def growth_rows(pair: FeaturePair, clips: Sequence[int], measured: Results) -> list[Row]:
    """Give Fig. 3 as a table: accuracy reported where text or tables print it, ours, and the small networks' cost."""
    accuracies, small = [], []
    for name, cells in cells_of_growth(clips).items():
        for n, cell in zip(clips, cells, strict=True):
            of = f"{name}, N = {n}"
            accuracies.append(Row("video@1 (%)", of, _figure_3(name, n), measured=video1(measured[cell])))
            small.append(Row("MFLOPs, small", of, counted=video_mflops(pair, *cell)))
    return [*accuracies, *small]


def draw_growth(pair: FeaturePair, clips: Sequence[int], measured: Results) -> Figure:
    """Draw Fig. 3: accuracy against cost as N grows; the reported accuracies stand at the costs that we count."""
    reported, ours = [], []
    for name, cells in cells_of_growth(clips).items():
        known = [(n, cell, _figure_3(name, n)) for n, cell in zip(clips, cells, strict=True) if _figure_3(name, n)]
        xs, ys = [_paper_cost(cell) for _, cell, _ in known], [value.value for *_, value in known]
        reported.append(Series(name, xs, ys, (), [f"N={n}" for n, *_ in known]))
        ours.append(_measured_series(name, pair, cells, measured, [f"N={n}" for n in clips]))
    panels = [
        Panel(
            "reported accuracy: Tables 2, 3, text",
            "GFLOPs per video, counted",
            "video@1 (%)",
            [s for s in reported if s.x],
        ),
        _measured_panel(pair, ours),
    ]
    title = f"FASTER against averaging as N grows, L = {pair.expensive.clip_frames}"
    return draw_panels(panels, title=title, caption=_caption(pair, measured))


def judge_growth(clips: Sequence[int], measured: Results) -> list[Claim]:
    """Test Fig. 3's two statements, where their numbers of clips have been measured."""
    curves = {name: dict(zip(clips, cells, strict=True)) for name, cells in cells_of_growth(clips).items()}
    faster, expensive, cheap = ({n: measured[cell] for n, cell in curve.items()} for curve in curves.values())
    claims = []
    if 16 in clips:
        statement = "FASTER beats averaging cheap clips at similar cost, N = 16"
        claims.append(judge(statement, "Fig. 3", [faster[16]], [cheap[16]]))
    if {4, 8} <= set(clips):
        statement = "FASTER with N = 8 matches averaging 4 expensive clips at half the cost"
        claims.append(judge(statement, "Fig. 3", [faster[8]], [expensive[4]], margin=1.0))
    return claims


# Table 6: another expensive network.


def count_generalization(schedules: Mapping[int, Schedule], clip_frames: int) -> list[Row]:
    """Count Table 6: averaging all-expensive clips without an aggregator, FAST-GRU over the mixes."""
    rows = []
    for network, name in _EXPENSIVE.items():
        for x, schedule in schedules.items():
            aggregator = "fast_gru" if x else None
            counted = video_gmacs(
                expensive=network, cheap="r2d_26", aggregator=aggregator, schedule=schedule, L=clip_frames
            )
            printed = _table_6(x, schedule, clip_frames, f"{name} gmacs")
            by_rule = network == "r2plus1d_50" and x  # these cells follow Table 4's rule, the others the plain one
            rounded = paper.printed_gmacs(counted, len(schedule)) if by_rule else round(counted, 1)
            rows.append(
                Row("GFLOPs", f"{name}, {_of_table_6(x)}", printed, round(counted, 2), rounded if printed else None)
            )
    return rows


def cells_of_generalization(schedules: Mapping[int, Schedule]) -> list[Cell]:
    """List Table 6's cells for one expensive network."""
    return [("fast_gru" if x else "avg_pool", schedule) for x, schedule in schedules.items()]


def generalization_rows(
    pairs: Sequence[FeaturePair], schedules: Mapping[int, Schedule], measured: Sequence[Results]
) -> list[Row]:
    """Give Table 6's measured rows, and the small networks' costs."""
    accuracy, costs = [], []
    for pair, results in zip(pairs, measured, strict=True):
        name = _EXPENSIVE[pair.expensive.name]
        for (x, schedule), cell in zip(schedules.items(), cells_of_generalization(schedules), strict=True):
            of, printed = (
                f"{name}, {_of_table_6(x)}",
                _table_6(x, schedule, pair.expensive.clip_frames, f"{name} accuracy"),
            )
            accuracy.append(Row("video@1 (%)", of, printed, measured=video1(results[cell])))
            costs.append(Row("MFLOPs, small", of, counted=video_mflops(pair, *cell)))
    return accuracy + costs


def draw_generalization(
    pairs: Sequence[FeaturePair], schedules: Mapping[int, Schedule], measured: Sequence[Results]
) -> Figure:
    """Draw accuracy against cost with either expensive network: the paper's Table 6 beside ours."""
    reported, ours = [], []
    cells, names = cells_of_generalization(schedules), [_of_table_6(x) for x in schedules]
    clip_frames = pairs[0].expensive.clip_frames
    for pair, results in zip(pairs, measured, strict=True):
        name = _EXPENSIVE[pair.expensive.name]
        printed = [
            [_table_6(x, s, clip_frames, f"{name} {what}") for x, s in schedules.items()]
            for what in ("gmacs", "accuracy")
        ]
        known = [(cost.value, accuracy.value) for cost, accuracy in zip(*printed, strict=True) if cost and accuracy]
        reported.append(Series(name, [x for x, _ in known], [y for _, y in known], (), names))
        ours.append(_measured_series(name, pair, cells, results, names))
    panels = [
        Panel(
            "reported: Kinetics-400, Table 6",
            "GFLOPs per video, as printed",
            "video@1 (%)",
            [s for s in reported if s.x],
        ),
        _measured_panel(pairs[0], ours),
    ]
    return draw_panels(
        panels, title=f"Another expensive network, L = {clip_frames}", caption=_caption(pairs[0], measured[0])
    )


def judge_generalization(schedules: Mapping[int, Schedule], ours: Results, other: Results) -> list[Claim]:
    """Test that R3D-50 (`other`) can take R(2+1)D-50's place (`ours`)."""
    mixes = [("fast_gru", schedule) for x, schedule in schedules.items() if x]
    sides = ([results[cell] for cell in mixes] for results in (other, ours))
    claims = [judge("R3D-50 serves FASTER as well as R(2+1)D-50", "Table 6", *sides, margin=1.0)] if mixes else []
    if {0, 1} <= set(schedules):
        statement = "with R3D-50 too, 1:1 beats averaging all-expensive clips"
        sides = [other["fast_gru", schedules[1]]], [other["avg_pool", schedules[0]]]
        claims.append(judge(statement, "Table 6", *sides))
    return claims


_EXPENSIVE = {"r2plus1d_50": "R(2+1)D-50", "r3d_50": "R3D-50"}


def _table_4(x: int, schedule: Schedule, clip_frames: int, column: str) -> paper.Reported | None:
    """Find Table 4's cell, if the study is one that the table has."""
    if len(schedule) * clip_frames != paper.VIDEO_FRAMES:
        return None
    return printed_cell(4, ratio_name(x), f"L={clip_frames} {column}")


def _of_table_6(x: int) -> str:
    return f"{ratio_name(x)} (FAST-GRU)" if x else "All E (Avg. pool)"


def _table_6(x: int, schedule: Schedule, clip_frames: int, column: str) -> paper.Reported | None:
    if clip_frames != 32 or len(schedule) * clip_frames != paper.VIDEO_FRAMES:
        return None
    return printed_cell(6, _of_table_6(x), column)


def _figure_3(curve: str, num_clips: int) -> paper.Reported | None:
    """Find what the paper prints of Fig. 3: FASTER in Table 3, averaging 32 clips in Table 2, a number in the text."""
    if curve == "FAST-GRU":
        return printed_cell(3, "FAST-GRU", f"N={num_clips} accuracy")
    network = "R(2+1)D-50" if curve == "average, all expensive" else "R2D-26"
    if num_clips == 32:
        return printed_cell(2, f"{network} L=8", "accuracy")
    return paper.FIGURE_3_TEXT.get((network, num_clips))


def _paper_cost(cell: Cell) -> float:
    aggregator, schedule = cell
    networks = {"expensive": "r2plus1d_50", "cheap": "r2d_26"}
    return round(video_gmacs(**networks, aggregator=aggregator, schedule=schedule, L=8), 2)


def _measured_series(
    name: str, pair: FeaturePair, cells: Sequence[Cell], measured: Results, labels: Sequence[str] = ()
) -> Series:
    costs = [video_mflops(pair, *cell) for cell in cells]
    values = [mean(video1(measured[cell])) for cell in cells]
    return Series(name, costs, values, [_spread(measured[cell]) for cell in cells], labels)


def _measured_panel(pair: FeaturePair, series: Sequence[Series]) -> Panel:
    return Panel(_scale(pair), "MFLOPs per video, counted for these networks", "video@1 (%)", series)


def _scale(pair: FeaturePair) -> str:
    data = "generated videos" if pair.profile.scene is not None else "annotated videos"
    return f"measured: {data}, profile {pair.profile.name}"


def _caption(pair: FeaturePair, measured: Results) -> str:
    videos = max(run["videos"] for runs in measured.values() for run in runs)
    seeds = max(len(runs) for runs in measured.values())
    ours = f"ours, {videos} {_scale(pair).removeprefix('measured: ')}"
    return (
        f"Left: the paper's accuracies on Kinetics-400. Right: {ours}; bars are ± 1 standard deviation over {seeds} "
        "seed(s) of stage 2.\nThe two panels have scales of their own: their accuracies cannot be compared."
    )


def _spread(results: Sequence[Mapping[str, Any]]) -> float:
    return stdev(video1(results)) if len(results) > 1 else 0.0


def _joined(cell: pd.Series) -> str:
    if pd.isna(cell["measured"]):
        return f"{cell['counted']:g}"
    return f"{cell['measured']:.1f}" if pd.isna(cell["±"]) else f"{cell['measured']:.1f} ± {cell['±']:.1f}"
