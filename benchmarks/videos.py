"""Whole videos from file to score at the paper's size, and streams of a thousand clips, in one run.

python benchmarks/videos.py OUT.csv [--videos 2] [--rounds 1] [--clips 1000] [--lengths 32 16]
"""

import argparse
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from networks import PLAIN, in_type, lacking
from side_by_side import KIT, Peer, Speed, contend, write_table

from faster_lib.data.datasets import Video, VideoClips, VideoList
from faster_lib.data.video import encode_h264
from faster_lib.flops import video_gmacs
from faster_lib.inference import TOLERANCE, fastest_type, prepare_for_inference, score_videos
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profiles import load_profile
from faster_lib.workers import load_ahead

FRAMES, CLASSES = 256, 400
KIT_ROUNDS = 5  # all patterns in turn, for their ratios


def write_videos(folder: Path, number: int) -> VideoList:
    """Write moving gradients as H.264 of 340 x 256 px, the size in which Kinetics is often kept."""
    y, x, paths = *np.mgrid[0:256, 0:340], []
    for video in range(number):
        frames = [np.stack([x + 3 * t, y + 2 * t + 9 * video, x + y - t], -1) % 256 for t in range(FRAMES)]
        paths.append(folder / f"{video}.mp4")
        paths[-1].write_bytes(encode_h264(np.asarray(frames, dtype=np.uint8), fps=30, crf=23, gop_frames=12))
    return VideoList(tuple(map(Video, paths)), ("any",))


def score_all(model: Faster, clips: VideoClips, workers: int) -> None:
    """Score all videos, one after the other."""
    for _ in score_videos(model, clips, workers=workers):
        pass


def compare_patterns(
    videos: VideoList, clip_frames: int, rounds: int, dtype: torch.dtype = torch.float32
) -> list[Speed]:
    """Time All E, 1:1, 1:3 and All C from file to score, the kit's in one type and, in float32, plain networks."""
    data = load_profile("kinetics400").data
    num_clips = FRAMES // clip_frames
    contest = f"file to score, L = {clip_frames}, N = {num_clips}{in_type(dtype)}"
    if dtype not in (torch.float32, fastest_type("cpu")):
        return [lacking("videos", contest, dtype)]
    clips = VideoClips(videos, data, clip_frames=clip_frames, num_clips=num_clips, views=0, seed=0)
    parts = [build_backbone(name, CLASSES).eval() for name in ("r2plus1d_50", "r2d_26")]
    fast = [prepare_for_inference(part, dtype=dtype) for part in parts]
    plain_gru = build_aggregator("fast_gru", parts[0].channels).eval()
    aggregators = {"fast_gru": (prepare_for_inference(plain_gru), plain_gru)}
    aggregators["avg_pool"] = (build_aggregator("avg_pool", parts[0].channels),) * 2
    patterns = {"All E": ("E" * num_clips, "avg_pool"), "All C": ("C" * num_clips, "avg_pool")}
    patterns |= {f"1:{x}": (Schedule.ratio(num_clips, x), "fast_gru") for x in (1, 3)}
    kits, plains, costs = {}, {}, {}
    for pattern, (schedule, name) in patterns.items():
        kit, plain = aggregators[name]
        prepared = Faster(*fast, kit, schedule, CLASSES).eval()
        kits[pattern] = lambda model=prepared: score_all(model, clips, 1)
        if pattern in ("All E", "1:1") and dtype == torch.float32:
            eager = Faster(*parts, plain, schedule, CLASSES).eval()
            plains[pattern] = Peer(lambda model=eager: score_all(model, clips, 0))
        names = {"expensive": "r2plus1d_50", "cheap": "r2d_26", "aggregator": name}
        costs[pattern] = video_gmacs(**names, schedule=schedule, L=clip_frames)
    kits["decoding alone"] = lambda: sum(1 for _ in load_ahead(clips.__getitem__, range(len(clips)), 1))
    speeds, rates = [], {}
    for who, calls, times in ((KIT, kits, KIT_ROUNDS), (PLAIN, plains, rounds)):
        for timed in contend("videos", contest, float(len(videos)), "videos/s", calls, rounds=times):
            speeds.append(timed._replace(contest=f"{contest}, {timed.who}", who=who))
            rates[who, timed.who] = timed.values
    for pattern in ("1:1", "1:3", "All C"):
        in_turn = zip(rates[KIT, "All E"], rates[KIT, pattern], strict=True)
        shares = tuple(100 * all_e / mixed for all_e, mixed in in_turn)
        speeds.append(Speed("videos", contest, f"{pattern}, time", "% of All E", shares))
        counted = 100 * costs[pattern] / costs["All E"]
        speeds.append(Speed("videos", contest, f"{pattern}, counted MACs", "% of All E", (counted,)))
    return speeds


@torch.inference_mode()
def stream(num_clips: int) -> list[Speed]:
    """Take in a long video clip by clip and watch latency and memory; networks of an eighth of the width."""
    parts = [prepare_for_inference(build_backbone(name, 16, 0.125).eval()) for name in ("r2plus1d_50", "r2d_26")]
    aggregator = prepare_for_inference(build_aggregator("fast_gru", parts[0].channels))
    model = Faster(*parts, aggregator, Schedule.ratio(num_clips, 1), 16).eval()
    clip, state, seconds, peaks = torch.randn(1, 3, 8, 112, 112), None, [], []
    for _ in range(num_clips):
        start = time.perf_counter()
        state, _ = model.step(clip, state)
        seconds.append(1000 * (time.perf_counter() - start))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    tenth = num_clips // 10
    warm = seconds[4:]  # the first ones compile
    quantiles = statistics.quantiles(warm, n=100)
    kinds = {
        "latency, median": quantiles[49],
        "latency, 99th percentile": quantiles[98],
        "latency, median of the first tenth": statistics.median(seconds[4:tenth]),
        "latency, median of the last tenth": statistics.median(seconds[-tenth:]),
    }
    contest = f"stream of {num_clips} clips, 1:1, L = 8, 112 px, width 1/8"
    found = [Speed("stream", contest, name, "ms", (value,)) for name, value in kinds.items()]
    for name, place in (("after a tenth", tenth), ("at the end", num_clips)):
        found.append(Speed("stream", contest, f"peak memory {name}", "MiB", (peaks[place - 1],)))
    return found


def contests(videos: int, rounds: int, clips: int, lengths: list[int]) -> Iterator[list[Speed]]:
    """Run all, one after the other."""
    yield stream(clips)
    with tempfile.TemporaryDirectory() as folder:
        files = write_videos(Path(folder), videos)
        for clip_frames in lengths:
            for dtype in TOLERANCE:
                yield compare_patterns(files, clip_frames, rounds, dtype)


def main() -> None:
    """Measure, log the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of the plain networks")
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 16])
    parser.add_argument("--clips", type=int, default=1000)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_table(given.out, contests(given.videos, given.rounds, given.clips, given.lengths))


if __name__ == "__main__":
    main()
