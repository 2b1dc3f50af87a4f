"""Table 6: another expensive network."""

from collections.abc import Mapping, Sequence

from faster_lib import paper
from faster_lib.flops import video_gmacs
from faster_lib.models.faster import Schedule
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, judge, printed_cell, ratio_name
from faster_lib.studies.points import (
    Results,
    caption_of,
    measured_panel,
    measured_series,
    video1,
    video_mflops,
)
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair

_EXPENSIVE = {"r2plus1d_50": "R(2+1)D-50", "r3d_50": "R3D-50"}


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
    cells, names = cells_of_generalization(schedules), [ratio_name(x) for x in schedules]
    clip_frames = pairs[0].expensive.clip_frames
    for pair, results in zip(pairs, measured, strict=True):
        name = _EXPENSIVE[pair.expensive.name]
        printed = [
            [_table_6(x, s, clip_frames, f"{name} {what}") for x, s in schedules.items()]
            for what in ("gmacs", "accuracy")
        ]
        known = [(cost.value, accuracy.value) for cost, accuracy in zip(*printed, strict=True) if cost and accuracy]
        reported.append(Series(name, [x for x, _ in known], [y for _, y in known], (), names))
        ours.append(measured_series(name, pair, cells, results, names))
    panels = [
        Panel(
            "reported: Kinetics-400, Table 6",
            "GFLOPs per video, as printed",
            "video@1 (%)",
            [s for s in reported if s.x],
        ),
        measured_panel(pairs[0], ours),
    ]
    return draw_panels(
        panels, title=f"Another expensive network, L = {clip_frames}", caption=caption_of(pairs[0], measured[0])
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


def _of_table_6(x: int) -> str:
    return f"{ratio_name(x)} (FAST-GRU)" if x else "All E (Avg. pool)"


def _table_6(x: int, schedule: Schedule, clip_frames: int, column: str) -> paper.Reported | None:
    if clip_frames != 32 or len(schedule) * clip_frames != paper.VIDEO_FRAMES:
        return None
    return printed_cell(6, _of_table_6(x), column)
