"""The feature maps of frozen networks for all clips of a split, for stage 2 and for the test: stored or on the fly."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from faster_lib.data.datasets import VideoClips
from faster_lib.data.loading import decode
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.transforms import RECIPE_TRANSFORM
from faster_lib.data.video import DECODER
from faster_lib.inference import keep_freed_memory
from faster_lib.jobs import run_all
from faster_lib.models.backbones import Backbone
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import Entry
from faster_lib.training.feature_maps import (
    LiveFeatures,
    compute_features,
    decoders,
    freeze,
    map_shape,
    one_thread,
    square_sum,
)
from faster_lib.training.feature_store import (
    Product,
    StoredFeatures,
    check_disk,
    drop_damaged,
    find_gaps,
    list_shards,
    write_shard,
)
from faster_lib.training.ranks import complete_together, find_ranks, tell_all

RECIPE_FEATURES = 3  # raised whenever the same networks and videos would give other feature maps


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
    """Name the place of a split's feature maps; they depend on the weights and on how clips are read and cut."""
    depends = {
        "recipe_features": RECIPE_FEATURES,
        "weights": backbone.weights_sha256,
        "clip_frames": backbone.clip_frames,
        "num_clips": num_clips,
        "views": _views(profile, split),
        "seed": profile.backbone_training.seed,
        "decoder": DECODER,
        "transform": RECIPE_TRANSFORM,
        "mixed_precision": profile.engine.mixed_precision,
        **profile.loading.numerics,
        **what_videos_depend_on(profile, split, runs=runs),
    }
    name = backbone.name.replace("/", "-")
    return Entry("features", f"{name}-L{backbone.clip_frames}-N{num_clips}-{split}", depends, runs)


class FeaturePair:
    """The feature maps of a pair of networks over the same clips, computed when first asked for."""

    def __init__(self, profile: Profile, expensive: TrainedBackbone, cheap: TrainedBackbone, *, runs: Path = RUNS):
        self.profile, self.expensive, self.cheap, self.runs = profile, expensive, cheap, runs
        self._opened: dict[tuple[str, int], StoredFeatures | LiveFeatures] = {}  # goes along to other processes

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
        """Compute what is missing of some splits' feature maps, with N clips a video for each N, and verify all.

        Training always has the largest N: stage 2 draws fewer of those.
        """
        for split in splits:
            for num_clips in (clips if split != "train" else ()) or [self.num_clips]:
                self.open(split, num_clips)

    def open(self, split: str, num_clips: int | None = None) -> StoredFeatures | LiveFeatures:
        """Give what reads a split's feature maps, both networks' of the same clips.

        There are as many clips a video as fit the profile's frames, unless another number is asked for.
        """
        key = (split, num_clips or self.num_clips)
        if key not in self._opened:
            self._opened[key] = self._open(*key)
        return self._opened[key]

    def _open(self, split: str, num_clips: int) -> StoredFeatures | LiveFeatures:
        backbones = (self.expensive, self.cheap)
        if self.profile.loading.features == "stored":
            return StoredFeatures(extract_features(self.profile, backbones, split, num_clips, runs=self.runs))
        entries = [features_entry(self.profile, backbone, split, num_clips, runs=self.runs) for backbone in backbones]
        scales = Entry("features", f"scales-{entries[0].label}", {"scales": [e.key for e in entries]}, self.runs)
        clips = _clips(self.profile, self.expensive, split, num_clips, self.runs)
        return LiveFeatures([backbone.network for backbone in backbones], clips, self.profile, scales)

    def census(self, split: str) -> dict[str, int]:
        """Count a split's videos: expected by its lists, used, missing, corrupt."""
        return load_videos(self.profile, split, runs=self.runs).census

    @cached_property
    def scales(self) -> tuple[float, float]:
        """By which the training features of (expensive, cheap) are multiplied to have a mean square of 1."""
        return self.open("train").scales


def extract_features(
    profile: Profile, backbones: Sequence[TrainedBackbone], split: str, num_clips: int, *, runs: Path = RUNS
) -> list[Entry]:
    """Compute a split's feature maps by some networks, unless they are there; missing and damaged shards alone.

    A video is decoded once for all networks. The training split has `views` random samplings of N clips, the others one
    uniform sampling. Several ranks share the shards out.

    Raises: OSError if they do not fit the disk.
    """
    entries = [features_entry(profile, backbone, split, num_clips, runs=runs) for backbone in backbones]
    parts = list(zip(backbones, entries, strict=True))

    def make() -> dict[str, int]:
        clips = _clips(profile, backbones[0], split, num_clips, runs)
        _extract(parts, clips, profile)
        return {"videos": len(clips)}

    for entry in entries:
        drop_damaged(entry)
    for entry in entries:  # the first one makes the shards of all
        complete_together(entry, make)
    return entries


def _clips(profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int, runs: Path) -> VideoClips:
    return VideoClips(
        load_videos(profile, split, runs=runs, is_training=split == "train"),
        profile.data,
        clip_frames=backbone.clip_frames,
        num_clips=num_clips,
        views=_views(profile, split),
        seed=profile.backbone_training.seed,
    )


def _views(profile: Profile, split: str) -> int:
    return profile.aggregator_training.views if split == "train" else 0


def _extract(parts: Sequence[tuple[TrainedBackbone, Entry]], clips: VideoClips, profile: Profile) -> None:
    """Compute this rank's share of the missing shards.

    On a CPU they are made side by side, each with one thread, so that their number changes no result.
    """
    ranks, missing = find_ranks(), {}
    for place, (_, entry) in enumerate(parts):
        entry.path.mkdir(parents=True, exist_ok=True)
        for videos in tell_all(find_gaps(list_shards(entry.path), len(clips), profile.loading.shard_videos)):
            missing.setdefault(videos, []).append(place)
    if not missing:
        return
    check_disk(parts[0][1].path, [_size(parts, place, clips, missing) for place in range(len(parts))])
    is_compiled = profile.loading.compiled
    networks = [freeze(backbone.network, ranks.device, is_compiled=is_compiled) for backbone, _ in parts]
    jobs = [
        ([(networks[place], parts[place][1].path) for place in places], clips, videos, profile)
        for videos, places in list(missing.items())[ranks.process_index :: ranks.num_processes]
    ]
    title = f"extract {' and '.join(entry.label for _, entry in parts)}"
    workers = 1 if ranks.device.type == "cuda" else profile.loading.workers
    quiet = {} if ranks.is_main_process else {"disable": True}  # False would overrule TQDM_DISABLE
    run_all(_write_shards, jobs, workers=workers, title=title, unit="shard", **quiet)


def _size(parts: Sequence[tuple], place: int, clips: VideoClips, missing: dict[range, list[int]]) -> Product:
    videos = sum(len(videos) for videos, places in missing.items() if place in places)
    shape = map_shape(parts[place][0].network, clips.clip_frames, clips.data.crop_px)
    what = ((videos, "videos"), (max(clips.views, 1), "views"), (clips.num_clips, "clips"))
    letters = zip(shape, ("channels", "frames", "rows", "columns"), strict=True)
    return Product((*what, *letters, (2, f"bytes of {parts[place][0].name}")))


def _write_shards(wanted: Sequence[tuple[Backbone, Path]], clips: VideoClips, videos: range, profile: Profile) -> None:
    device = next(wanted[0][0].parameters()).device
    keep_freed_memory()
    with one_thread():
        features, targets = [[] for _ in wanted], []
        for views, target in decode(clips, videos, decoders(profile, device)):
            maps = compute_features([network for network, _ in wanted], views, profile.engine.mixed_precision)
            for kept, computed in zip(features, maps, strict=True):
                kept.append(computed.cpu())
            targets.append(target)
        for kept, (_, folder) in zip(features, wanted, strict=True):
            sums = torch.stack([square_sum(maps) for maps in kept])
            tensors = {"features": torch.stack(kept), "targets": torch.tensor(targets), "square_sums": sums}
            write_shard(folder, videos, tensors)
