"""Table 5: how long a video takes, part by part, and whether that follows what is counted."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from faster_lib import paper
from faster_lib.data.datasets import VideoClips, read_annotations
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos
from faster_lib.data.synthetic import generate
from faster_lib.flops import video_gmacs
from faster_lib.inference import prepare_for_inference
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import Backbone, build_backbone
from faster_lib.models.clips import check_clip_frames, normalise
from faster_lib.models.faster import Faster, Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile
from faster_lib.report.figures import Figure, Panel, Series, Shares, draw_panels
from faster_lib.report.tables import Claim, Row, printed_cell
from faster_lib.store import circumstances
from faster_lib.training.optimisation import seeded

PARTS = ("decoding", "expensive network", "cheap network", "aggregation")
TABLE_5 = {"All C": "All C (Avg pool)", "All E": "All E (Avg pool)", "1:1": "FASTER32"}
_LOOKS = {"All C": "average, all cheap", "All E": "average, all expensive"}  # of the figure; all others are FAST-GRU
_STORED = 294 / 224  # side of a generated video, per pixel of the crop: 294 x 294 has as many pixels as 340 x 256
_SCALED = 256 / 224  # short side to which it is scaled, per pixel of the crop. Source: Wang et al. 2018
Seconds = Mapping[str, float]  # of a video: its PARTS; "networks" and "in all" by other clocks; "at work", over cores


class TimedFaster(Faster):
    """Faster with a stopwatch for each of its parts, read after a call from `seconds`.

    Shape: (B, N, 3, L, H, W) -> (B, num_classes) logits
    Source: FASTER (AAAI 2020), "Runtime vs. FLOPs".
    """

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seconds = dict.fromkeys(PARTS[1:], 0.0)
        return super().forward(clips)

    def _look(self, clips: torch.Tensor, is_expensive: bool) -> torch.Tensor:
        with self._watch("expensive network" if is_expensive else "cheap network"):
            return super()._look(clips, is_expensive)

    def _aggregate(self, features: torch.Tensor, state: Any = None) -> Any:
        with self._watch("aggregation"):
            return super()._aggregate(features, state)

    @contextlib.contextmanager
    def _watch(self, part: str) -> Iterator[None]:
        start = _now()
        yield
        self.seconds[part] += _now() - start


@dataclass(frozen=True)
class Setup:
    """What is timed: networks of a width, on clips of a form. Raises ValueError for what cannot be timed.

    Args:
        is_prepared: whether networks and aggregator are those that `prepare_for_inference` gives, or the plain ones.
    """

    profile: Profile
    num_videos: int
    clip_frames: int
    width: float
    size_px: int
    is_prepared: bool = True

    def __post_init__(self) -> None:
        check_clip_frames(self.clip_frames)
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
        names = self.profile.networks
        if (names.expensive, names.cheap) != ("r2plus1d_50", "r2d_26"):
            return False
        return (self.width, self.size_px, self.clip_frames, self.num_clips) == (1.0, 224, 32, 8)

    @property
    def stem(self) -> str:
        """Under which the results are saved."""
        size = "" if self.width == 1.0 and self.size_px == 224 else f"_{self.width:g}_{self.size_px}"
        form = ("" if self.clip_frames == 32 else f"_L{self.clip_frames}") + ("" if self.is_prepared else "_plain")
        return f"05_runtime{size}{form}"

    def __str__(self) -> str:
        size = (
            "paper size" if self.is_paper_size else f"width {self.width:g}, {self.size_px} px, L = {self.clip_frames}"
        )
        form = "prepared" if self.is_prepared else "plain"
        videos = f"{self.num_videos} video{'s' if self.num_videos > 1 else ''}"
        return f"{size}, {form} networks, {videos}, {circumstances()['device']}"

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

    def models(self, device: torch.device) -> dict[str, TimedFaster]:
        """Put a model together for each pattern, all of the same networks and the same FAST-GRU."""
        parts, aggregators = self.networks(), {}
        for name in ("avg_pool", "fast_gru"):
            aggregators[name] = seeded(0, build_aggregator, name, parts["expensive"].channels).eval()
        if self.is_prepared:
            parts = {role: prepare_for_inference(network) for role, network in parts.items()}
            aggregators["fast_gru"] = prepare_for_inference(aggregators["fast_gru"])
        return {
            pattern: TimedFaster(*parts.values(), aggregators[name], schedule, 400).eval().to(device)
            for pattern, (name, schedule) in self.patterns().items()
        }

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


def count(setup: Setup) -> dict[str, float]:
    """Count each pattern, in 1e9 multiply-accumulates a video; averaging pays no aggregator."""
    names = setup.profile.networks
    networks = {"expensive": names.expensive, "cheap": names.cheap} if setup.width == 1.0 else setup.networks()
    form = {"L": setup.clip_frames, "size_px": setup.size_px}
    costs = {}
    for pattern, (name, schedule) in setup.patterns().items():
        costs[pattern] = video_gmacs(**networks, aggregator=name, schedule=schedule, **form)
    return costs


@torch.inference_mode()
def measure(setup: Setup, *, runs: Path = RUNS) -> dict[str, list[Seconds]]:
    """Time every pattern on the same videos, one video after the other, on a GPU where there is one.

    Decoding is all from the file to normalised clips on the device. Before the clock runs, one video is decoded,
    and every model sees it, which compiles what is to be compiled.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips, models = setup.clips(runs), setup.models(device)
    for model in models.values():
        model(normalise(clips[0][0].to(device)))
    jobs = [(pattern, video) for pattern in setup.patterns() for video in range(setup.num_videos)]
    measured: dict[str, list[Seconds]] = {pattern: [] for pattern in setup.patterns()}
    for pattern, video in tqdm(jobs, desc="time", unit="video"):
        model, start = models[pattern], _now()
        view = normalise(clips[video][0].to(device))  # (1, N, 3, L, crop, crop)
        decoded, at_work = _now(), time.process_time()
        model(view)
        end, at_work = _now(), time.process_time() - at_work
        spans = {"decoding": decoded - start, "networks": end - decoded, "in all": end - start, "at work": at_work}
        measured[pattern].append({**spans, **model.seconds})
    return measured


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def mean_seconds(measured: Mapping[str, Sequence[Seconds]]) -> dict[str, Seconds]:
    """Average each pattern's seconds over the videos."""
    return {name: {k: mean(video[k] for video in videos) for k in videos[0]} for name, videos in measured.items()}


def fit(costs: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit a straight line of seconds over costs by least squares: slope, intercept, R²."""
    slope, intercept = np.polyfit(costs, seconds, 1)
    return float(slope), float(intercept), float(np.corrcoef(costs, seconds)[0, 1] ** 2)


def cost_rows(setup: Setup, costs: Mapping[str, float]) -> list[Row]:
    """Give Table 5's costs, in all and as shares of All E's; FASTER32 is rounded as in Table 4, averaging in all."""
    totals, shares = [], []
    for name, cost in costs.items():
        cell = _printed(setup, name, "gmacs")
        rounded = paper.printed_gmacs(cost, setup.num_clips) if name == "1:1" else round(cost, 1)
        totals.append(Row("GFLOPs", name, cell, float(f"{cost:.5g}"), rounded if cell else None))
        share = _percent(cost, costs["All E"])
        shares.append(Row("GFLOPs, % of All E", name, _printed(setup, name, "gmacs", is_share=True), share))
    return totals + shares


def time_rows(setup: Setup, costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]]) -> list[Row]:
    """Give the paper's and the measured seconds, in all and as shares of All E's, then what they follow."""
    means, found = mean_seconds(measured), []

    def add(quantity: str, name: str, value: float, cell: paper.Reported | None = None) -> None:
        found.append(Row(quantity, name, cell, measured=[value], note=f"measured: {setup}"))

    cells = {name: cell for name in means if (cell := _printed(setup, name, "seconds"))}
    for name, cell in cells.items():
        found.append(Row("seconds, 100 videos", name, cell, note="reported: TITAN X"))
    for part in ("networks", "decoding"):
        for name, seconds in means.items():
            add(f"seconds a video, {part}", name, seconds[part])
    for name, seconds in means.items():
        add("cores at work for the networks", name, round(seconds["at work"] / seconds["networks"], 2))
    for part, quantity in (("networks", "seconds, % of All E"), ("in all", "seconds with decoding, % of All E")):
        for name, seconds in means.items():
            cell = _printed(setup, name, "seconds", is_share=True) if part == "networks" else None
            add(quantity, name, _percent(seconds[part], means["All E"][part]), cell)
    ours = {name: seconds["networks"] for name, seconds in means.items()}
    if "1:1" in ours:  # has half of All C's clips and half of All E's, and FAST-GRU on top
        theirs = {name: cell.value for name, cell in cells.items()} or ours
        halves = [_percent(2 * s["1:1"], s["All C"] + s["All E"]) for s in (theirs, ours)]
        cell = _derived(cells["1:1"], halves[0]) if cells else None
        add("seconds, % of All C's and All E's mean", "1:1", halves[1], cell)
    slope, intercept, r_squared = fit([costs[name] for name in ours], list(ours.values()))
    line = {"slope (ms per GFLOP)": 1000 * slope, "intercept (s)": intercept, "R²": r_squared}
    for name, value in line.items():
        add("fitted line, networks", name, value)
    return found


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1)


def _printed(setup: Setup, name: str, column: str, *, is_share: bool = False) -> paper.Reported | None:
    """Find Table 5's cell, if the setup is the table's; as a share, in percent of All E's."""
    if name not in TABLE_5 or not setup.is_paper_size:
        return None
    cell, whole = (printed_cell(5, TABLE_5[k], column) for k in (name, "All E"))
    return _derived(cell, _percent(cell.value, whole.value)) if is_share else cell


def _derived(cell: paper.Reported, percent: float) -> paper.Reported:
    return dataclasses.replace(cell, value=percent, unit="percent", printed="")


def judge(costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]]) -> Claim:
    """Test whether the share of time that All C and FASTER32 save is the share of GFLOPs that they save.

    `difference` is minus the largest gap between the two, in percentage points; the networks' time counts.
    """
    seconds = {name: means["networks"] for name, means in mean_seconds(measured).items() if name in TABLE_5}
    gap = max(abs(seconds[k] / seconds["All E"] - costs[k] / costs["All E"]) for k in seconds)
    return Claim("running time follows GFLOPs", "Table 5", -round(100 * gap, 1), 0.0, margin=15.0)


def draw(setup: Setup, costs: Mapping[str, float], measured: Mapping[str, Sequence[Seconds]]) -> Figure:
    """Draw time against counted cost, ours and the paper's with a fitted line each, and where our time goes."""
    means = mean_seconds(measured)
    ours = {name: (costs[name], seconds["networks"]) for name, seconds in means.items()}
    printed = {name: [printed_cell(5, row, c).value for c in ("gmacs", "seconds")] for name, row in TABLE_5.items()}
    order = sorted(means, key=costs.get)
    bars = [f"{name}\n{means[name]['in all']:.3g} s" for name in order]
    panels = [
        _time_panel("measured", "counted", "seconds a video, without decoding", ours),
        _time_panel("reported, TITAN X", "as printed", "seconds for 100 videos", printed),
        Shares("measured: where the time goes", bars, {part: [means[k][part] for k in order] for part in PARTS}),
    ]
    caption = (
        f"Left and right: measured at {setup}, random weights. Middle: Table 5.\nLines are least-squares fits. "
        "The two machines' seconds cannot be compared, the shapes can."
    )
    title = f"Does time follow GFLOPs?  N = {setup.num_clips} clips of L = {setup.clip_frames}"
    return draw_panels(panels, title=title, caption=caption)


def _time_panel(kind: str, how: str, ylabel: str, points: Mapping[str, Sequence[float]]) -> Panel:
    slope, intercept, r_squared = fit(*zip(*points.values(), strict=True))
    series = []
    for look in ("average, all cheap", "FAST-GRU", "average, all expensive"):
        if names := [name for name in points if _LOOKS.get(name, "FAST-GRU") == look]:
            x, y = zip(*(points[name] for name in names), strict=True)
            series.append(Series(look, x, y, (), names, is_joined=False, label_offset=(7, -11)))
    title, xlabel = f"{kind}: R² = {r_squared:.3f}", f"GFLOPs per video, {how}"
    return Panel(title, xlabel, ylabel, series, is_log=False, line=(slope, intercept))


@torch.inference_mode()
def time_videos(models: Mapping[str, TimedFaster], clips: VideoClips) -> dict[str, list[Seconds]]:
    """Time every model on all videos, one video after the other, on a GPU where there is one.

    Decoding is all from the file to normalised clips on the device. Before the clock runs, one video is decoded, and
    every model sees it, which compiles what is to be compiled.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in models.values():
        model.to(device)(normalise(clips[0][0].to(device)))
    jobs = [(name, video) for name in models for video in range(len(clips))]
    measured: dict[str, list[Seconds]] = {name: [] for name in models}
    for name, video in tqdm(jobs, desc="time", unit="video"):
        start = now()
        view = normalise(clips[video][0].to(device))  # (1, N, 3, L, crop, crop)
        decoded, at_work = now(), time.process_time()
        models[name](view)
        end, at_work = now(), time.process_time() - at_work
        spans = {"decoding": decoded - start, "networks": end - decoded, "in all": end - start, "at work": at_work}
        measured[name].append({**spans, **models[name].seconds})
    return measured


def now() -> float:
    """Give the time in seconds, after a GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
