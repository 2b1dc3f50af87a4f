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

with warnings.catch_warnings():  # importing it scripts two losses that nobody here uses, and that is deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

from faster_lib.models.aggregators import Aggregator, Pointwise, build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import check_clip_frames, check_whole
from faster_lib.models.faster import Schedule

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
            count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            for operator, handle in _PRODUCTS.items():
                count.set_op_handle(f"aten::{operator}", handle)
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
    if namespace == "prim":
        return True
    name = name if name.endswith("__") else name.rstrip("_")
    if namespace != "aten" or _PRODUCTS_OF_ONE.match(name):
        return False
    if _FREE_OF_SEVERAL.fullmatch(name):
        return True
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, f"{name}_", None)
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet else []
    if any(torch.Tag.pointwise in each.tags for each in overloads):
        return True
    return bool(overloads) and min(map(_count_tensors, overloads)) < 2


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
    """Count two operands at a time, in PyTorch's order: each product has as many terms as its letters' sizes give."""
    equation, path = inputs[0].toIValue().replace(" ", ""), inputs[2].toIValue() if len(inputs) > 2 else None
    shapes, (left, _, right) = [get_shape(each) for each in inputs[1].node().inputs()], equation.partition("->")
    sizes: dict[str, int] = {}
    terms = []
    for term, shape in zip(left.split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        wide = [f"<{i}>" for i in range(len(shape) - len(before + after), 0, -1)] if dots else []
        terms.append([*before, *wide, *after])
        for letter, size in zip(terms[-1], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    every = [letter for term in terms for letter in term]
    kept = set(right) if "->" in equation else {letter for letter in every if every.count(letter) == 1}
    kept |= {letter for letter in every if letter.startswith("<")}
    total, order = 0, iter(path or [0, 1] * (len(terms) - 1))
    for places in zip(order, order, strict=True):
        pair = [terms.pop(place) for place in sorted(places, reverse=True)]
        joint = set().union(*pair)
        total += math.prod(sizes[letter] for letter in joint)
        terms.insert(0 if path is None else len(terms), [x for x in joint if x in kept.union(*terms)])
    return total


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
    return _spend(expensive, cheap, aggregator, schedule, L, size_px)[-1]


def running_gmacs(*, size_px: int = 224, **video: Any) -> list[float]:
    """Compose what a video has cost after each of its clips, in 1e9 MACs; arguments and errors as `video_gmacs`."""
    return _spend(size_px=size_px, **video)


def _spend(
    expensive: str | nn.Module, cheap: str | nn.Module, aggregator: Any, schedule: str, L: int, size_px: int
) -> list[float]:
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
