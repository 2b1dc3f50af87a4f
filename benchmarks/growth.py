"""How time and memory grow with clips, frames, frame size, batch and videos, each over a factor of 8.

    python benchmarks/growth.py OUT.csv OUT.png

Every point is measured in a process of its own, by the plain model and by one whose batch norm is folded; slopes are
those of a least-squares line through the points on log-log axes. 1 is linear.
"""

import argparse
import csv
import logging
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import torch
from side_by_side import write_circumstances
from videos import write_videos

from faster_lib.data.datasets import VideoClips, VideoList
from faster_lib.inference import prepare_for_inference, score_videos
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profiles import load_profile

matplotlib.use("agg")
log = logging.getLogger(__name__)
START = {"N": 8, "L": 8, "side": 112, "B": 1}
AXES = {
    "clips N": ("N", (4, 8, 16, 32)),
    "frames a clip L": ("L", (8, 16, 32, 64)),
    "pixels a frame": ("side", (56, 80, 112, 158)),
    "videos in a batch B": ("B", (1, 2, 4, 8)),
    "videos scored": ("videos", (2, 4, 8, 16)),
}


def build(num_clips: int) -> Faster:
    """Build the pair at a quarter of its width, 1:1, for inference."""
    parts = [build_backbone(name, 16, 0.25) for name in ("r2plus1d_50", "r2d_26")]
    model = Faster(*parts, build_aggregator("fast_gru", 512), Schedule.ratio(num_clips, 1), 16)
    return prepare_for_inference(model, is_compiled=False)


@torch.inference_mode()
def measure(changed: str, value: int, videos: VideoList) -> tuple[float, float]:
    """Give the seconds (the least of three) and the peak memory in MiB that were added by one call."""
    torch.manual_seed(0)
    if changed == "videos":
        some = VideoList(videos.videos[:value], videos.classes)
        clips = VideoClips(some, load_profile("tiny").data, clip_frames=32, num_clips=8, views=0, seed=0)
        model = build(8)

        def call() -> None:
            for _ in score_videos(model, clips, workers=0):
                pass
    else:
        form = START | {changed: value}
        clips = torch.randn(form["B"], form["N"], 3, form["L"], form["side"], form["side"])
        model = build(form["N"])

        def call() -> None:
            model(clips)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(4):  # the first one does not count
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def slope(x: list[float], y: list[float]) -> float:
    """Give the exponent of the power of x that y follows."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(points: dict[str, list[tuple]], path: Path) -> None:
    """Draw time and memory on log-log axes, each with its slope."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, place, name in zip(panels, (1, 2), ("seconds a call", "peak memory added (MiB)"), strict=True):
        for axis, found in points.items():
            x, y = [p[0] for p in found], [p[place] for p in found]
            relative = [value / x[0] for value in x]
            panel.loglog(relative, y, marker="o", label=f"{axis}, from {x[0]:,}: slope {slope(x, y):.2f}")
        panel.set(xlabel="factor", ylabel=name)
        panel.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle("How cost grows: pair 1:1 at a quarter of the width; slope 1 is linear")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every point in a fresh process, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("figure", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    points: dict[str, list[tuple]] = {}
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):
        # In a process too: one that is started begins with the peak of the one that starts it.
        videos = pool.submit(write_videos, Path(folder), max(AXES["videos scored"][1])).result()
        for axis, (changed, values) in AXES.items():
            for value in values:
                seconds, memory = pool.submit(measure, changed, value, videos).result()
                shown = value**2 if changed == "side" else value
                points.setdefault(axis, []).append((shown, seconds, max(memory, 1.0)))
                log.info("%-20s %6d  %8.4f s  %8.1f MiB", axis, shown, seconds, memory)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        write_circumstances(file)
        writer = csv.writer(file)
        writer.writerow(["axis", "value", "seconds", "MiB added", "slope of time", "slope of memory"])
        for axis, found in points.items():
            x, seconds, memory = zip(*found, strict=True)
            slopes = [f"{slope(x, y):.2f}" for y in (seconds, memory)]
            writer.writerows([axis, p[0], f"{p[1]:.4g}", f"{p[2]:.4g}", *slopes] for p in found)
            log.info("%s: slope of time %s, of memory %s", axis, *slopes)
    draw(points, given.figure)


if __name__ == "__main__":
    main()
