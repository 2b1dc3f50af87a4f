"""Tables 7 and 8 and Fig. 4: FASTER among other methods, whose numbers the paper quotes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from faster_lib import paper
from faster_lib.flops import count_macs, video_gmacs
from faster_lib.models.faster import Schedule
from faster_lib.models.torchvision import build_s3d
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Row, printed_cell

S3D_FRAMES = 64  # Source: Xie et al. 2018, of the clip whose cost Table 7 quotes
# L, x of 1:x and the expensive network. Source: "Better accuracy/FLOPs trade-offs", "Comparison to state-of-the-art"
VARIANTS = {"FASTER16": (16, 7, "r2plus1d_50"), "FASTER32": (32, 1, "r3d_50")}
_TABLE_8 = ("UCF-101", "HMDB-51")


@dataclass(frozen=True)
class Method:
    """A row of Table 7; `gmacs` is the cost of all its clips, None where the paper does not know their number."""

    name: str
    accuracy: float
    gmacs: float | None
    is_pretrained: bool


def stem(s3d_frames: int) -> str:
    """Name what is saved, so that another count of S3D leaves the printed one's files alone."""
    return "07_sota" if s3d_frames == S3D_FRAMES else f"07_sota_s3d{s3d_frames}"


def methods() -> list[Method]:
    """Read Table 7, in the printed order."""
    found = []
    for row in _rows(7):
        accuracy, *factors = (paper.reported(7, row, c).value for c in ("accuracy", "gmacs per clip", "clips"))
        total = None if None in factors else math.prod(factors)
        found.append(Method(row, accuracy, total, _is_pretrained(7, row)))
    return found


def frontier(known: Sequence[Method]) -> list[Method]:
    """Keep the methods that no other one beats in cost without being less accurate, the cheapest first."""
    best: list[Method] = []
    for method in sorted((m for m in known if m.gmacs is not None), key=lambda m: (m.gmacs, -m.accuracy)):
        if not best or method.accuracy > best[-1].accuracy:
            best.append(method)
    return best


def count(s3d_frames: int) -> dict[str, float]:
    """Count a clip of each method that the kit can build, in 1e9 MACs: FASTER's two variants and torchvision's S3D.

    A clip of FASTER is a video's cost divided by N.

    Raises: ValueError for a number of frames that S3D cannot take.
    """
    if isinstance(s3d_frames, bool) or not isinstance(s3d_frames, int) or s3d_frames < 16:
        raise ValueError(
            f"s3d_frames is {s3d_frames!r}; it must be a whole number of at least 16, as S3D halves it thrice"
        )
    costs = {}
    for name, (clip_frames, x, expensive) in VARIANTS.items():
        schedule = Schedule.ratio(paper.VIDEO_FRAMES // clip_frames, x)
        networks = {"expensive": expensive, "cheap": "r2d_26", "aggregator": "fast_gru"}
        costs[name] = video_gmacs(**networks, schedule=schedule, L=clip_frames) / len(schedule)
    costs["S3D"] = count_macs(build_s3d(), torch.zeros(1, 3, s3d_frames, 224, 224)) / 1e9
    return costs


def cost_rows(costs: Mapping[str, float], s3d_frames: int) -> list[Row]:
    """Give Table 7's costs of one clip, each with the number of clips in its name."""
    found = []
    for method in methods():
        cell, clips = (printed_cell(7, method.name, c) for c in ("gmacs per clip", "clips"))
        of = f"{method.name} × {clips.value:g}" if clips else f"{method.name} × N/A"
        cost = costs.get(method.name.split(" (")[0])
        note = "N/A in the paper" if cell is None else "quoted by the paper, not counted here" if cost is None else ""
        if method.name.startswith("S3D ("):
            note = "differs: torchvision's S3D is another network" if s3d_frames == S3D_FRAMES else ""
            cell, of = (cell, of) if note else (None, f"{of}, {s3d_frames} frames")
        rounded = None if cell is None or cost is None else round(cost, 1)
        found.append(Row("GFLOPs per clip", of, cell, cost and round(cost, 2), rounded, note=note))
    return found


def accuracy_rows() -> list[Row]:
    """Give the accuracies of Tables 7 and 8, none of which is measured here."""
    seventh = [Row("Kinetics-400, top-1 (%)", row, printed_cell(7, row, "accuracy")) for row in _rows(7)]
    cells = [(data, row, printed_cell(8, row, f"{data} accuracy")) for data in _TABLE_8 for row in _rows(8)]
    return seventh + [Row(f"{data} (%), Table 8", row, cell) for data, row, cell in cells]


def draw(costs: Mapping[str, float]) -> Figure:
    """Draw Fig. 4, accuracy against the cost of all clips on a logarithmic axis, and Table 8's two accuracies."""
    drawn = [m for m in methods() if m.gmacs is not None]
    best, ours = frontier(drawn), [m for m in drawn if m.name in VARIANTS]
    counted = [costs[m.name] * paper.VIDEO_FRAMES / VARIANTS[m.name][0] for m in ours]
    points = [(m.name, m.gmacs, m.accuracy, m.is_pretrained) for m in drawn]
    series = [
        Series("best so far as cost grows", [m.gmacs for m in best], [m.accuracy for m in best]),
        *_groups(points, {"FASTER": (-58, 8), "pre-trained on ImageNet": (7, -11)}),
        Series("FASTER, cost counted", counted, [m.accuracy for m in ours], is_joined=False, is_hollow=True),
    ]
    points = [
        (row, *(printed_cell(8, row, f"{data} accuracy").value for data in _TABLE_8), _is_pretrained(8, row))
        for row in _rows(8)
    ]
    form = {"margin": 0.25, "is_legend_below": True}
    panels = [
        Panel(
            "Fig. 4, from Table 7: Kinetics-400",
            "GFLOPs per video: per clip × clips",
            "top-1 (%)",
            series,
            ticks=(100, 300, 1000, 3000, 10_000, 30_000),
            **form,
        ),
        Panel("Table 8", "UCF-101 (%)", "HMDB-51 (%)", _groups(points, {"FASTER": (9, -4)}), is_log=False, **form),
    ]
    missing = ", ".join(dict.fromkeys(m.name.split(" (")[0] for m in methods() if m.gmacs is None))
    caption = (
        "Accuracies and the filled points' costs are reported; rings stand at costs counted here. Nothing is measured."
        f"\nNot drawn on the left, since Table 7 gives no number of clips: {missing}."
    )
    return draw_panels(panels, title="FASTER among other methods", caption=caption)


def _rows(table: int) -> list[str]:
    return list(dict.fromkeys(cell.row for cell in paper.table(table)))


def _is_pretrained(table: int, row: str) -> bool:
    return paper.reported(table, row, "ImageNet pre-training").value == "✓"


def _groups(
    points: Sequence[tuple[str, float, float, bool]], offsets: Mapping[str, tuple[float, float]]
) -> list[Series]:
    """Sort points (name, x, y, is pre-trained) by what tells them apart; `offsets` keep labels free of each other."""
    groups: dict[str, list] = {"pre-trained on ImageNet": [], "trained from scratch": [], "FASTER": []}
    for name, x, y, is_pretrained in points:
        kind = "pre-trained on ImageNet" if is_pretrained else "trained from scratch"
        label = name.removesuffix(" (ImageNet)").removesuffix(" (scratch)")
        groups["FASTER" if name in VARIANTS else kind].append((label, x, y))
    return [
        Series(kind, x, y, (), names, is_joined=False, label_offset=offsets.get(kind, (6, 5)))
        for kind, kept in groups.items()
        for names, x, y in [zip(*kept, strict=True)]
    ]
