"""Table 3: which aggregator, as the number of cheap clips grows."""

from collections.abc import Sequence
from statistics import mean

from faster_lib.flops import step_macs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Schedule
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, judge, printed_cell
from faster_lib.studies.points import Results, caption_of, rows_of_real_videos, scale_of, spread_of, video1
from faster_lib.training.features import FeaturePair

NAMES = {"avg_pool": "Avg. pool", "concat": "Concat", "lstm": "LSTM", "gru": "GRU", "fast_gru": "FAST-GRU"}
PAPER_STEP = (1, 7, 7)  # l, h, w of a feature map at L = 8 and 224 x 224. Source: Table 1


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


def aggregator_rows(pair: FeaturePair, clips: Sequence[int], measured: Results) -> list[Row]:
    """Give Table 3: each aggregator at each N, the first clip expensive."""
    is_printed = pair.expensive.clip_frames == 8
    rows = [
        Row(
            f"video@1 (%), N = {n}",
            NAMES[name],
            printed_cell(3, NAMES[name], f"N={n} accuracy") if is_printed else None,
            measured=video1(measured[name, Schedule.first_expensive(n)]),
        )
        for n in clips
        for name in NAMES
    ]
    cells = [(name, Schedule.first_expensive(n)) for n in clips for name in NAMES]
    return rows + rows_of_real_videos(pair, rows, cells, measured)


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
            [spread_of(measured[k, Schedule.first_expensive(n)]) for n in clips],
        )
        for k in NAMES
    ]
    for title, series in (("reported: Kinetics-400, Table 3", reported), (scale_of(pair), ours)):
        panels.append(Panel(title, "clips per video, N (first expensive)", "video@1 (%)", series, ticks=tuple(clips)))
    title = f"Which aggregator?  L = {pair.expensive.clip_frames}, first clip expensive, the rest cheap"
    return draw_panels(panels, title=title, caption=caption_of(pair, measured))


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
