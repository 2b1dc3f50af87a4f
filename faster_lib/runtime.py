"""Table 5: how long a video takes, part by part, and whether that follows what is counted."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from faster_lib import paper
from faster_lib.aggregators import build_aggregator
from faster_lib.backbones import Backbone, build_backbone, check_clip_frames
from faster_lib.data.datasets import VideoClips, read_annotations
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos
from faster_lib.data.synthetic import generate
from faster_lib.data.transforms import normalise
from faster_lib.faster import Faster, Schedule, StreamState
from faster_lib.figures import Panel, Series, Shares, draw_panels
from faster_lib.flops import video_gmacs
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile
from faster_lib.report import Claim, Row, printed_cell
from faster_lib.store import circumstances
from faster_lib.training import seeded

PARTS = ("decoding", "expensive network", "cheap network", "aggregation")
TABLE_5 = {"All C": "All C (Avg pool)", "All E": "All E (Avg pool)", "1:1": "FASTER32"}
_STORED = 294 / 224  # side of a generated video, per pixel of the crop: 294 x 294 has as many pixels as 340 x 256
_SCALED = 256 / 224  # short side to which it is scaled, per pixel of the crop. Source: Wang et al. 2018
Seconds = Mapping[str, float]  # of one video: its PARTS, and "in all"


@dataclass(frozen=True)
class Setup:
    """What is timed: networks of a width, on clips of a form. Raises ValueError for what cannot be timed."""

    profile: Profile
    num_videos: int
    clip_frames: int
    width: float
    size_px: int

    def __post_init__(self) -> None:
        check_clip_frames(self.clip_frames)
        num_clips_covering(self.profile.data.video_frames, self.clip_frames)
        for name, value, least in (("num_videos", self.num_videos, 1), ("size_px", self.size_px, 32)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if isinstance(self.width, bool) or not isinstance(self.width, int | float) or not 0 < self.width <= 1:
            raise ValueError(f"width is {self.width!r}; it must be above 0 and at most 1.0, the paper's networks")

    @property
    def num_clips(self) -> int:
        """N, such that L x N is the profile's number of frames."""
        return num_clips_covering(self.profile.data.video_frames, self.clip_frames)

    @property
    def is_paper_size(self) -> bool:
        """Whether networks and clips are those of Table 5."""
        return (self.width, self.size_px, self.clip_frames, self.num_clips) == (1.0, 224, 32, 8)

    @property
    def stem(self) -> str:
        """Under which the results are saved."""
        size = "" if self.width == 1.0 and self.size_px == 224 else f"_{self.width:g}_{self.size_px}"
        return f"05_runtime{size}{'' if self.clip_frames == 32 else f'_L{self.clip_frames}'}"

    def __str__(self) -> str:
        size = (
            "paper size" if self.is_paper_size else f"width {self.width:g}, {self.size_px} px, L = {self.clip_frames}"
        )
        return f"{size}, {self.num_videos} video{'s' if self.num_videos > 1 else ''}, {circumstances()['device']}"

    def patterns(self) -> dict[str, tuple[str, Schedule]]:
        """List Table 5's rows and two more patterns 1:x: the aggregator, and which network sees which clip."""
        baselines = {f"All {letter}": ("avg_pool", Schedule(letter * self.num_clips)) for letter in "CE"}
        fitting = [x for x in (1, 3, 7) if self.num_clips % (1 + x) == 0]
        return baselines | {f"1:{x}": ("fast_gru", Schedule.ratio(self.num_clips, x)) for x in fitting}

    def networks(self) -> dict[str, Backbone]:
        """Build the two networks with random weights, the same ones each time."""
        names = self.profile.networks
        pair = {"expensive": names.expensive, "cheap": names.cheap}
        return {role: seeded(0, build_backbone, name, 400, self.width).eval() for role, name in pair.items()}

    def clips(self, runs: Path = RUNS) -> VideoClips:
        """Find the videos, generating them first where the profile says so, and cut them as in a test."""
        if self.profile.scene is None:
            videos = load_videos(self.profile, "test", runs=runs)
        else:
            form = {"size_px": 2 * round(self.size_px * _STORED / 2), "videos": {"test": self.num_videos}}
            scene = self.profile.scene.model_copy(update=form)
            videos = read_annotations(generate(scene, "test", workers=1, runs=runs), "test")
        if len(videos) < self.num_videos:
            raise ValueError(f"num_videos is {self.num_videos}; the profile has {len(videos)} test videos")
        cut = {"test_short_side_px": round(self.size_px * _SCALED), "crop_px": self.size_px}
        data = self.profile.data.model_copy(update=cut)
        return VideoClips(videos, data, clip_frames=self.clip_frames, num_clips=self.num_clips, views=0, seed=0)


class TimedFaster(Faster):
    """Faster with a stopwatch for each of its parts, read after a call from `seconds`.

    Shape: (B, N, 3, L, H, W) -> (B, num_classes) logits
    Source: FASTER (AAAI 2020), "Runtime vs. FLOPs".
    """

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seconds = dict.fromkeys(PARTS[1:], 0.0)
        return super().forward(clips)

    def _look(self, clip: torch.Tensor, state: StreamState | None) -> torch.Tensor:
        is_expensive = self.schedule.is_expensive[0 if state is None else state.num_clips]
        with self._watch("expensive network" if is_expensive else "cheap network"):
            return super()._look(clip, state)

    def _advance(self, feature: torch.Tensor, state: StreamState | None) -> StreamState:
        with self._watch("aggregation"):
            return super()._advance(feature, state)

    def _classify(self, state: StreamState) -> torch.Tensor:
        with self._watch("aggregation"):
            return super()._classify(state)

    @contextlib.contextmanager
    def _watch(self, part: str) -> Iterator[None]:
        start = _now()
        yield
        self.seconds[part] += _now() - start


def count(setup: Setup) -> dict[str, float]:
    """Count each pattern, in 1e9 multiply-accumulates a video; averaging pays no aggregator."""
    names = setup.profile.networks
    networks = {"expensive": names.expensive, "cheap": names.cheap} if setup.width == 1.0 else setup.networks()
    size = {"L": setup.clip_frames, "size_px": setup.size_px}
    costs = {}
    for pattern, (name, schedule) in setup.patterns().items():
        aggregator = build_aggregator(name, round(2048 * setup.width))
        costs[pattern] = video_gmacs(**networks, aggregator=aggregator, schedule=schedule, **size)
    return costs


@torch.inference_mode()
def measure(setup: Setup, *, runs: Path = RUNS) -> dict[str, list[Seconds]]:
    """Time every pattern on the same videos, one video after the other, on a GPU where there is one.

    Decoding is all from the file to normalised clips on the device. Before the clock runs, both networks and FAST-GRU
    see one blank clip each.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips, networks = setup.clips(runs), setup.networks()
    blank = torch.zeros(1, 2, 3, setup.clip_frames, setup.size_px, setup.size_px, device=device)
    _assemble(networks, "fast_gru", Schedule("EC"), device)(blank)
    jobs = [(pattern, video) for pattern in setup.patterns() for video in range(setup.num_videos)]
    measured: dict[str, list[Seconds]] = {pattern: [] for pattern in setup.patterns()}
    for pattern, video in tqdm(jobs, desc="time", unit="video"):
        model = _assemble(networks, *setup.patterns()[pattern], device)
        start = _now()
        view = normalise(clips[video][0].to(device))  # (1, N, 3, L, crop, crop)
        decoded = _now()
        model(view)
        measured[pattern].append({"decoding": decoded - start, **model.seconds, "in all": _now() - start})
    return measured


def _assemble(networks: Mapping[str, Backbone], name: str, schedule: Schedule, device: torch.device) -> TimedFaster:
    expensive, cheap = networks["expensive"], networks["cheap"]
    aggregator = seeded(0, build_aggregator, name, expensive.channels)
    model = TimedFaster(expensive, cheap, aggregator, schedule, expensive.classifier.out_features)
    return model.eval().to(device)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def mean_seconds(measured: Mapping[str, Sequence[Seconds]]) -> dict[str, dict[str, float]]:
    """Average over videos: for each pattern its parts, "in all", and "networks", which is all but decoding."""
    means = {name: {k: mean(video[k] for video in videos) for k in videos[0]} for name, videos in measured.items()}
    return {name: {**seconds, "networks": seconds["in all"] - seconds["decoding"]} for name, seconds in means.items()}


def fit(costs: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit a straight line of seconds over costs by least squares: slope, intercept, R^2."""
    slope, intercept = np.polyfit(costs, seconds, 1)
    return float(slope), float(intercept), float(np.corrcoef(costs, seconds)[0, 1] ** 2)


def rows(
    setup: Setup, costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]] | None = None
) -> list[Row]:
    """Give Table 5: costs, and once it is measured, seconds, both as shares of All E's, and the fitted line."""
    printed = {name: {} for name in costs}
    if setup.is_paper_size:
        printed |= {name: {c: printed_cell(5, row, c) for c in ("gmacs", "seconds")} for name, row in TABLE_5.items()}
    found = [
        Row("GFLOPs", name, printed[name].get("gmacs"), round(cost, 2), _as_printed(setup, name, cost))
        for name, cost in costs.items()
    ]
    found += [
        Row("GFLOPs, % of All E", name, _share(printed, name, "gmacs"), round(100 * cost / costs["All E"], 1))
        for name, cost in costs.items()
    ]
    if measured is None:
        return found
    note, means = f"measured: {setup}", mean_seconds(measured)
    for name in TABLE_5 if setup.is_paper_size else ():
        found.append(Row("seconds, 100 videos", name, printed[name]["seconds"], note="reported: TITAN X"))
    for part in ("networks", "decoding"):
        found += [Row(f"seconds a video, {part}", k, measured=[m[part]], note=note) for k, m in means.items()]
    for part, quantity in (("networks", "seconds, % of All E"), ("in all", "seconds with decoding, % of All E")):
        for name, seconds in means.items():
            share = [100 * seconds[part] / means["All E"][part]]
            cell = _share(printed, name, "seconds") if part == "networks" else None
            found.append(Row(quantity, name, cell, measured=share, note=note))
    line = fit([costs[name] for name in means], [seconds["networks"] for seconds in means.values()])
    names = ("slope (ms per GFLOP)", "intercept (s)", "R²")
    values = (1000 * line[0], line[1], line[2])
    return found + [Row("fitted line", k, measured=[v], note=note) for k, v in zip(names, values, strict=True)]


def _as_printed(setup: Setup, name: str, cost: float) -> float | None:
    """Round as Table 5 does: FASTER32 as in Table 4, the averaging rows once, in all."""
    if not setup.is_paper_size or name not in TABLE_5:
        return None
    return paper.printed_gmacs(cost, setup.num_clips) if name == "1:1" else round(cost, 1)


def _share(printed: Mapping[str, Mapping[str, paper.Reported]], name: str, column: str) -> paper.Reported | None:
    """Express a printed cell as a percentage of All E's."""
    if not printed[name]:
        return None
    cell, whole = printed[name][column], printed["All E"][column]
    share = round(100 * cell.value / whole.value, 1)
    return dataclasses.replace(cell, value=share, unit="percent", column=f"{column}, % of All E", printed="")


def judge(costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]]) -> Claim:
    """Test whether the share of time that All C and FASTER32 save is the share of GFLOPs that they save.

    `difference` is minus the largest gap between the two, in percentage points; the networks' time counts.
    """
    means = mean_seconds(measured)
    shares = [
        (m["networks"] / means["All E"]["networks"], costs[k] / costs["All E"])
        for k, m in means.items()
        if k in TABLE_5
    ]
    gap = max(abs(time - cost) for time, cost in shares)
    return Claim("running time follows GFLOPs", "Table 5", -round(100 * gap, 1), 0.0, margin=15.0)


def draw(setup: Setup, costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]]) -> Figure:
    """Draw time against counted cost, ours and the paper's with a fitted line each, and where our time goes."""
    means = mean_seconds(measured)
    cells = [(name, *(printed_cell(5, row, c).value for c in ("gmacs", "seconds"))) for name, row in TABLE_5.items()]
    panels = [
        _time_panel(
            "measured",
            "counted",
            "seconds a video, without decoding",
            [(k, costs[k], m["networks"]) for k, m in means.items()],
        ),
        _time_panel("reported, TITAN X", "as printed", "seconds for 100 videos", cells),
    ]
    order = sorted(means, key=costs.get)
    names = [f"{name}\n{means[name]['in all']:.3g} s" for name in order]
    panels.append(Shares("measured: where the time goes", names, {p: [means[k][p] for k in order] for p in PARTS}))
    caption = (
        f"Left and right: measured at {setup}, random weights. Middle: Table 5.\nLines are least-squares fits. "
        "The two machines' seconds cannot be compared, the shapes can."
    )
    return draw_panels(
        panels,
        title=f"Does time follow GFLOPs?  N = {setup.num_clips} clips of L = {setup.clip_frames}",
        caption=caption,
    )


def _time_panel(kind: str, how: str, ylabel: str, points: Sequence[tuple[str, float, float]]) -> Panel:
    slope, intercept, r_squared = fit([cost for _, cost, _ in points], [seconds for *_, seconds in points])
    looks = {"All C": "average, all cheap", "All E": "average, all expensive"}
    series = []
    for look in ("average, all cheap", "FAST-GRU", "average, all expensive"):
        kept = [point for point in points if looks.get(point[0], "FAST-GRU") == look]
        names, x, y = zip(*kept, strict=True) if kept else ((), (), ())
        series.append(Series(look, x, y, (), names, is_joined=False, label_offset=(7, -11)))
    title, xlabel = f"{kind}: R² = {r_squared:.3f}", f"GFLOPs per video, {how}"
    return Panel(title, xlabel, ylabel, [s for s in series if s.x], is_log=False, line=(slope, intercept))
