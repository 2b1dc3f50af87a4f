"""Counting multiply-accumulates (MACs) through fvcore, in the paper's convention.

What the paper calls FLOPs are the MACs of convolutions and fully-connected layers; everything else is free. A video's
cost is composed of its clips' costs, each network being counted once.
"""

import functools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

with warnings.catch_warnings():  # importing it scripts two losses that nobody here uses, and that is deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

from faster_lib.models.aggregators import Aggregator, build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import check_clip_frames, check_whole
from faster_lib.models.faster import Schedule

aten = torch.ops.aten
Part = str | nn.Module  # a network or an aggregator, or its name
# Products, to be counted by PyTorch's own counter.
_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "linear", "addmm", "baddbmm", "addmv")
_PRODUCTS += ("_convolution", "_convolution_mode", "einsum", "tensordot", "scaled_dot_product_attention")
# An operator that takes one tensor, or works number by number, multiplies no weights and is free. Of one tensor, these
# compute products all the same; of several, those that move, look up, compare or scale numbers are free, batch norm
# too. Source: Table 2, whose 119.9 for R(2+1)D-50 at L = 32 is 119.92 without batch norm and 120.58 with it.
_PRODUCTS_OF_ONE = re.compile("linalg_(?!vector_norm)|fft_|matrix_|_?trilinear|stft|istft|cov$|corrcoef|chain_matmul")
_FREE_OF_SEVERAL = re.compile(
    r"(\w*_norm|grid_sampler\w*|prelu|r?sub|where|\w*embedding\w*|\w*pool\w*|take\w*|_?index\w*|gather|\w*scatter\w*"
    r"|masked_\w+|copy|type_as|\w+_as|to|new_\w+|_?unsafe_\w+|\w+_like|__\w+_|\w*loss\w*)_?"
)


def count_macs(module: nn.Module, example_input: torch.Tensor | tuple) -> int:
    """Count the multiply-accumulates of one call: those of convolutions, matrix products and attention.

    Args:
        example_input: the module's argument, or a tuple of its arguments; its batch is counted whole.
    Raises: ValueError if it runs an operator that can be neither counted nor taken as free, such as an `nn.LSTM`.
    """
    modes, is_fast = [(part, part.training) for part in module.modules()], torch.backends.mha.get_fastpath_enabled()
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    torch.backends.mha.set_fastpath_enabled(False)  # which makes attention one operator without parts
    try:
        with torch.no_grad(), _TracedConvolutions(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about Python values taken from shapes
            count = FlopCountAnalysis(module.eval(), arguments).clear_op_handles()
            count.set_op_handle(**{f"aten::{name}": functools.partial(_count_product, name) for name in _PRODUCTS})
            count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            total = count.total()
            uncounted = sorted(operator for operator in count.unsupported_ops() if not _is_free(operator))
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        for part, is_training in modes:
            part.training = is_training
    if uncounted:
        fault = f"{', '.join(uncounted)}, which cannot be counted; build it from convolutions, linear layers and cells"
        raise ValueError(f"{type(module).__name__} runs {fault}")
    return int(total)


class _TracedConvolutions(TorchFunctionMode):
    """Calls the operator that the tracer sees in a convolution; on the device "meta" it would see none."""

    def __torch_function__(self, function: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        if function in (torch.conv1d, torch.conv2d, torch.conv3d) and args[0].is_meta and len(args) == 7:
            return torch._convolution(*args[:6], False, (0,) * len(args[4]), args[6], False, False, True, True)
        return function(*args, **(kwargs or {}))


@functools.cache
def _is_free(operator: str) -> bool:
    """Whether an operator multiplies no weights, by PyTorch's own description of it."""
    namespace, name = operator.split("::")
    if namespace != "aten" or _PRODUCTS_OF_ONE.match(name):
        return namespace == "prim"
    if _FREE_OF_SEVERAL.fullmatch(name):
        return True
    packet = getattr(aten, name, None)
    for each in (getattr(packet, overload) for overload in packet.overloads()) if packet else ():
        if torch.Tag.pointwise in each.tags or sum("Tensor" in str(given.type) for given in each._schema.arguments) < 2:
            return True
    return False


def _count_product(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Let PyTorch count what an operator computes, on tensors of the traced shapes that hold no numbers."""
    operator = getattr(aten, name)
    names = (argument.name for argument in operator.default._schema.arguments)
    mapping = dict.fromkeys((aten.mv, aten.dot, aten.vdot, aten.addmv, aten.mul), _count_terms)  # which it leaves out
    with FlopCounterMode(display=False, custom_mapping=mapping) as count:
        operator(**dict(zip(names, map(_without_numbers, inputs), strict=True)))
    return count.get_total_flops() // 2


def _count_terms(*shapes: Any, **_: Any) -> int:
    *_, first, second = shapes
    is_scaling = not isinstance(second, torch.Size)  # by one number, as attention does
    return 0 if is_scaling else 2 * math.prod(torch.broadcast_shapes(first, second))


def _without_numbers(traced: torch._C.Value) -> Any:
    """Give what the tracer saw as an argument: a tensor of that shape, a list, or a constant."""
    if traced.isCompleteTensor():
        return torch.empty(get_shape(traced), device="meta")
    if traced.node().kind() == "prim::ListConstruct":
        return [_without_numbers(each) for each in traced.node().inputs()]
    return traced.toIValue()


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
    check_clip_frames(L)
    check_whole("size_px", size_px)
    schedule, networks, step = Schedule(schedule), {"E": expensive, "C": cheap}, 0
    clip = {k: _count_clip(networks[k], repr(networks[k]), L, size_px) for k in sorted(set(schedule))}
    if aggregator is not None:
        reference = _shaped(expensive)
        channels, size = reference.channels, reference.feature_size((L, size_px, size_px))
        step = step_macs(built := _shaped(aggregator, channels), size)
        if "C" in clip and not built.aggregates_scores and (own := _shaped(cheap).channels) != channels:
            clip["C"] += own * channels * math.prod(size)
    return (sum(clip[letter] for letter in schedule) + step * (len(schedule) - 1)) / 1e9


def step_macs(aggregator: Aggregator, feature_size: tuple[int, int, int]) -> int:
    """Count one step of an aggregator on feature maps of l, h, w; averaging scores costs nothing."""
    if aggregator.aggregates_scores:
        return 0
    device = next((weight.device for weight in aggregator.parameters()), "cpu")
    feature = torch.zeros(1, aggregator.channels, *feature_size, device=device)
    return count_macs(aggregator, (feature, aggregator.start(feature)))


@functools.lru_cache(8)  # a study asks for the same networks at each of its points; altered ones look different
def _count_clip(network: Part, look: str, L: int, size_px: int) -> int:
    device = "meta" if isinstance(network, str) else "cpu"
    return count_macs(_shaped(network), torch.zeros(1, 3, L, size_px, size_px, device=device))


def _shaped(part: Part, *channels: int) -> nn.Module:
    if not isinstance(part, str):
        return part
    with torch.device("meta"):  # shapes without numbers
        return build_aggregator(part, *channels) if channels else build_backbone(part)
