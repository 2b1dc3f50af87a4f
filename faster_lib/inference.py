"""Trained networks made ready for inference, and videos from file to score."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from faster_lib.data.datasets import VideoClips, decode, stack_clips
from faster_lib.memory import keep_freed_memory
from faster_lib.models.aggregators import Aggregator
from faster_lib.models.backbones import Backbone, fold_batch_norm
from faster_lib.models.clips import as_input, check_clips
from faster_lib.models.faster import Faster
from faster_lib.models.torchvision import TorchvisionBackbone

log = logging.getLogger(__name__)
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where CUDA is there without a GPU

# How far a prepared network's outputs may be from the plain one's, as a share of the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# More clips a call gain nothing on a CPU, and each number of them is compiled anew; a GPU has more to fill.
PIXELS_PER_CALL = {"cpu": 32 * 224 * 224, "cuda": 16 * 32 * 224 * 224}
_MOST_FORMS = 64  # of input, for which one network is compiled


def prepare_for_inference(
    model: Faster | Backbone | TorchvisionBackbone | Aggregator,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    is_compiled: bool = True,
) -> nn.Module:
    """Give a copy of a trained model that computes the same scores and feature maps faster, without gradients.

    Batch norm is folded into the convolutions, channels come last, and networks and aggregator are compiled by
    torch.compile at their first call with each form of input, which takes seconds; on a CPU with frozen weights, which
    brings them into the layout of its kernels. Outputs are float32, within `TOLERANCE` of the plain model's.
    From then on this process keeps the memory that it frees (`keep_freed_memory`).
    Where nothing can be compiled, as without a C++ compiler, a warning says so and the rest still holds.

    Args:
        dtype: of the networks' weights and maps; torch.bfloat16 is for GPUs. Classifiers and aggregator keep float32,
            whose products a GPU computes in TF32 where `torch.set_float32_matmul_precision("high")` was called.
        device: where the copy goes; None leaves it where the model is.
    Raises: ValueError for another dtype; TypeError for what is no model of this library.
    """
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype is {dtype}; it must be torch.float32 or torch.bfloat16")
    keep_freed_memory()
    model = copy.deepcopy(model).eval().requires_grad_(False)
    return _prepare(model, dtype, is_compiled).to(device)


def _prepare(model: nn.Module, dtype: torch.dtype, is_compiled: bool) -> nn.Module:
    if isinstance(model, Backbone | TorchvisionBackbone):
        return PreparedBackbone(model, dtype=dtype, is_compiled=is_compiled)
    if isinstance(model, Aggregator):
        return model if model.aggregates_scores else PreparedAggregator(model, is_compiled=is_compiled)
    if not isinstance(model, Faster):
        raise TypeError(
            f"a {type(model).__name__} cannot be prepared; give a Faster, a network or an aggregator of this library"
        )
    for name in ("expensive", "cheap", "aggregator"):
        setattr(model, name, _prepare(getattr(model, name), dtype, is_compiled))
    return model


class PreparedBackbone(nn.Module):
    """A clip network for inference; it stands in for the network that it was made from.

    Many clips are computed in a few calls of fixed sizes, each of which is compiled once.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits
    Source: ours; the paper measures plain networks.
    """

    def __init__(self, network: Backbone | TorchvisionBackbone, *, dtype: torch.dtype, is_compiled: bool):
        super().__init__()
        self.network = fold_batch_norm(network).to(dtype=dtype, memory_format=torch.channels_last_3d)
        self.network.classifier = network.classifier
        self.channels, self.dtype = network.channels, dtype
        self._features = _Compiled(self.network.features, type(network).__name__, is_compiled)

    @property
    def classifier(self) -> nn.Module:
        """The network's own classifier."""
        return self.network.classifier

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Compute the feature map x_t, as the plain network does."""
        check_clips(clips)
        with _without_gradients():
            sizes = _sizes_of_calls(len(clips), clips.shape[2:].numel(), clips.device.type)
            parts = clips.split(sizes) if sizes else [clips]
            return torch.cat([self._features(self._lay_out(part)) for part in parts]).float()

    def _lay_out(self, clips: torch.Tensor) -> torch.Tensor:
        """Bring a part of the clips, which fits the cache, into the form that the compiled network takes."""
        return as_input(clips).to(self.dtype).contiguous(memory_format=torch.channels_last_3d)

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Give the feature map's (l, h, w) for clips of (L, H, W)."""
        return self.network.feature_size(clip_size)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Pool a feature map globally and score it."""
        with _without_gradients():
            return self.network.classify(features)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(clips))


class PreparedAggregator(Aggregator):
    """An aggregator for inference, whose step is compiled; it stands in for the one that it was made from.

    On a CPU the compiled step holds the projection of x_t, so that videos of any number of clips share it.

    Shape: feature (B, C, l, h, w), state or None -> state
    Source: ours.
    """

    def __init__(self, aggregator: Aggregator, *, is_compiled: bool):
        super().__init__(aggregator.channels)
        self.aggregator = aggregator
        self._step = _Compiled(self._project_and_advance, type(aggregator).__name__, is_compiled)

    def start(self, feature: torch.Tensor) -> Any:
        return self.aggregator.start(feature)

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (features,) if features.is_cpu else self.aggregator.project(features)

    def advance(self, projected: tuple[torch.Tensor, ...], state: Any, joined: tuple[torch.Tensor, ...]) -> Any:
        return self._step(projected, state)

    def run(self, features: torch.Tensor, state: Any = None) -> Any:
        with _without_gradients():
            return super().run(features, state)

    def read(self, state: Any) -> torch.Tensor:
        return self.aggregator.read(state)

    def _project_and_advance(self, projected: tuple[torch.Tensor, ...], state: Any) -> Any:
        if projected[0].is_cpu:
            projected = self.aggregator.project(*projected)
        return self.aggregator.advance(projected, state, self.aggregator.joined())  # joined once, while compiling


class _Compiled:
    """A method that is compiled at its first call with each form of input, and runs as it is where that fails.

    A copy, or what comes out of a pickle, compiles anew.
    """

    def __init__(self, method: Callable, name: str, is_compiled: bool):
        self.method, self.name = method, name
        self.compiled = torch.compile(method, dynamic=False) if is_compiled else None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            return self.method(*arguments)
        from torch._dynamo import config as dynamo  # here, since they take a second and most runs compile nothing
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config as inductor

        is_cpu = next(self.method.__self__.parameters()).device.type == "cpu"
        try:
            with inductor.patch(freezing=is_cpu), dynamo.patch(recompile_limit=_MOST_FORMS):
                return self.compiled(*arguments)
        except TorchDynamoException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning(
                "%s cannot be compiled (%s); it runs uncompiled, at about half the speed. torch.compile needs a C++ "
                "compiler, such as g++, on a CPU, and triton on a GPU",
                self.name,
                reason,
            )
            self.compiled = None
            return self.method(*arguments)

    def __reduce__(self) -> tuple:
        return _Compiled, (self.method, self.name, self.compiled is not None)


@contextmanager
def _without_gradients() -> Iterator[None]:
    """Compute without gradients, and in one mode, since what is compiled in another one is compiled again."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _sizes_of_calls(num_clips: int, pixels: int, device: str = "cpu") -> list[int]:
    """Cut a number of clips into powers of two, so that few sizes are compiled, each of at most PIXELS_PER_CALL."""
    most = 1 << max(PIXELS_PER_CALL.get(device, PIXELS_PER_CALL["cpu"]) // pixels, 1).bit_length() - 1
    sizes = [most] * (num_clips // most)
    return sizes + [1 << bit for bit in reversed(range(most.bit_length())) if num_clips % most >> bit & 1]


def score_videos(
    model: Faster, clips: VideoClips, *, batch_videos: int = 1, workers: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode videos and score them, decoding ahead in threads of its own while the networks compute.

    Shape: -> (B, num_classes) probabilities, (B,) targets; B is `batch_videos` but in the last batch
    Args:
        model: plain or prepared, on the device that is to compute.
        workers: threads that decode; with 0 the one that computes does, between the batches.
    """
    device = model.feature_scales.device
    views, targets = [], []
    for number, item in enumerate(decode(clips, range(len(clips)), workers), start=1):
        views.append(item.clips[0])
        targets.append(item.target)
        if len(views) == batch_videos or number == len(clips):
            with torch.inference_mode():
                scores = model(stack_clips(views).to(device)).softmax(-1)
            yield scores.cpu(), torch.tensor(targets)
            views, targets = [], []
