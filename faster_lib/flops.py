"""Counting multiply-accumulates (MACs) through fvcore, in the paper's convention.

What the paper calls FLOPs are the MACs of convolutions and fully-connected layers; everything else is free. A video's
cost is composed of its clips' costs, each network being counted once.
"""

import functools
import itertools
import warnings

import torch
from torch import nn

with warnings.catch_warnings():  # importing it scripts two losses that nobody here uses, and that is deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

from faster_lib.models.aggregators import Aggregator, Pointwise, build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import check_clip_frames, check_whole
from faster_lib.models.faster import Schedule

# Operators that fvcore counts and the paper does not. Source: Table 2, whose 119.9 for R(2+1)D-50 at L = 32 is 119.92
# without batch norm and 120.58 with it.
_NOT_IN_CONVENTION = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool3d")
# Operators that fvcore does not know and that multiply no weights: element-wise, pooling, resizing, softmax, dropout,
# views.
_FREE = """
    sigmoid sigmoid_ tanh tanh_ relu relu_ mean max_pool2d max_pool3d avg_pool2d avg_pool3d _upsample_bilinear2d_aa
    softmax log clamp_min dropout rsub sub sub_ neg add add_ addcmul mul mul_ div div_ stack cat chunk unsafe_chunk
    split unbind unflatten select movedim zeros zeros_like ones_like
"""


def count_macs(module: nn.Module, example_input: torch.Tensor | tuple) -> int:
    """Count the multiply-accumulates of one call, those of convolutions and matrix products.

    Args:
        example_input: the module's argument, or a tuple of its arguments; its batch is counted whole.
    Raises: ValueError if the module runs an operator that can be neither counted nor taken as free, such as a whole
        `nn.LSTM`, which fvcore would silently count as 0.
    """
    modes = [(part, part.training) for part in module.modules()]
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about Python values taken from shapes
            count = FlopCountAnalysis(module.eval(), arguments)
            count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            count.set_op_handle(
                *(part for op in _NOT_IN_CONVENTION for part in (f"aten::{op}", lambda inputs, outputs: 0))
            )
            total = count.total()
            uncounted = sorted(set(count.unsupported_ops()) - {f"aten::{op}" for op in _FREE.split()})
    finally:
        for part, is_training in modes:
            part.training = is_training
    if uncounted:
        runs = f"{type(module).__name__} runs {', '.join(uncounted)}"
        raise ValueError(f"{runs}, which cannot be counted; build it from convolutions, linear layers and cells")
    return int(total)


def video_gmacs(
    *,
    expensive: str | nn.Module,
    cheap: str | nn.Module,
    aggregator: str | Aggregator | None,
    schedule: Schedule | str,
    L: int,
    size_px: int = 224,
) -> float:
    """Compose the cost of one video, in 1e9 MACs: each clip's network, and N - 1 steps of the aggregator.

    Where the networks' maps differ in channels, each cheap clip also pays for its projection (`Faster`).

    Args:
        expensive, cheap: a network, or a name of `build_backbone` at the paper's size (400 classes).
        aggregator: likewise, at the channels of the expensive network; None or "avg_pool" costs nothing.
        L, size_px: frames per clip, and their height and width.
    Raises: ValueError for unknown names, a wrong schedule, an L that is no multiple of 8, or a size below 1.
    Source: FASTER, Table 4; averaging rows count no aggregator.
    """
    networks = {"expensive": expensive, "cheap": cheap}
    return running_gmacs(**networks, aggregator=aggregator, schedule=schedule, L=L, size_px=size_px)[-1]


def running_gmacs(
    *,
    expensive: str | nn.Module,
    cheap: str | nn.Module,
    aggregator: str | Aggregator | None,
    schedule: Schedule | str,
    L: int,
    size_px: int = 224,
) -> list[float]:
    """Compose what a video has cost after each of its clips, in 1e9 MACs; arguments and errors as `video_gmacs`."""
    check_clip_frames(L)
    check_whole("size_px", size_px)
    networks, schedule = {"E": expensive, "C": cheap}, Schedule(schedule)
    clip = {letter: _clip_macs(networks[letter], L, size_px) for letter in sorted(set(schedule))}
    step = 0
    if aggregator is not None:
        reference = _shaped(expensive)
        size = reference.feature_size((L, size_px, size_px))
        step = step_macs(_shaped(aggregator, reference.channels), size)
        if step and "C" in clip and (channels := _shaped(cheap).channels) != reference.channels:
            projection = Pointwise(channels, reference.channels)  # averaging scores needs no maps of one form
            clip["C"] += count_macs(projection, torch.zeros(1, channels, *size))
    spent = itertools.accumulate(clip[letter] + (step if t else 0) for t, letter in enumerate(schedule))
    return [total / 1e9 for total in spent]


def step_macs(aggregator: Aggregator, feature_size: tuple[int, int, int]) -> int:
    """Count one step of an aggregator on feature maps of l, h, w; averaging scores costs nothing."""
    if aggregator.aggregates_scores:
        return 0
    device = next(aggregator.parameters()).device
    return count_macs(_Step(aggregator), torch.zeros(1, aggregator.channels, *feature_size, device=device))


class _Step(nn.Module):
    """One step from a state made of the same feature, so that a state of any form is made inside."""

    def __init__(self, aggregator: Aggregator):
        super().__init__()
        self.aggregator = aggregator

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return self.aggregator.read(self.aggregator(feature, self.aggregator(feature)))


def _clip_macs(network: str | nn.Module, clip_frames: int, size_px: int) -> int:
    if isinstance(network, str):
        return _named_clip_macs(network, clip_frames, size_px)
    return count_macs(network, torch.zeros(1, 3, clip_frames, size_px, size_px))


@functools.cache
def _named_clip_macs(name: str, clip_frames: int, size_px: int) -> int:
    return _clip_macs(build_backbone(name), clip_frames, size_px)


def _shaped(part: str | nn.Module, *channels: int) -> nn.Module:
    if not isinstance(part, str):
        return part
    with torch.device("meta"):  # shapes without numbers
        return build_aggregator(part, *channels) if channels else build_backbone(part)
