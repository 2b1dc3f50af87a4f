"""A stopwatch for each part of a Faster: either network, and aggregation."""

import time
from collections.abc import Callable
from typing import Any

import torch

from faster_lib.models.faster import Faster

PARTS = ("decoding", "expensive network", "cheap network", "aggregation")


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
        start = read_clock()
        computed = compute(*arguments)
        self.seconds[part] += read_clock() - start
        return computed


def read_clock() -> float:
    """Give the time in seconds, after a GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
