"""The feature maps of frozen networks for all clips of a split: stored in shards, or computed when asked for."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import gather_object

from faster_lib.data.datasets import Census, VideoClips, decode, num_clips_covering, run_all
from faster_lib.data.index import clips_key_facts, load_videos, videos_key
from faster_lib.data.transforms import RECIPE_TRANSFORM
from faster_lib.data.video import DECODER
from faster_lib.inference import fold_batch_norm, keep_freed_memory, prepare_for_inference
from faster_lib.models.backbones import ClipNetwork
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import Entry
from faster_lib.training.loop import complete_together, find_ranks, limited_threads, tell_all
from faster_lib.training.shards import ShardReader, check_disk, drop_damaged, find_gaps, list_shards, write_shard
from faster_lib.training.stage1 import TrainedBackbone

RECIPE_FEATURES = 4  # raised whenever the same networks and videos would give other feature maps

Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # videos (B,), a view of each (B,), clips of each (B, n)


def features_entry(profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int) -> Entry:
    """Name the place of a split's feature maps: the network, the videos, and how clips are read and cut."""
    depends = {
        "recipe": RECIPE_FEATURES,
        "network": backbone.entry.key,
        "videos": videos_key(profile, split, runs=backbone.entry.runs),
        "num_clips": num_clips,
        "views": _views(profile, split),
        "seed": profile.backbone_training.seed,
        "decoder": DECODER,
        "transform": RECIPE_TRANSFORM,
        "clips": clips_key_facts(profile),
        "mixed_precision": profile.engine.mixed_precision,
        "compiled": profile.loading.compiled,
    }
    label = f"{backbone.label}-N{num_clips}-{split}"
    return Entry(profile.name, "features", label, depends, backbone.entry.runs)


class FeaturePair:
    """The feature maps of an expensive and a cheap network over the same clips, computed when first asked for."""

    def __init__(self, profile: Profile, expensive: TrainedBackbone, cheap: TrainedBackbone, *, runs: Path = RUNS):
        self.profile, self.expensive, self.cheap, self.runs = profile, expensive, cheap, runs
        self._opened: dict[tuple[str, int], StoredFeatures | LiveFeatures] = {}  # goes along to other processes

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

    def open(self, split: str, num_clips: int | None = None) -> "StoredFeatures | LiveFeatures":
        """Give what reads a split's feature maps; N is as many as fit the profile's frames unless asked otherwise."""
        key = (split, num_clips or self.num_clips)
        if key not in self._opened:
            self._opened[key] = self._open(*key)
        return self._opened[key]

    def _open(self, split: str, num_clips: int) -> "StoredFeatures | LiveFeatures":
        backbones = (self.expensive, self.cheap)
        if self.profile.loading.features == "stored":
            return StoredFeatures(extract_features(self.profile, backbones, split, num_clips))
        entries = [features_entry(self.profile, backbone, split, num_clips) for backbone in backbones]
        depends = {"scales": [entry.key for entry in entries]}
        scales = Entry(self.profile.name, "features", f"scales-{entries[0].label}", depends, self.runs)
        return LiveFeatures(backbones, _clips(self.profile, self.expensive, split, num_clips), self.profile, scales)

    def census(self, split: str) -> Census:
        """Count a split's videos: expected by its lists, used, missing, corrupt."""
        return load_videos(self.profile, split, runs=self.runs).census

    @cached_property
    def scales(self) -> tuple[float, float]:
        """By which the training features of (expensive, cheap) are multiplied to have a mean square of 1."""
        return self.open("train").scales


def extract_features(profile: Profile, backbones: Sequence[TrainedBackbone], split: str, num_clips: int) -> list[Entry]:
    """Compute a split's feature maps by some networks, unless they are there; missing and damaged shards alone.

    A video is decoded once for all networks. The training split has `views` random samplings of N clips, the others one
    uniform sampling. Several ranks share the shards out.

    Raises: OSError if they do not fit the disk.
    """
    entries = [features_entry(profile, backbone, split, num_clips) for backbone in backbones]

    def make() -> dict[str, int]:
        clips = _clips(profile, backbones[0], split, num_clips)
        _extract(backbones, entries, clips, profile)
        return {"videos": len(clips)}

    for entry in entries:
        drop_damaged(entry)
    for entry in entries:  # the first one makes the shards of all
        complete_together(entry, make)
    return entries


def _clips(profile: Profile, backbone: TrainedBackbone, split: str, num_clips: int) -> VideoClips:
    return VideoClips(
        load_videos(profile, split, runs=backbone.entry.runs, is_training=split == "train"),
        profile.data,
        clip_frames=backbone.clip_frames,
        num_clips=num_clips,
        views=_views(profile, split),
        seed=profile.backbone_training.seed,
    )


def _views(profile: Profile, split: str) -> int:
    return profile.aggregator_training.views if split == "train" else 0


def _extract(
    backbones: Sequence[TrainedBackbone], entries: Sequence[Entry], clips: VideoClips, profile: Profile
) -> None:
    """Compute this rank's share of the missing shards.

    On a CPU they are made side by side, each with one thread, so that their number changes no result.
    """
    ranks, missing = find_ranks(), {}
    for place, entry in enumerate(entries):
        entry.path.mkdir(parents=True, exist_ok=True)
        for videos in tell_all(find_gaps(list_shards(entry.path), len(clips), profile.loading.shard_videos)):
            missing.setdefault(videos, []).append(place)
    if not missing:
        return
    sizes = []
    for place, backbone in enumerate(backbones):  # videos × views × clips × the sizes of a map × bytes of a number
        count = sum(len(videos) for videos in missing if place in missing[videos])
        shape = map_shape(backbone.network, clips.clip_frames, clips.data.crop_px)
        sizes.append((count, max(clips.views, 1), clips.num_clips, *shape, 2))
    check_disk(entries[0].path, sizes)
    networks = [freeze(backbone.network, profile) for backbone in backbones]
    jobs = [
        ([(networks[place], entries[place].path) for place in places], clips, videos, profile)
        for videos, places in list(missing.items())[ranks.process_index :: ranks.num_processes]
    ]
    title = f"extract {' and '.join(entry.label for entry in entries)}"
    workers = 1 if ranks.device.type == "cuda" else profile.loading.workers
    quiet = {} if ranks.is_main_process else {"disable": True}  # False would overrule TQDM_DISABLE
    run_all(_write_shards, jobs, workers=workers, title=title, unit="shard", **quiet)


def freeze(network: ClipNetwork, profile: Profile) -> ClipNetwork:
    """Give a copy of a trained network, on this rank's device, in the form that computes feature maps fastest.

    Compiling takes a minute or so in every process; only networks near the paper's size earn that back.
    """
    device = find_ranks().device
    if profile.loading.compiled:
        dtype = torch.bfloat16 if profile.engine.mixed_precision == "bf16" else torch.float32
        return prepare_for_inference(network, dtype=dtype, device=device)
    return fold_batch_norm(network).to(device, memory_format=torch.channels_last_3d)


def map_shape(network: ClipNetwork, clip_frames: int, crop_px: int) -> tuple[int, ...]:
    """Find the shape (C, l, h, w) of a network's feature map of one clip; nothing is computed."""
    clip = torch.zeros(1, 3, clip_frames, crop_px, crop_px, device="meta")
    return tuple(copy.deepcopy(network).to("meta").features(clip).shape[1:])


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


def _write_shards(
    wanted: Sequence[tuple[ClipNetwork, Path]], clips: VideoClips, videos: range, profile: Profile
) -> None:
    keep_freed_memory()
    networks, folders = zip(*wanted, strict=True)
    with limited_threads(1):
        features, targets = [[] for _ in wanted], []
        for item in decode(clips, videos, _decoders(profile, networks[0])):
            maps = compute_features(networks, item.clips, profile.engine.mixed_precision)
            for kept, computed in zip(features, maps, strict=True):
                kept.append(computed.cpu())
            targets.append(item.target)
        for kept, folder in zip(features, folders, strict=True):
            sums = torch.stack([_square_sum(maps) for maps in kept])
            write_shard(
                folder, videos, {"features": torch.stack(kept), "targets": torch.tensor(targets), "square_sums": sums}
            )


def _decoders(profile: Profile, network: ClipNetwork) -> int:
    """Give how many threads decode for one that computes: those of the profile beside a GPU, none on a CPU."""
    return profile.loading.workers if next(network.parameters()).is_cuda else 0


def _square_sum(features: torch.Tensor) -> torch.Tensor:
    """Add up the squares of one video's features, in double precision."""
    return features.double().square().sum().cpu()


class StoredFeatures:
    """The feature maps of a split's videos by both networks, in shards that have been verified.

    Args:
        entries: the expensive and the cheap network's.
    """

    def __init__(self, entries: Sequence[Entry]):
        self.stores = {letter: ShardReader(entry.path) for letter, entry in zip("EC", entries, strict=True)}
        self.targets = self.stores["E"].targets
        self.num_views, self.num_clips = self.stores["E"].shape[:2]

    def read_each(self, requests: Iterable[Request], schedule: Schedule) -> Iterator[list[torch.Tensor]]:
        """Read some clips' maps of some videos for each request, each by the network that sees the clip.

        Shape: -> n maps (B, C, l, h, w) float32, the first clip's first; half precision turned to single
        """
        for videos, views, clips in requests:
            found: dict[int, torch.Tensor] = {}
            for letter, places in _places(schedule, clips.shape[1]).items():
                maps = self.stores[letter].read(videos, views, clips[:, places])
                found |= zip(places, maps.unbind(1), strict=True)
            yield [found[t] for t in range(clips.shape[1])]

    @property
    def scales(self) -> tuple[float, float]:
        """By which the maps of (expensive, cheap) are multiplied to have a mean square of 1."""
        return tuple(_scale_of(store.square_sums, store.shape) for store in self.stores.values())


class LiveFeatures:
    """The feature maps of a split's videos, computed whenever they are asked for, and not kept.

    They are those that a store would hold, to the bit on a CPU. For that all clips of all views of a video are computed
    together, as for a store, whichever are asked for: a batch of another size has other last digits.

    Args:
        entry: where the scales are kept, which need all videos once.
    """

    def __init__(self, backbones: Sequence[TrainedBackbone], clips: VideoClips, profile: Profile, entry: Entry):
        keep_freed_memory()
        self.clips, self.profile, self.entry = clips, profile, entry
        self.targets = torch.tensor([video.target for video in clips.videos.videos])
        self.num_views, self.num_clips = max(clips.views, 1), clips.num_clips
        self.networks = {letter: freeze(b.network, profile) for letter, b in zip("EC", backbones, strict=True)}
        shapes = [map_shape(b.network, clips.clip_frames, profile.data.crop_px) for b in backbones]
        self.no_maps = {letter: torch.empty(0, *shape) for letter, shape in zip("EC", shapes, strict=True)}

    def read_each(self, requests: Iterable[Request], schedule: Schedule) -> Iterator[list[torch.Tensor]]:
        """Compute what `StoredFeatures.read_each` reads, on this rank's device."""
        requests, ahead = itertools.tee(requests)
        wanted = (video for videos, *_ in ahead for video in videos.tolist())
        decoded = decode(self.clips, wanted, _decoders(self.profile, self.networks["E"]))
        for videos, views, clips in requests:
            asked, rows = _places(schedule, clips.shape[1]), []
            for row, item in enumerate(itertools.islice(decoded, len(videos))):
                computed = zip(asked.values(), self._compute(item.clips, [*asked]), strict=True)
                rows.append({t: m[views[row], clips[row, t]] for places, m in computed for t in places})
            seen = enumerate(schedule[: clips.shape[1]])
            yield [torch.stack([row[t] for row in rows]).float() if rows else self.no_maps[own] for t, own in seen]

    def _compute(self, views: torch.Tensor, letters: Sequence[str]) -> list[torch.Tensor]:
        with limited_threads(1):
            networks = [self.networks[letter] for letter in letters]
            return compute_features(networks, views, self.profile.engine.mixed_precision)

    @property
    def scales(self) -> tuple[float, float]:
        """By which the maps of (expensive, cheap) are multiplied to have a mean square of 1; found once and kept."""
        complete_together(self.entry, self._find_scales)
        return tuple(self.entry.record["measures"]["scales"])

    def _find_scales(self) -> dict[str, list[float]]:
        ranks = find_ranks()
        mine = range(ranks.process_index, len(self.clips), ranks.num_processes)
        sums, shapes = torch.zeros(2, len(self.clips), dtype=torch.float64), []
        decoded = decode(self.clips, mine, _decoders(self.profile, self.networks["E"]))
        for video, item in zip(mine, decoded, strict=True):
            maps = self._compute(item.clips, "EC")
            sums[:, video], shapes = torch.stack([_square_sum(each) for each in maps]), [each.shape for each in maps]
        sums = sum(gather_object([sums]))  # each video's is that of one rank, and 0 in the others
        return {"scales": [_scale_of(part, shape) for part, shape in zip(sums, shapes, strict=True)]}


def _places(schedule: Schedule, num_clips: int) -> dict[str, list[int]]:
    """Give the places of the clips that each network sees, for those networks that see some."""
    seen = schedule[:num_clips]
    return {letter: [t for t, own in enumerate(seen) if own == letter] for letter in "EC" if letter in seen}


def _scale_of(square_sums: torch.Tensor, shape: Sequence[int]) -> float:
    """Give the factor that brings features to a mean square of 1, from the sum of squares of each video's."""
    return (square_sums.sum() / (len(square_sums) * math.prod(shape))).rsqrt().item()
