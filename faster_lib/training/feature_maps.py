"""Feature maps by frozen networks: decoding, computing, rounding, for a store or on the fly."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate.utils import gather_object

from faster_lib.data.datasets import VideoClips
from faster_lib.data.loading import decode
from faster_lib.inference import PreparedBackbone, fold_batch_norm, keep_freed_memory, prepare_for_inference
from faster_lib.models.backbones import Backbone
from faster_lib.models.clips import normalise
from faster_lib.profiles import Profile
from faster_lib.store import Entry
from faster_lib.training.feature_store import Maps, Request, scale_of
from faster_lib.training.ranks import complete_together, find_ranks


@contextmanager
def limited_threads(most: int) -> Iterator[int]:
    """Let PyTorch use at most so many threads, and at least one, and tell how many; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, most)))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[int]:
    """Let PyTorch use one thread, as each of several processes should; afterwards as many as before."""
    return limited_threads(1)


def freeze(network: Backbone, device: torch.device, *, is_compiled: bool) -> Backbone | PreparedBackbone:
    """Give a copy of a trained network in the form that computes feature maps fastest.

    Compiling takes a minute or so in every process; only networks near the paper's size earn that back.
    """
    if is_compiled:
        return prepare_for_inference(network, device=device)
    return fold_batch_norm(network).to(device, memory_format=torch.channels_last_3d)


def map_shape(network: Backbone, clip_frames: int, crop_px: int) -> tuple[int, ...]:
    """Find the shape (C, l, h, w) of a network's feature map of one clip; nothing is computed."""
    clip = torch.zeros(1, 3, clip_frames, crop_px, crop_px, device="meta")
    return tuple(copy.deepcopy(network).to("meta").features(clip).shape[1:])


@torch.inference_mode()
def compute_features(networks: Sequence[Backbone], views: torch.Tensor, mixed_precision: str) -> list[torch.Tensor]:
    """Compute the feature maps of one video's clips by each network, on the networks' device.

    Shape: (views, N, 3, L, H, W) uint8 -> one (views, N, C, l, h, w) float16 for each network
    Raises: FloatingPointError if a value does not fit half precision.
    """
    device = next(networks[0].parameters()).device
    clips = normalise(views.to(device).flatten(0, 1).contiguous(memory_format=torch.channels_last_3d))
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
        maps = [network.features(clips).contiguous().half() for network in networks]
    if not all(torch.isfinite(features).all() for features in maps):
        raise FloatingPointError("a feature is not finite in half precision; was the network trained?")
    return [features.unflatten(0, views.shape[:2]) for features in maps]


def square_sum(features: torch.Tensor) -> torch.Tensor:
    """Add up the squares of one video's features, in double precision."""
    return features.double().square().sum().cpu()


def decoders(profile: Profile, device: torch.device) -> int:
    """Give how many threads decode for one that computes: those of the profile beside a GPU, none on a CPU."""
    return profile.loading.workers if device.type == "cuda" else 0


class LiveFeatures:
    """The feature maps of a split's videos by both networks, computed whenever they are asked for, and not kept.

    They are those that a store would hold, to the bit on a CPU. For that all clips of all views of a video are computed
    together, as for a store, whichever are asked for: a batch of another size has other last digits.

    Args:
        networks: the expensive and the cheap one, trained.
        entry: where the scales are kept, which need all videos once.
    """

    def __init__(self, networks: Sequence[Backbone], clips: VideoClips, profile: Profile, entry: Entry):
        keep_freed_memory()
        self.clips, self.profile, self.entry = clips, profile, entry
        self.targets = torch.tensor(clips.videos.targets)
        self.num_views, self.num_clips = max(clips.views, 1), clips.num_clips
        self.device = find_ranks().device
        self.networks = [freeze(network, self.device, is_compiled=profile.loading.compiled) for network in networks]
        self.shapes = [map_shape(network, clips.clip_frames, profile.data.crop_px) for network in networks]

    def read_each(self, requests: Iterable[Request]) -> Iterator[Maps]:
        """Compute some clips' maps of some videos for each request, rounded to half precision and turned to single.

        Shape: videos (B,), views (B,), clips (B, n) -> (B, n, C, l, h, w) of the expensive, of the cheap network
        """
        requests, ahead = itertools.tee(requests)
        wanted = (video for videos, *_ in ahead for video in videos.tolist())
        decoded = decode(self.clips, wanted, decoders(self.profile, self.device))
        for videos, views, clips in requests:
            found = [torch.empty(*clips.shape, *shape, device=self.device) for shape in self.shapes]
            for row, (seen, _) in enumerate(itertools.islice(decoded, len(videos))):
                for maps, computed in zip(found, self._compute(seen), strict=True):
                    maps[row] = computed[views[row], clips[row]]
            yield tuple(found)

    def _compute(self, views: torch.Tensor) -> list[torch.Tensor]:
        with one_thread():
            return compute_features(self.networks, views, self.profile.engine.mixed_precision)

    @property
    def scales(self) -> tuple[float, float]:
        """By which the maps of (expensive, cheap) are multiplied to have a mean square of 1; found once and kept."""
        complete_together(self.entry, self._find_scales)
        return tuple(self.entry.record["measures"]["scales"])

    def _find_scales(self) -> dict[str, list[float]]:
        ranks = find_ranks()
        mine = range(ranks.process_index, len(self.clips), ranks.num_processes)
        decoded = decode(self.clips, mine, decoders(self.profile, self.device))
        sums = torch.zeros(2, len(self.clips), dtype=torch.float64)
        for video, (views, _) in zip(mine, decoded, strict=True):
            sums[:, video] = torch.stack([square_sum(maps) for maps in self._compute(views)])
        sums = sum(gather_object([sums]))  # each video's is that of one rank, and 0 in the others
        shapes = [(self.num_views, self.num_clips, *shape) for shape in self.shapes]
        return {"scales": [scale_of(part, shape) for part, shape in zip(sums, shapes, strict=True)]}
