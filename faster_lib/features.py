"""The feature maps of frozen networks for all clips of a split, kept for stage 2 and for the test."""

import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from faster_lib.backbones import Backbone
from faster_lib.data.datasets import VideoClips
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.transforms import normalise
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile
from faster_lib.store import Entry, write_whole

RECIPE_FEATURES = 1  # raised whenever the same networks and videos would give other feature maps


class TrainedBackbone(NamedTuple):
    """A frozen clip network and what tells it from others."""

    name: str
    clip_frames: int
    network: Backbone
    weights_sha256: str
    seconds: float  # of training; after an interruption, since it went on


def features_entry(profile: Profile, backbone: TrainedBackbone, split: str, *, runs: Path = RUNS) -> Entry:
    """Name the place of a split's feature maps; they depend on the weights and on how clips are cut."""
    depends = {
        "recipe": RECIPE_FEATURES,
        "weights": backbone.weights_sha256,
        "clip_frames": backbone.clip_frames,
        "views": _views(profile, split),
        "seed": profile.backbone_training.seed,
        **what_videos_depend_on(profile, split),
    }
    return Entry("features", f"{backbone.name}-L{backbone.clip_frames}-{split}", depends, runs)


class Features(NamedTuple):
    """Feature maps (videos, views, N, C, l, h, w), float16, of both networks, and the classes (videos,)."""

    expensive: torch.Tensor
    cheap: torch.Tensor
    targets: torch.Tensor


class FeaturePair:
    """The feature maps of a pair of networks over the same clips, computed or loaded when first asked for."""

    def __init__(self, profile: Profile, expensive: TrainedBackbone, cheap: TrainedBackbone, *, runs: Path = RUNS):
        self.profile, self.expensive, self.cheap, self.runs = profile, expensive, cheap, runs
        self._loaded: dict[str, Features] = {}

    @property
    def num_clips(self) -> int:
        """N, such that L x N is the profile's number of frames."""
        return num_clips_covering(self.profile.data.video_frames, self.expensive.clip_frames)

    def prepare(self, *splits: str) -> None:
        """Compute what is missing of some splits' feature maps; nothing is loaded that is there already."""
        for split in splits:
            for backbone in (self.expensive, self.cheap):
                if not features_entry(self.profile, backbone, split, runs=self.runs).is_complete:
                    load_features(self.profile, backbone, split, runs=self.runs)

    def load(self, split: str) -> Features:
        """Give a split's feature maps, both networks' of the same clips."""
        if split not in self._loaded:
            expensive, targets = load_features(self.profile, self.expensive, split, runs=self.runs)
            cheap, _ = load_features(self.profile, self.cheap, split, runs=self.runs)
            self._loaded[split] = Features(expensive, cheap, targets)
        return self._loaded[split]

    @cached_property
    def scales(self) -> tuple[float, float]:
        """By which the training features of (expensive, cheap) are multiplied to have a mean square of 1."""
        train = self.load("train")
        return tuple(1.0 / maps.float().square().mean().sqrt().item() for maps in (train.expensive, train.cheap))


def load_features(
    profile: Profile, backbone: TrainedBackbone, split: str, *, runs: Path = RUNS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a split's feature maps, or load them; missing shards alone are computed.

    The training split has `views` random samplings of N clips, the others one uniform sampling. L x N is the
    profile's number of frames.

    Shape: -> features (videos, views, N, C, l, h, w) float16, targets (videos,)
    """
    entry = features_entry(profile, backbone, split, runs=runs)
    if not entry.is_complete:
        clips = VideoClips(
            load_videos(profile, split, runs=runs),
            profile.data,
            clip_frames=backbone.clip_frames,
            num_clips=num_clips_covering(profile.data.video_frames, backbone.clip_frames),
            views=_views(profile, split),
            seed=profile.backbone_training.seed,
        )
        with entry.making() as measures:
            if not entry.is_complete:
                measures["shards"] = _extract(backbone.network, clips, profile, entry)
                measures["videos"] = len(clips)
    shards = [load_file(path) for path in sorted(entry.path.glob("shard_*.safetensors"))]
    expected = entry.record["measures"]["videos"]
    if sum(len(shard["targets"]) for shard in shards) != expected:
        raise RuntimeError(f"{entry.path} does not hold the features of {expected} videos; delete that folder")
    return tuple(torch.cat([shard[key] for shard in shards]) for key in ("features", "targets"))


def _views(profile: Profile, split: str) -> int:
    return profile.aggregator_training.views if split == "train" else 0


def _extract(network: Backbone, clips: VideoClips, profile: Profile, entry: Entry) -> int:
    size = profile.loading.shard_videos
    paths = [entry.path / f"shard_{number:05d}.safetensors" for number in range(-(-len(clips) // size))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    for number in tqdm(missing, desc=f"extract {entry.label}", unit="shard"):
        part = Subset(clips, range(number * size, min((number + 1) * size, len(clips))))
        loader = DataLoader(part, batch_size=None, num_workers=profile.loading.workers)
        features, targets = zip(*((compute_features(network, views), target) for views, target in loader), strict=True)
        write_whole(paths[number], save({"features": torch.stack(features), "targets": torch.tensor(targets)}))
    return len(paths)


@torch.inference_mode()
def compute_features(network: Backbone, views: torch.Tensor) -> torch.Tensor:
    """Compute the feature maps of one video's clips.

    Shape: (views, N, 3, L, H, W) uint8 -> (views, N, C, l, h, w) float16
    Raises: FloatingPointError if a value does not fit half precision.
    """
    clips = normalise(views.flatten(0, 1)).contiguous(memory_format=torch.channels_last_3d)
    features = network.features(clips).contiguous().half()
    if not torch.isfinite(features).all():
        raise FloatingPointError("a feature is not finite in half precision; was the network trained?")
    return features.unflatten(0, views.shape[:2])
