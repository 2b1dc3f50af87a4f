"""Time a model file on one video: cold, warm, and beside ten clips of three crops of its expensive network alone.

    .venv/bin/python benchmarks/predict.py my_model.faster benchmarks/results/predict.csv

The video is drawn: 10 seconds of 320 x 240 at 25 frames a second, H.264. Ten uniform clips in three crops each, whose
scores are averaged, is how PySlowFast tests; here the same library decodes it and the same network sees it.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from faster_lib import count_macs, load
from faster_lib.data.datasets import Video, clip_frame_indices, clip_starts, read_views
from faster_lib.data.transforms import draw_cut
from faster_lib.data.video import encode_h264
from faster_lib.model_file import Model

COLD = "import sys, time; b = time.perf_counter(); from faster_lib import load; load(sys.argv[1]).predict(sys.argv[2])"
COLD += "; print(time.perf_counter() - b)"
ROUNDS = 7


def draw_video(path: Path) -> None:
    """Write 250 frames of noise that moves, which is hard to compress and so slow to decode."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (240 // 8, 320 // 8 + 250, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([noise[:, 4 * t : 4 * t + 320] for t in range(250)])
    path.write_bytes(encode_h264(frames, fps=25, crf=23, gop_frames=12))


@torch.inference_mode()
def score_densely(model: Model, path: Path) -> torch.Tensor:
    """Average the expensive network's scores over ten clips, each in a left, a central and a right crop."""
    about = model.about
    reader = Video(path).open()
    centre = draw_cut(reader.size_px, about)
    height, width = (length - about.crop_px for length in centre.scaled_px)
    corners = [(height // 2, round(share * width)) for share in (0.0, 0.5, 1.0)]
    starts = clip_starts(len(reader), about.clip_frames, 10)
    views = [
        (clip_frame_indices(start, about.clip_frames, len(reader)), centre._replace(top=top, left=left))
        for start in starts
        for top, left in corners
    ]
    clips = read_views(reader, views).movedim(-1, 1)
    return model.network.expensive(clips).softmax(-1).mean(0)


def median_seconds(work: Callable[[], object]) -> float:
    """Time some calls, after one that does not count."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time a model file, and write the rows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path, help="a model file, as save_faster writes it")
    parser.add_argument("out", type=Path, help="the table")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        draw_video(video := Path(folder) / "video.mp4")
        cold = [sys.executable, "-c", COLD, str(given.model), str(video)]
        seconds = {"cold": float(subprocess.run(cold, check=True, capture_output=True, text=True).stdout)}
        model = load(given.model)
        clip = torch.zeros(1, 3, model.about.clip_frames, *[model.about.crop_px] * 2)
        dense = 30 * count_macs(model.network.expensive.network, clip) / 1e9
        seconds["warm"] = median_seconds(lambda: model.predict(video))
        seconds["decoding alone"] = median_seconds(lambda: Video(video).open().read(range(250)))
        seconds["10 clips x 3 crops, expensive network"] = median_seconds(lambda: score_densely(model, video))
    gmacs = {"cold": model.about.gmacs, "warm": model.about.gmacs, "10 clips x 3 crops, expensive network": dense}
    rows = [(what, round(each, 3), round(gmacs.get(what, 0.0), 3)) for what, each in seconds.items()]
    with given.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("what", "seconds", "GMACs"), *rows])
    for row in rows:
        print(*row)


if __name__ == "__main__":
    main()
