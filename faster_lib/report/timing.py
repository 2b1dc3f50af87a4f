"""A stopwatch for each part of a Faster: decoding, either network, and aggregation."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from faster_lib.data.datasets import VideoClips
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Faster

PARTS = ("decoding", "expensive network", "cheap network", "aggregation")
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
        return self._time("expensive network" if is_expensive else "cheap network", super()._look, clips, is_expensive)

    def _aggregate(self, features: torch.Tensor, state: Any = None) -> Any:
        return self._time("aggregation", super()._aggregate, features, state)

    def _time(self, part: str, compute: Callable, *arguments: Any) -> Any:
        start = _now()
        computed = compute(*arguments)
        self.seconds[part] += _now() - start
        return computed


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
        start = _now()
        view = normalise(clips[video][0].to(device))  # (1, N, 3, L, crop, crop)
        decoded, at_work = _now(), time.process_time()
        models[name](view)
        end, at_work = _now(), time.process_time() - at_work
        spans = {"decoding": decoded - start, "networks": end - decoded, "in all": end - start, "at work": at_work}
        measured[name].append({**spans, **models[name].seconds})
    return measured


def _now() -> float:
    """Give the time in seconds, after a GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
