"""The feature maps of frozen networks for all clips of a split, kept for stage 2 and for the test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save

from faster_lib.backbones import Backbone, fold_batch_norm
from faster_lib.data.datasets import VideoClips
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.transforms import normalise
from faster_lib.jobs import run_all
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import Entry, write_whole

RECIPE_FEATURES = 2  # raised whenever the same networks and videos would give other feature maps


class TrainedBackbone(NamedTuple):
    """A frozen clip network and what tells it from others."""

    name: str
    clip_frames: int
    network: Backbone
    weights_sha256: str
    seconds: float  # of training; after an interruption, since it went on
    pretrained: "TrainedBackbone | None" = None  # the network that it started from


def features_entry(
    profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int, *, runs: Path = RUNS
) -> Entry:
    """Name the place of a split's feature maps; they depend on the weights and on how clips are cut."""
    depends = {
        "recipe": RECIPE_FEATURES,
        "weights": backbone.weights_sha256,
        "clip_frames": backbone.clip_frames,
        "num_clips": num_clips,
        "views": _views(profile, split),
        "seed": profile.backbone_training.seed,
        **what_videos_depend_on(profile, split, runs=runs),
    }
    name = backbone.name.replace("/", "-")
    return Entry("features", f"{name}-L{backbone.clip_frames}-N{num_clips}-{split}", depends, runs)


class Features(NamedTuple):
    """Feature maps (videos, views, N, C, l, h, w), float16, of both networks, and the classes (videos,).

    C, l, h and w may be others for each network.
    """

    expensive: torch.Tensor
    cheap: torch.Tensor
    targets: torch.Tensor


class FeaturePair:
    """The feature maps of a pair of networks over the same clips, computed or loaded when first asked for."""

    def __init__(self, profile: Profile, expensive: TrainedBackbone, cheap: TrainedBackbone, *, runs: Path = RUNS):
        self.profile, self.expensive, self.cheap, self.runs = profile, expensive, cheap, runs
        self._loaded: dict[tuple[str, int], Features] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_loaded": {}}  # another process maps the shards by itself

    @property
    def num_clips(self) -> int:
        """N, such that L x N is the profile's number of frames."""
        return num_clips_covering(self.profile.data.video_frames, self.expensive.clip_frames)

    @cached_property
    def pretrained(self) -> "FeaturePair | None":
        """The pair that this one started from, in the profile that it is pre-trained in."""
        if self.profile.pretraining is None:
            return None
        networks = (self.expensive.pretrained, self.cheap.pretrained)
        return FeaturePair(load_profile(self.profile.pretraining.profile), *networks, runs=self.runs)

    def prepare(self, *splits: str, clips: Sequence[int] = ()) -> None:
        """Compute what is missing of some splits' feature maps, with N clips a video for each N; nothing is loaded.

        Training always has the largest N: stage 2 draws fewer of those.
        """
        for split in splits:
            for num_clips in (clips if split != "train" else ()) or [self.num_clips]:
                extract_features(self.profile, (self.expensive, self.cheap), split, num_clips, runs=self.runs)

    def load(self, split: str, num_clips: int | None = None) -> Features:
        """Give a split's feature maps, both networks' of the same clips; the largest N unless another is asked for."""
        num_clips = num_clips or self.num_clips
        if (split, num_clips) not in self._loaded:
            expensive, targets = load_features(self.profile, self.expensive, split, num_clips, runs=self.runs)
            cheap, _ = load_features(self.profile, self.cheap, split, num_clips, runs=self.runs)
            self._loaded[split, num_clips] = Features(expensive, cheap, targets)
        return self._loaded[split, num_clips]

    def census(self, split: str) -> dict[str, int]:
        """Count a split's videos: expected by its lists, used, missing, corrupt."""
        return load_videos(self.profile, split, runs=self.runs).census

    @cached_property
    def scales(self) -> tuple[float, float]:
        """By which the training features of (expensive, cheap) are multiplied to have a mean square of 1."""
        train = self.load("train")
        return tuple(1.0 / maps.float().square().mean().sqrt().item() for maps in (train.expensive, train.cheap))


def extract_features(
    profile: Profile, backbones: Sequence[TrainedBackbone], split: str, num_clips: int, *, runs: Path = RUNS
) -> list[Entry]:
    """Compute a split's feature maps by some networks, unless they are there; missing shards alone are computed.

    A video is decoded once for all networks. The training split has `views` random samplings of N clips, the others one
    uniform sampling.
    """
    entries = [features_entry(profile, backbone, split, num_clips, runs=runs) for backbone in backbones]
    missing = [(b, entry) for b, entry in zip(backbones, entries, strict=True) if not entry.is_complete]

    def make() -> dict[str, int]:
        clips = VideoClips(
            load_videos(profile, split, runs=runs, is_training=split == "train"),
            profile.data,
            clip_frames=backbones[0].clip_frames,
            num_clips=num_clips,
            views=_views(profile, split),
            seed=profile.backbone_training.seed,
        )
        return {"shards": _extract(missing, clips, profile), "videos": len(clips)}

    for _, entry in missing:  # the first one makes the shards of all
        entry.complete(make)
    return entries


def load_features(
    profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int, *, runs: Path = RUNS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a split's feature maps, computed first where they are missing.

    Shape: -> features (videos, views, N, C, l, h, w) float16, targets (videos,)
    """
    (entry,) = extract_features(profile, [backbone], split, num_clips, runs=runs)
    shards = [load_file(path) for path in sorted(entry.path.glob("shard_*.safetensors"))]
    expected = entry.record["measures"]["videos"]
    if sum(len(shard["targets"]) for shard in shards) != expected:
        raise RuntimeError(f"{entry.path} does not hold the features of {expected} videos; delete that folder")
    return tuple(torch.cat([shard[name] for shard in shards]) for name in ("features", "targets"))


def _views(profile: Profile, split: str) -> int:
    return profile.aggregator_training.views if split == "train" else 0


def _extract(parts: Sequence[tuple[TrainedBackbone, Entry]], clips: VideoClips, profile: Profile) -> int:
    """Compute the missing shards side by side, each with one thread, so that their number changes no result."""
    size = profile.loading.shard_videos
    missing: dict[range, list[tuple[int, Path]]] = {}  # of each stretch of videos: which part, and its shard
    for number, first in enumerate(range(0, len(clips), size)):
        paths = [entry.path / f"shard_{number:05d}.safetensors" for _, entry in parts]
        if absent := [(place, path) for place, path in enumerate(paths) if not path.is_file()]:
            missing[range(first, min(first + size, len(clips)))] = absent
    if missing:
        for _, entry in parts:
            entry.path.mkdir(parents=True, exist_ok=True)
        networks = [fold_batch_norm(part.network).to(memory_format=torch.channels_last_3d) for part, _ in parts]
        jobs = [
            ([(networks[place], path) for place, path in absent], clips, videos) for videos, absent in missing.items()
        ]
        title = f"extract {' and '.join(entry.label for _, entry in parts)}"
        run_all(_write_shards, jobs, workers=profile.loading.workers, title=title, unit="shard")
    return -(-len(clips) // size)


def _write_shards(wanted: Sequence[tuple[Backbone, Path]], clips: VideoClips, videos: range) -> None:
    with one_thread():
        features, targets = [[] for _ in wanted], []
        for views, target in map(clips.__getitem__, videos):
            for kept, (network, _) in zip(features, wanted, strict=True):
                kept.append(compute_features(network, views))
            targets.append(target)
        for kept, (_, path) in zip(features, wanted, strict=True):
            write_whole(path, save({"features": torch.stack(kept), "targets": torch.tensor(targets)}))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread, as each of several processes should; afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
