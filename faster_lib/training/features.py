"""The feature maps of frozen networks for all clips of a split: stored in shards, or computed when asked for."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from faster_lib.data.datasets import VideoClips, num_clips_covering
from faster_lib.data.index import clips_key_facts, load_videos, videos_key
from faster_lib.data.transforms import RECIPE_TRANSFORM
from faster_lib.data.video import DECODER
from faster_lib.inference import fold_batch_norm, keep_freed_memory, prepare_for_inference
from faster_lib.models.backbones import ClipNetwork
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import Entry, hold
from faster_lib.training.ranks import find_ranks, in_turns, limited_threads
from faster_lib.training.shards import ShardReader, check_disk, drop_damaged, find_gaps, list_shards, write_shard
from faster_lib.training.stage1 import TrainedBackbone
from faster_lib.workers import load_ahead, run_all

RECIPE_FEATURES = 4  # raised whenever the same networks and videos would give other feature maps

Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # videos (B,), a view of each (B,), clips of each (B, n)


def features_entry(profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int) -> Entry:
    """Name the place of a split's feature maps: the network, the videos, and how clips are read and cut."""
    depends = {
        "recipe": RECIPE_FEATURES,
        "network": backbone.entry.key,
        "videos": videos_key(profile, split, runs=backbone.entry.runs),
        "num_clips": num_clips,
        "views": profile.aggregator_training.views if split == "train" else 0,
        "seed": profile.backbone_training.seed,
        "decoder": DECODER,
        "transform": RECIPE_TRANSFORM,
        "clips": clips_key_facts(profile),
        "mixed_precision": profile.engine.mixed_precision,
        "compiled": profile.loading.compiled,
    }
    depends |= {"bits": 8} if profile.loading.features == "stored_8_bit" else {}
    label = f"{backbone.entry.label}-N{num_clips}-{split}"
    return Entry(profile.name, "features", label, depends, backbone.entry.runs)


class FeaturePair:
    """The feature maps of an expensive and a cheap network over the same clips, computed when first asked for."""

    def __init__(self, profile: Profile, expensive: TrainedBackbone, cheap: TrainedBackbone, *, runs: Path = RUNS):
        self.profile, self.expensive, self.cheap, self.runs = profile, expensive, cheap, runs
        self._opened: dict[tuple[str, int], Features] = {}  # goes along to other processes

    @property
    def clip_frames(self) -> int:
        """L, the frames of a clip."""
        return self.expensive.clip_frames

    @property
    def num_clips(self) -> int:
        """N, such that L x N is the profile's number of frames."""
        return num_clips_covering(self.profile.data.video_frames, self.clip_frames)

    @cached_property
    def pretrained(self) -> "FeaturePair | None":
        """The pair that this one started from, in the profile that it is pre-trained in."""
        first, networks = self.profile.networks.pretrained_in, (self.expensive.pretrained, self.cheap.pretrained)
        return first and FeaturePair(load_profile(first), *networks, runs=self.runs)

    def open(self, split: str, num_clips: int | None = None) -> "Features":
        """Give what reads a split's feature maps, and compute those that are missing; verified once.

        N is as many clips as fit the profile's frames unless asked otherwise.
        """
        key = (split, num_clips or self.num_clips)
        if key not in self._opened:
            what = (self.profile, (self.expensive, self.cheap), *key)
            is_stored = self.profile.loading.features != "on_the_fly"
            self._opened[key] = StoredFeatures(extract_features(*what)) if is_stored else LiveFeatures(*what)
        return self._opened[key]

    @cached_property
    def scales(self) -> tuple[float, float]:
        """By which the training features of (expensive, cheap) are multiplied to have a mean square of 1."""
        return self.open("train").scales


def extract_features(profile: Profile, backbones: Sequence[TrainedBackbone], split: str, num_clips: int) -> list[Entry]:
    """Compute a split's feature maps by some networks, unless they are there; missing and damaged shards alone.

    A video is decoded once for all networks. The training split has `views` random samplings of N clips, the others one
    uniform sampling. Any number of processes share the shards out over their locks; on a CPU each makes some side by
    side, by one thread each, so that their number changes no result.

    Raises: OSError if they do not fit the disk.
    """
    entries = [features_entry(profile, backbone, split, num_clips) for backbone in backbones]
    for entry in entries:
        drop_damaged(entry)
    if all(entry.is_complete for entry in entries):
        return entries
    clips, missing = _clips(profile, backbones[0], split, num_clips), defaultdict(list)
    size_bytes = 1 if profile.loading.features == "stored_8_bit" else 2
    for place, entry in enumerate(entries):
        entry.path.mkdir(parents=True, exist_ok=True)
        for videos in find_gaps(list_shards(entry.path), len(clips), profile.loading.shard_videos):
            missing[videos].append(place)
    sizes, networks = [], {}
    for place in sorted({place for places in missing.values() for place in places}):
        count = sum(len(videos) for videos, places in missing.items() if place in places)
        network = backbones[place].network
        size = network.feature_size((clips.clip_frames, profile.data.crop_px, profile.data.crop_px))
        sizes.append((count, max(clips.views, 1), num_clips, network.channels, *size, size_bytes))
        networks[place] = freeze(network, profile)
    check_disk(entries[0].path, sizes)
    jobs = [([(networks[n], entries[n].path) for n in places], clips, v, profile) for v, places in missing.items()]
    workers, title = profile.loading.workers, f"extract {' and '.join(entry.label for entry in entries)}"
    bar = {"workers": 1 if find_ranks().device.type == "cuda" else workers, "unit": "shard", "title": title}
    run_all(_write_shards, in_turns(jobs), **bar, is_shown=find_ranks().is_main_process)
    for entry in entries:
        entry.complete(lambda: {"videos": len(clips)})
        for lock in entry.path.glob("*.lock"):
            lock.unlink(missing_ok=True)
    return entries


def _clips(profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int) -> VideoClips:
    return VideoClips(
        load_videos(profile, split, runs=backbone.entry.runs, is_training=split == "train"),
        profile.data,
        clip_frames=backbone.clip_frames,
        num_clips=num_clips,
        views=profile.aggregator_training.views if split == "train" else 0,
        seed=profile.backbone_training.seed,
    )


def freeze(network: ClipNetwork, profile: Profile) -> ClipNetwork:
    """Give a copy of a trained network, on this rank's device, in the form that computes feature maps fastest.

    Compiling takes a minute or so in every process; only networks near the paper's size earn that back.
    """
    device = find_ranks().device
    if profile.loading.compiled:
        dtype = torch.bfloat16 if profile.engine.mixed_precision == "bf16" else torch.float32
        return prepare_for_inference(network, dtype=dtype, device=device)
    return fold_batch_norm(network).to(device, memory_format=torch.channels_last_3d)


@torch.inference_mode()
def compute_features(networks: Sequence[ClipNetwork], views: torch.Tensor, mixed_precision: str) -> list[torch.Tensor]:
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


def _compute_each(
    networks: Sequence[ClipNetwork], clips: VideoClips, videos: Iterable[int], profile: Profile
) -> Iterator[list[torch.Tensor]]:
    """Compute the feature maps of one video after the other, by one thread; beside a GPU others decode ahead."""
    keep_freed_memory()
    workers = profile.loading.workers if next(networks[0].parameters()).is_cuda else min(1, profile.loading.workers)
    for item in load_ahead(clips.__getitem__, videos, workers):
        with limited_threads(1):
            maps = compute_features(networks, item.clips, profile.engine.mixed_precision)
        yield maps


def _scale_of(square_sums: torch.Tensor, numbers: int) -> float:
    """Give the factor that brings features to a mean square of 1: of each video, the sum of squares and how many."""
    return (square_sums.sum() / (len(square_sums) * numbers)).rsqrt().item()


def _write_shards(wanted: list[tuple[ClipNetwork, Path]], clips: VideoClips, videos: range, profile: Profile) -> None:
    """Write the shards of some videos, by each network into its folder, unless another process has written them."""
    with limited_threads(1), hold(wanted[0][1] / f"{videos.start}.lock", lambda: "another process"):
        wanted = [each for each in wanted if videos not in [shard.videos for shard in list_shards(each[1])]]
        if not wanted:
            return
        maps = _compute_each([network for network, _ in wanted], clips, videos, profile)
        kept = [[each.cpu() for each in of_video] for of_video in maps]
        targets = torch.tensor([clips.videos.videos[video].target for video in videos])
        for (_, folder), features in zip(wanted, zip(*kept, strict=True), strict=True):
            sums = torch.stack([each.double().square().sum() for each in features])
            tensors = {"features": torch.stack(features), "targets": targets, "square_sums": sums}
            write_shard(folder, videos, tensors, is_8_bit=profile.loading.features == "stored_8_bit")


def _places(letter: str, schedules: Sequence[Schedule]) -> list[int]:
    """List the clips that a network sees in one schedule or another."""
    return sorted({t for schedule in schedules for t, own in enumerate(schedule) if own == letter})


class StoredFeatures:
    """The feature maps of a split's videos by the expensive and the cheap network, in shards that have been verified.

    Shape: a request for n clips of B videos -> of each schedule n maps (B, C, l, h, w) float32, on this rank's device
    """

    def __init__(self, entries: Sequence[Entry]):
        self.stores = {letter: ShardReader(entry.path) for letter, entry in zip("EC", entries, strict=True)}
        self.targets = self.stores["E"].targets
        self.num_views, self.num_clips = self.stores["E"].shape[:2]

    def read_each(self, requests: Iterable[Request], schedules: Sequence[Schedule]) -> Iterator[list[list[Tensor]]]:
        """Read some clips' maps of some videos for each request, once for all schedules: of each, what it sees."""
        seen, device = {letter: _places(letter, schedules) for letter in self.stores}, find_ranks().device
        for videos, views, clips in requests:
            found = {}
            for letter, places in seen.items():
                if places:
                    maps = self.stores[letter].read(videos, views, clips[:, places]).to(device).float()
                    found |= zip(((letter, t) for t in places), maps.unbind(1), strict=True)
            yield [[found[own, t] for t, own in enumerate(schedule)] for schedule in schedules]

    @property
    def scales(self) -> tuple[float, float]:
        """By which the maps of (expensive, cheap) are multiplied to have a mean square of 1."""
        return tuple(_scale_of(store.square_sums, math.prod(store.shape)) for store in self.stores.values())


class LiveFeatures:
    """The feature maps of a split's videos, computed on this rank's device whenever they are asked for, and not kept.

    They are those that a store would hold, to the bit on a CPU. For that all clips of all views of a video are computed
    together, as for a store, whichever are asked for: a batch of another size has other last digits.

    Shape: as `StoredFeatures`
    """

    def __init__(self, profile: Profile, backbones: Sequence[TrainedBackbone], split: str, num_clips: int):
        self.profile, self.clips = profile, _clips(profile, backbones[0], split, num_clips)
        self.targets = torch.tensor([video.target for video in self.clips.videos.videos])
        self.num_views, self.num_clips = max(self.clips.views, 1), num_clips
        self.networks = {letter: freeze(b.network, profile) for letter, b in zip("EC", backbones, strict=True)}
        entries = [features_entry(profile, backbone, split, num_clips) for backbone in backbones]
        depends = {"scales": [entry.key for entry in entries]}
        self.entry = Entry(profile.name, "features", f"scales-{entries[0].label}", depends, entries[0].runs)

    def read_each(self, requests: Iterable[Request], schedules: Sequence[Schedule]) -> Iterator[list[list[Tensor]]]:
        """Compute what `StoredFeatures.read_each` reads."""
        seen = {letter: places for letter in self.networks if (places := _places(letter, schedules))}
        requests, ahead = itertools.tee(requests)
        computed = self._compute((video for videos, *_ in ahead for video in videos.tolist()), list(seen))
        for videos, views, clips in requests:
            found = defaultdict(list)
            for maps, view, chosen in zip(itertools.islice(computed, len(videos)), views, clips, strict=True):
                for (letter, places), of_video in zip(seen.items(), maps, strict=True):
                    for t in places:
                        found[letter, t].append(of_video[view, chosen[t]])
            stacked = {key: torch.stack(maps).float() for key, maps in found.items()}
            yield [[stacked[own, t] for t, own in enumerate(schedule)] for schedule in schedules]

    def _compute(self, videos: Iterable[int], letters: Sequence[str]) -> Iterator[list[torch.Tensor]]:
        return _compute_each([self.networks[letter] for letter in letters], self.clips, videos, self.profile)

    @property
    def scales(self) -> tuple[float, float]:
        """By which the maps of (expensive, cheap) are multiplied to have a mean square of 1; found once and kept."""
        self.entry.complete(self._find_scales)
        return tuple(self.entry.record["measures"]["scales"])

    def _find_scales(self) -> dict[str, list[float]]:
        sums = []
        for maps in self._compute(range(len(self.clips)), "EC"):
            sums.append(torch.stack([each.double().square().sum().cpu() for each in maps]))
        numbers = [each.numel() for each in maps]
        return {"scales": [_scale_of(*each) for each in zip(torch.stack(sums).unbind(1), numbers, strict=True)]}


Features = StoredFeatures | LiveFeatures
