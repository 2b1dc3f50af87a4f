"""Counting multiply-accumulates (MACs) through fvcore, in the paper's convention.

What the paper calls FLOPs are the MACs of convolutions and fully-connected layers; everything else is free. A video's
cost is composed of its clips' costs, each network being counted once.
"""

import functools
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

with warnings.catch_warnings():  # importing it scripts two losses that nobody here uses, and that is deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

from faster_lib.models.aggregators import Aggregator, build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import check_clip_frames, check_whole
from faster_lib.models.faster import Schedule

Part = str | nn.Module  # a network or an aggregator, or its name
# Operators of one tensor that compute products all the same; those that take several and multiply no weights: they
# move, look up, compare or scale numbers one by one, as batch norm does. Source: Table 2, whose 119.9 for R(2+1)D-50 at
# L = 32 is 119.92 without batch norm and 120.58 with it.
_PRODUCTS_OF_ONE = re.compile("linalg_(?!vector_norm)|fft_|matrix_|_?trilinear|stft|istft|cov$|corrcoef")
_FREE_OF_SEVERAL = re.compile(
    r"\w*_norm|grid_sampler\w*|prelu|r?sub|where|cat|stack|[hvd]stack|meshgrid|broadcast_tensors|\w*embedding\w*|\w*pool\w*|take\w*"
    r"|_?index\w*|gather|\w*scatter\w*|masked_\w+|copy|type_as|\w+_as|to|new_\w+|_?unsafe_\w+|\w+_like|__\w+__|\w*loss\w*"
)


def count_macs(module: nn.Module, example_input: torch.Tensor | tuple) -> int:
    """Count the multiply-accumulates of one call: those of convolutions, matrix products and attention.

    An operator that takes one tensor multiplies no weights and is free, as are those that work number by number.

    Args:
        example_input: the module's argument, or a tuple of its arguments; its batch is counted whole.
    Raises: ValueError if the module runs an operator that can be neither counted nor taken as free, such as a whole
        `nn.LSTM`, which fvcore would silently count as 0.
    """
    modes = [(part, part.training) for part in module.modules()]
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which makes attention one operator without parts
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about Python values taken from shapes
            count = FlopCountAnalysis(module.eval(), arguments).clear_op_handles()
            count.set_op_handle(**{f"aten::{operator}": handle for operator, handle in _PRODUCTS.items()})
            count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            total = count.total()
            uncounted = sorted(operator for operator in count.unsupported_ops() if not _is_free(operator))
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        for part, is_training in modes:
            part.training = is_training
    if uncounted:
        runs = f"{type(module).__name__} runs {', '.join(uncounted)}"
        raise ValueError(f"{runs}, which cannot be counted; build it from convolutions, linear layers and cells")
    return int(total)


@functools.cache
def _is_free(operator: str) -> bool:
    """Whether an operator multiplies no weights, by PyTorch's own description of it."""
    namespace, name = operator.split("::")
    name = name if name.endswith("__") else name.rstrip("_")
    if namespace != "aten" or _PRODUCTS_OF_ONE.match(name):
        return namespace == "prim"
    if _FREE_OF_SEVERAL.fullmatch(name):
        return True
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, f"{name}_", None)
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet else []
    return any(torch.Tag.pointwise in each.tags or _count_tensors(each) < 2 for each in overloads)


def _count_tensors(overload: Any) -> int:
    kinds = [str(argument.type) for argument in overload._schema.arguments if not argument.is_out]
    return sum(2 if "List" in kind else 1 for kind in kinds if "Tensor" in kind)


def _product(first: int) -> Callable:
    """Count a product of matrices or vectors, broadcast or not: each number of the result is a sum of products."""
    return lambda inputs, outputs: math.prod(get_shape(outputs[0])) * get_shape(inputs[first])[-1]


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    is_transposed = len(inputs) > 8 and inputs[6].toIValue()  # each number of its input meets the kernel once
    numbers = get_shape(inputs[0] if is_transposed else outputs[0])
    return math.prod(numbers) * math.prod(get_shape(inputs[1])[1:])


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    keys = get_shape(inputs[1])[-2]
    return keys * (math.prod(get_shape(inputs[0])) + math.prod(get_shape(outputs[0])))


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Let PyTorch count what its einsum computes, on tensors without numbers: products of matrices, and outer ones."""
    operands = [torch.empty(get_shape(each), device="meta") for each in inputs[1].node().inputs()]
    outer = {torch.ops.aten.mul: lambda *_, out_shape: 2 * math.prod(out_shape)}
    with FlopCounterMode(display=False, custom_mapping=outer) as count:
        torch.einsum(inputs[0].toIValue(), *operands)
    return count.get_total_flops() // 2


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:  # of M x K and K x N numbers into M x N
    return math.isqrt(math.prod(math.prod(get_shape(each)) for each in (*inputs[:2], outputs[0])))


_PRODUCTS = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "linear"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1)),
    **dict.fromkeys(("_convolution", "_convolution_mode"), _convolution),
    "einsum": _einsum,
    "outer": lambda inputs, outputs: math.prod(get_shape(outputs[0])),
    "scaled_dot_product_attention": _attention,
    "tensordot": _tensordot,
}


def video_gmacs(
    *, expensive: Part, cheap: Part, aggregator: Part | None, schedule: Schedule | str, L: int, size_px: int = 224
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
    parts = {"expensive": expensive, "cheap": cheap, "aggregator": aggregator}
    return running_gmacs(**parts, schedule=schedule, L=L, size_px=size_px)[-1]


def running_gmacs(
    *, expensive: Part, cheap: Part, aggregator: Part | None, schedule: Schedule | str, L: int, size_px: int = 224
) -> list[float]:
    """Compose what a video has cost after each of its clips, in 1e9 MACs; arguments and errors as `video_gmacs`."""
    check_clip_frames(L)
    check_whole("size_px", size_px)
    schedule, networks, step = Schedule(schedule), {"E": expensive, "C": cheap}, 0
    clip = {letter: _count_clip(networks[letter], L, size_px) for letter in sorted(set(schedule))}
    if aggregator is not None:
        reference = _shaped(expensive)
        channels, size = reference.channels, reference.feature_size((L, size_px, size_px))
        step = step_macs(_shaped(aggregator, channels), size)
        if step and "C" in clip and (cheap_channels := _shaped(cheap).channels) != channels:
            clip["C"] += cheap_channels * channels * math.prod(size)  # averaging scores needs no maps of one form
    spent = itertools.accumulate(clip[letter] + (step if t else 0) for t, letter in enumerate(schedule))
    return [total / 1e9 for total in spent]


def step_macs(aggregator: Aggregator, feature_size: tuple[int, int, int]) -> int:
    """Count one step of an aggregator on feature maps of l, h, w; averaging scores costs nothing."""
    if aggregator.aggregates_scores:
        return 0
    device = next(aggregator.parameters()).device
    feature = torch.zeros(1, aggregator.channels, *feature_size, device=device)
    return count_macs(aggregator, (feature, aggregator.start(feature)))


def _count_clip(network: Part, clip_frames: int, size_px: int) -> int:
    if isinstance(network, str):
        return _count_named_clip(network, clip_frames, size_px)
    return count_macs(network, torch.zeros(1, 3, clip_frames, size_px, size_px))


@functools.cache
def _count_named_clip(name: str, clip_frames: int, size_px: int) -> int:
    return _count_clip(build_backbone(name), clip_frames, size_px)


def _shaped(part: Part, *channels: int) -> nn.Module:
    if not isinstance(part, str):
        return part
    with torch.device("meta"):  # shapes without numbers
        return build_aggregator(part, *channels) if channels else build_backbone(part)
