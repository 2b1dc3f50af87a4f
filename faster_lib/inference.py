"""What computes the same as the readable models, faster; imports torch alone."""

import copy
import ctypes
import itertools
import logging
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from faster_lib.fast_aggregators import fast_form
from faster_lib.models.aggregators import Aggregator
from faster_lib.models.clips import ClipNetwork, as_input, check_clips
from faster_lib.models.faster import Faster

log = logging.getLogger(__name__)

# How far a prepared network's outputs may be from the plain one's, as a share of the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# More clips a call gain nothing on a CPU, and each number of them is compiled anew; a GPU has more to fill.
PIXELS_PER_CALL = {"cpu": 32 * 224 * 224, "cuda": 16 * 32 * 224 * 224}
_ALLOCATOR_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def prepare_for_inference(
    model: Faster | ClipNetwork | Aggregator,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    is_compiled: bool = True,
) -> nn.Module:
    """Give a copy of a trained model that computes the same, to `TOLERANCE`, faster, in eval mode, without gradients.

    Batch norm is folded into the convolutions, channels come last, and networks and aggregator are compiled at their
    first call with each form of input, which takes seconds. Outputs are float32. This process keeps freed memory.

    Args:
        dtype: of the networks' weights and maps, later `.dtype`; "auto" takes `fastest_type(device)`. The rest keeps
            float32, which a GPU multiplies in TF32 after `torch.set_float32_matmul_precision("high")`.
        device: where the copy goes; None leaves it where the model is.
    Raises: ValueError for another dtype, TypeError for what is no model of this library.
    """
    fastest = fastest_type(place := device or next((p.device for p in model.parameters()), "cpu"))
    if dtype == "auto":
        dtype = fastest
        log.info(f"{type(model).__name__} computes in {fastest}, the fastest type of {place} within its tolerance")
    elif dtype not in TOLERANCE:
        raise ValueError(f"dtype is {dtype}; it must be torch.float32 or torch.bfloat16, or 'auto'")
    elif dtype != fastest == torch.float32:
        log.warning(f"{place} only emulates {dtype}, slower than torch.float32; dtype='auto' takes the fastest type")
    keep_freed_memory()
    return _prepare(copy.deepcopy(model).requires_grad_(False), dtype, is_compiled).eval().to(device)


def fastest_type(device: torch.device | str) -> torch.dtype:
    """Give torch.bfloat16 where a device multiplies it itself: CUDA from 8.0 on, a CPU with AMX or AVX-512 BF16."""
    kind = torch.device(device).type
    is_new = kind == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    has_units = kind == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if is_new or has_units else torch.float32


def _prepare(model: nn.Module, dtype: torch.dtype, is_compiled: bool) -> nn.Module:
    if type(model) is Faster:
        for name in ("expensive", "cheap", "aggregator"):
            setattr(model, name, _prepare(getattr(model, name), dtype, is_compiled))
        model.__class__, model.dtype = PreparedFaster, dtype
        return model
    if isinstance(model, _Prepared) or not isinstance(model, Aggregator | ClipNetwork):
        raise TypeError(f"a {type(model).__name__} cannot be prepared; give a plain Faster, network or aggregator")
    if isinstance(model, ClipNetwork):
        return PreparedBackbone(model, dtype, is_compiled)
    return PreparedAggregator(model, is_compiled) if [*model.parameters()] else model  # averaging stays as it is


def _without_gradients(method: Callable) -> Callable:  # in one mode, since another one compiles all again
    return torch.inference_mode(False)(torch.no_grad()(method))


class _Prepared(nn.Module):
    """What prepared forms share: they stay in evaluation mode, with the weights that compiled code has taken in."""

    dtype = torch.float32  # of the networks' weights and maps

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError(f"a {type(self).__name__} takes no other weights; load a plain model and prepare it anew")


class PreparedFaster(_Prepared, Faster):
    """A Faster out of prepared parts; shapes are those of Faster."""


class PreparedBackbone(_Prepared, ClipNetwork):
    """A clip network for inference, in place of a plain one: many clips take a few calls of sizes compiled once.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits
    Source: ours; the paper measures plain networks.
    """

    def __init__(self, network: ClipNetwork, dtype: torch.dtype, is_compiled: bool):
        super().__init__()
        self.network = fold_batch_norm(network).to(dtype=dtype, memory_format=torch.channels_last_3d)
        self.classifier = self.network.classifier = network.classifier
        self.channels, self.dtype = network.channels, dtype
        for layer in self.network.modules():
            if is_compiled and isinstance(layer, nn.Conv3d) and layer.kernel_size[0] == layer.stride[0] > 1:
                layer.__class__ = _FramesAsChannels
        self._features = _Compiled(self.network.features, type(network).__name__, is_compiled)

    @_without_gradients
    def features(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        sizes, last = _sizes_of_calls(len(clips), clips.shape[2:].numel(), clips.device.type), torch.channels_last_3d
        parts = clips.split(sizes) if sizes else [clips]
        maps = [self._features(as_input(part).to(self.dtype).contiguous(memory_format=last)) for part in parts]
        return torch.cat(maps).float()

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.network.feature_size(clip_size)

    @_without_gradients
    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.classify(features)


class _FramesAsChannels(nn.Conv3d):
    """R2D-26's first layer: by images whose channels are the frames' colours, in the layout that oneDNN chooses."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self._by_images(clips) if clips.is_cpu else super().forward(clips)

    @torch._disable_dynamo  # the compiler would choose the layout; torch.compiler.disable takes a second to import
    def _by_images(self, clips: torch.Tensor) -> torch.Tensor:
        images = clips.unflatten(2, (-1, self.stride[0])).movedim(2, 1).flatten(0, 1).flatten(1, 2)
        maps = F.conv2d(images, self.weight.flatten(1, 2), self.bias, self.stride[1:], self.padding[1:])
        return maps.unflatten(0, (len(clips), -1)).movedim(1, 2)


def fold_batch_norm(network: ClipNetwork) -> ClipNetwork:
    """Copy a network for inference, each batch norm multiplied into the convolution straight before it, if any."""
    folded = copy.deepcopy(network).eval()
    for part in (part for part in folded.modules() if isinstance(part, nn.Sequential)):
        for place, (first, second) in enumerate(itertools.pairwise(list(part))):
            if isinstance(first, nn.Conv3d) and isinstance(second, nn.BatchNorm3d):
                part[place], part[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return folded


class PreparedAggregator(_Prepared, Aggregator):
    """An aggregator for inference, whose step is compiled.

    Shape: feature (B, C, l, h, w), state or None -> state
    Source: ours.
    """

    def __init__(self, aggregator: Aggregator, is_compiled: bool):
        super().__init__(aggregator.channels)
        self.aggregator = fast_form(aggregator)
        self.start, self.read = self.aggregator.start, self.aggregator.read
        self.step = _Compiled(self.aggregator.step, type(aggregator).__name__, is_compiled)

    @_without_gradients
    def run(self, features: torch.Tensor, state: Any = None) -> Any:
        return super().run(features, state)


class _Compiled:
    """A method that is compiled at its first call with each form of input, and runs as it is where that fails."""

    def __init__(self, method: Callable, name: str, is_compiled: bool):
        self.method, self.name = method, name
        self.compiled = torch.compile(method, dynamic=False) if is_compiled else None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            return self.method(*arguments)
        from torch import _dynamo as dynamo  # here, since it takes a second and most compile nothing
        from torch import _inductor as inductor

        warner = logging.getLogger("torch.utils.cpp_extension")  # to which CUDA without a GPU is a reason to warn
        level, is_frozen = warner.level, next(self.method.__self__.parameters()).is_cpu
        warner.setLevel(logging.ERROR)
        try:
            with inductor.config.patch(freezing=is_frozen), dynamo.config.patch(recompile_limit=64):
                return self.compiled(*arguments)
        except dynamo.exc.TorchDynamoException as error:
            _, _, output = str(error).partition("\nOutput:\n")  # the compiler's, where there is one
            lines = (output or str(error) or type(error).__name__).strip().splitlines()
            reason = next((line for line in lines if output and "error" in line), lines[0])
            needs = "" if output else ". torch.compile needs a C++ compiler, such as g++, on a CPU, and triton on a GPU"
            log.warning(f"{self.name} cannot be compiled ({reason}); it runs at about half the speed{needs}")
            self.compiled = None
            return self.method(*arguments)
        finally:
            warner.setLevel(level)

    def __reduce__(self) -> tuple:  # a copy, or what comes out of a pickle, compiles anew
        return _Compiled, (self.method, self.name, self.compiled is not None)


def _sizes_of_calls(num_clips: int, pixels: int, device: str = "cpu") -> list[int]:
    """Cut a number of clips into powers of two, so that few sizes are compiled, each of at most PIXELS_PER_CALL."""
    most = 1 << max(PIXELS_PER_CALL.get(device, PIXELS_PER_CALL["cpu"]) // pixels, 1).bit_length() - 1
    sizes = [most] * (num_clips // most)
    return sizes + [1 << bit for bit in reversed(range(most.bit_length())) if num_clips % most >> bit & 1]


def score_videos(
    model: Faster, clips: torch.utils.data.Dataset, *, batch_videos: int = 1, workers: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Score a `VideoClips` by a model, plain or prepared, decoding ahead in so many threads of its own.

    Shape: -> (B, num_classes) probabilities, (B,) targets; B is `batch_videos` but in the last batch
    """
    from faster_lib.data.datasets import stack_clips  # here, since all else needs torch alone
    from faster_lib.workers import load_ahead

    decoded = iter(load_ahead(clips.__getitem__, range(len(clips)), workers))
    while batch := list(itertools.islice(decoded, batch_videos)):
        views = stack_clips([item.clips[0] for item in batch]).to(model.feature_scales.device)
        with torch.inference_mode():
            scores = model(views).softmax(-1)
        yield scores.cpu(), torch.tensor([item.target for item in batch])


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, to use it again, unless the environment sets the allocator; tell whether.

    Otherwise glibc gets each block of more than 32 MiB filled with zeros: half of a plain network's time at full size.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ALLOCATOR_SETTINGS):
        return False
    set_option, most = ctypes.CDLL(None).mallopt, 2**31 - 1  # the most that mallopt(3) takes, 2 GiB
    return bool(set_option(-3, most) and set_option(-1, most))  # malloc.h's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
