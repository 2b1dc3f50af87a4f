"""Tables 1 and 2: the clip networks, what a clip costs them, and how good they are when all clips are averaged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from faster_lib import paper
from faster_lib.flops import video_gmacs
from faster_lib.models.backbones import TABLE_1, build_backbone
from faster_lib.models.faster import Schedule
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, judge, printed_cell
from faster_lib.studies.points import Results, measured_panel, video1, video_mflops
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair

NETWORKS = {"r2d_26": "R2D-26", "r2plus1d_50": "R(2+1)D-50", "r3d_50": "R3D-50"}  # as the paper writes them
_PRINTED_LENGTHS = (8, 16, 32)  # Source: Table 2
Pairs = Mapping[int, FeaturePair]  # one for each L


def count_backbones(lengths: Iterable[int]) -> list[Row]:
    """Count what a clip costs each network at the paper's size, beside Table 2, and the networks' weights."""
    costs = []
    for name, printed_name in NETWORKS.items():
        for clip_frames in lengths:
            of = f"{printed_name} L={clip_frames}"
            cost = video_gmacs(expensive=name, cheap=name, aggregator=None, schedule="E", L=clip_frames)
            printed = printed_cell(2, of, "gmacs per clip")
            costs.append(Row("GFLOPs per clip", of, printed, round(cost, 2), round(cost, 1) if printed else None))
    weights = {name: sum(p.numel() for p in build_backbone(name).parameters() if p.ndim > 1) for name in TABLE_1}
    return costs + [Row("parameters (M)", NETWORKS[k], counted=round(n / 1e6, 2)) for k, n in weights.items()]


def cells_of_backbones(num_clips: int) -> dict[str, Cell]:
    """List what is measured at one L: averaging all clips, seen by the cheap network or by the expensive one."""
    return {letter: ("avg_pool", Schedule(letter * num_clips)) for letter in "CE"}


def backbone_rows(
    pairs: Pairs, measured: Mapping[int, Results], single: Mapping[int, Mapping[str, float]]
) -> list[Row]:
    """Give Table 2's measured rows: videos, then single clips (`single`, for each L), and the small networks' costs."""
    videos, clips, costs = [], [], []
    for letter in "CE":
        for clip_frames, pair in pairs.items():
            cell = cells_of_backbones(pair.num_clips)[letter]
            of = f"{_name(pair, letter)} L={clip_frames}"
            is_printed = clip_frames * pair.num_clips == paper.VIDEO_FRAMES
            printed = printed_cell(2, of, "accuracy") if is_printed else None
            videos.append(Row("video@1 (%)", of, printed, measured=video1(measured[clip_frames][cell])))
            clips.append(Row("clip@1 (%)", of, measured=[round(single[clip_frames][letter], 2)]))
            costs.append(Row("MFLOPs per video, small", of, counted=video_mflops(pair, *cell)))
    return [*videos, *clips, *costs]


def draw_backbones(pairs: Pairs, measured: Mapping[int, Results]) -> Figure:
    """Draw accuracy against the cost of a video, a point for each network and L: the paper's Table 2 beside ours."""
    reported, ours = [], []
    for letter, name in (("C", "R2D-26"), ("E", "R(2+1)D-50")):
        accuracy, cost = (
            [paper.reported(2, f"{name} L={n}", column).value for n in _PRINTED_LENGTHS]
            for column in ("accuracy", "gmacs per clip")
        )
        total = [per_clip * paper.VIDEO_FRAMES / n for per_clip, n in zip(cost, _PRINTED_LENGTHS, strict=True)]
        reported.append(Series(name, total, accuracy, labels=[f"L={n}" for n in _PRINTED_LENGTHS]))
        values = [video1(results)[0] for results in _averages(pairs, measured, letter)]
        costs = [video_mflops(pair, None, Schedule(letter * pair.num_clips)) for pair in pairs.values()]
        first = next(iter(pairs.values()))
        ours.append(Series(_name(first, letter), costs, values, labels=[f"L={n}" for n in pairs]))
    videos = _averages(pairs, measured, "E")[0][0]["videos"]
    panels = [
        Panel("reported: Kinetics-400, Table 2", "GFLOPs per video, as printed", "video@1 (%)", reported),
        measured_panel(first, ours),
    ]
    caption = (
        f"All clips of a video averaged, L x N fixed. Right: {videos} videos, one network a point, so no spread.\n"
        "The two panels have scales of their own: their accuracies cannot be compared."
    )
    return draw_panels(panels, title="Longer clips at equal cost, for two clip networks", caption=caption)


def judge_backbones(pairs: Pairs, measured: Mapping[int, Results]) -> list[Claim]:
    """Test what the paper says of Table 2, with one network for each letter and L."""
    expensive, cheap = (_averages(pairs, measured, letter) for letter in "EC")
    claims = [judge("the expensive network beats the cheap one", "Table 2", expensive, cheap)]
    if len(pairs) > 1:
        long, short = max(pairs), min(pairs)
        sides = ([_averages({n: pairs[n]}, measured, letter)[0] for letter in "EC"] for n in (long, short))
        statement = f"longer clips are better at equal cost, L = {long} against {short}"
        claims.append(judge(statement, "Table 2, Table 4", *sides))
    return claims


def _averages(pairs: Pairs, measured: Mapping[int, Results], letter: str) -> list[Sequence[Mapping[str, Any]]]:
    return [measured[n][cells_of_backbones(pair.num_clips)[letter]] for n, pair in pairs.items()]


def _name(pair: FeaturePair, letter: str) -> str:
    name = (pair.expensive if letter == "E" else pair.cheap).name
    return NETWORKS.get(name, name)
