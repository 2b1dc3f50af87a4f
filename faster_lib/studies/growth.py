"""Fig. 3: FASTER against averaging, as clips are added."""

from collections.abc import Sequence

from faster_lib import paper
from faster_lib.flops import video_gmacs
from faster_lib.models.faster import Schedule
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, judge, printed_cell
from faster_lib.studies.points import Results, caption_of, measured_panel, measured_series, video1, video_mflops
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair


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
            accuracies.append(Row("video@1 (%)", of, printed_in_figure_3(name, n), measured=video1(measured[cell])))
            small.append(Row("MFLOPs, small", of, counted=video_mflops(pair, *cell)))
    return [*accuracies, *small]


def draw_growth(pair: FeaturePair, clips: Sequence[int], measured: Results) -> Figure:
    """Draw Fig. 3: accuracy against cost as N grows; the reported accuracies stand at the costs that we count."""
    reported, ours = [], []
    for name, cells in cells_of_growth(clips).items():
        known = [
            (n, cell, printed_in_figure_3(name, n))
            for n, cell in zip(clips, cells, strict=True)
            if printed_in_figure_3(name, n)
        ]
        xs, ys = [_paper_cost(cell) for _, cell, _ in known], [value.value for *_, value in known]
        reported.append(Series(name, xs, ys, (), [f"N={n}" for n, *_ in known]))
        ours.append(measured_series(name, pair, cells, measured, [f"N={n}" for n in clips]))
    panels = [
        Panel(
            "reported accuracy: Tables 2, 3, text",
            "GFLOPs per video, counted",
            "video@1 (%)",
            [s for s in reported if s.x],
        ),
        measured_panel(pair, ours),
    ]
    title = f"FASTER against averaging as N grows, L = {pair.expensive.clip_frames}"
    return draw_panels(panels, title=title, caption=caption_of(pair, measured))


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


def printed_in_figure_3(curve: str, num_clips: int) -> paper.Reported | None:
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
