"""What a whole profile needs in work, disk and memory, as products whose factors are shown.

Counted from the networks, the profile's values, and the number of videos; decoding is left out.
"""

import math
from statistics import mean
from typing import NamedTuple

import torch

from faster_lib.data.datasets import VideoList
from faster_lib.data.layouts import read_layout
from faster_lib.data.sampling import num_clips_covering
from faster_lib.flops import count_macs, step_macs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.profiles import Profile
from faster_lib.training.feature_store import Product
from faster_lib.training.stage1 import count_batch_videos

_PASSES = 3  # of a training step, in forward passes: the backward pass has two products for each of the forward one
_KEPT_PER_WEIGHT = {"sgd": 3, "adamw": 4}  # the weight, its gradient, and one or two running means
TFLOPS, UTILISATION = 15.7, 0.3  # Source: NVIDIA's data sheet of the V100 SXM2, single precision; the share is ours


class Videos(NamedTuple):
    """How many videos stage 2 learns from and the evaluation has, how many lie on disk, and their mean size."""

    train: int
    evaluated: int
    stored: int
    mean_bytes: int
    source: str


# Where the set's own lists are missing. Source: as each line says; sizes: "upwards of 400GB" in torchvision's training
# reference, and the archives of UCF-101 (6.5 GB) and HMDB-51 (2 GB).
KNOWN = {
    "kinetics": Videos(240_000, 20_000, 260_000, 1_500_000, "FASTER, 'about 240K training videos'; Kay et al. 2017"),
    "ucf101": Videos(9_537, 3_783, 13_320, 500_000, "Soomro et al. 2012, split 1"),
    "hmdb51": Videos(3_570, 1_530, 6_766, 300_000, "Kuehne et al. 2011"),
}


class NetworkCosts(NamedTuple):
    """What a clip network needs: MACs of a clip, weights, bytes kept for a clip's backward pass, of its stored map."""

    clip_macs: int
    weights: int
    saved_bytes: int
    map_bytes: int


class Costs(NamedTuple):
    """What a profile's networks need at one L."""

    expensive: NetworkCosts
    cheap: NetworkCosts
    step_macs: int  # of FAST-GRU


class Estimate(NamedTuple):
    """MACs of each stage, bytes on disk, and bytes of memory."""

    macs: dict[str, Product]
    disk: dict[str, Product]
    memory: dict[str, Product]


def count_videos(profile: Profile) -> Videos:
    """Count a set's videos: by its scene, by its lists, or, where these or all files are missing, by what is known.

    Raises: FileNotFoundError if nothing is known of such a set either.
    """
    if profile.scene is not None:
        counts = profile.scene.videos
        return Videos(counts["train"], counts["test"], sum(counts.values()), 0, "the profile's scene")
    try:
        return measure_files(read_layout(profile.data, "train"), _read_evaluated(profile), "the set's own lists")
    except FileNotFoundError:
        if profile.data.source not in KNOWN:
            raise
        return KNOWN[profile.data.source]


def _read_evaluated(profile: Profile) -> VideoList:
    """Read the validation split, which is the paper's test on Kinetics, or the test where there is no other."""
    try:
        return read_layout(profile.data, "val")
    except (FileNotFoundError, ValueError):
        return read_layout(profile.data, "test")


def measure_files(train: VideoList, evaluated: VideoList, source: str) -> Videos:
    """Count listed videos, and average the size of those that are there.

    Raises: FileNotFoundError if none is.
    """
    sizes = [path.stat().st_size for path in train.paths + evaluated.paths if path.is_file()]
    if not sizes:
        raise FileNotFoundError(f"none of the listed videos is there, such as {train.paths[0]}")
    return Videos(len(train), len(evaluated), len(train) + len(evaluated), round(mean(sizes)), source)


def count_costs(profile: Profile, clip_frames: int) -> Costs:
    """Build a profile's networks at full size and count what one clip costs; nothing is trained."""
    networks, size = profile.networks, profile.data.crop_px
    pair, shapes = [], []
    for name in (networks.expensive, networks.cheap):
        network = build_backbone(name, profile.data.num_classes, networks.width)
        macs = count_macs(network, torch.zeros(1, 3, clip_frames, size, size))
        clips = torch.zeros(2, 3, clip_frames, size, size, device="meta")  # shapes without numbers, in no time
        network = network.to("meta").train()
        shapes.append(network.features(clips).shape[1:])
        weights = sum(weight.numel() for weight in network.parameters())
        pair.append(NetworkCosts(macs, weights, count_saved_bytes(network, clips) // 2, 2 * math.prod(shapes[-1])))
    channels, *feature_size = shapes[0]
    aggregator = build_aggregator("fast_gru", channels, networks.reduction)
    return Costs(*pair, step_macs(aggregator, tuple(feature_size)))


def count_saved_bytes(network: torch.nn.Module, clips: torch.Tensor) -> int:
    """Count the bytes that a forward pass keeps for the backward pass, each once and the network's own not."""
    own = {part.untyped_storage()._cdata for part in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = network(clips)  # noqa: F841  what is kept must live until all is counted
    return sum(saved.values())


def estimate(profile: Profile, clip_frames: int, costs: Costs, videos: Videos) -> Estimate:
    """Multiply out what the whole profile needs; of stage 2, one training of FAST-GRU on all clips."""
    stage_1, stage_2 = profile.backbone_training, profile.aggregator_training
    num_clips = num_clips_covering(profile.data.video_frames, clip_frames)
    batch = count_batch_videos(stage_1, clip_frames) * stage_1.clips_per_video
    kept = (_KEPT_PER_WEIGHT[stage_1.optimiser], "(weight, gradient, optimiser)")
    macs, memory = {}, {}
    for role, network in (("expensive", costs.expensive), ("cheap", costs.cheap)):
        steps = ((stage_1.iterations, "iterations"), (batch, "clips"), (network.clip_macs, "MACs"))
        macs[f"stage 1, {role}"] = Product((*steps, (_PASSES, "(forward, backward)")))
        memory[f"{role}: weights"] = Product(((network.weights, "weights"), (4, "bytes"), kept))
        memory[f"{role}: a batch"] = Product(((batch, "clips"), (network.saved_bytes, "bytes kept for backward")))
    sets = {
        "features of training": ((videos.train, "videos"), (stage_2.views, "views"), (num_clips, "clips")),
        "features of evaluation": ((videos.evaluated, "videos"), (num_clips, "clips")),
    }
    both = (costs.expensive.clip_macs + costs.cheap.clip_macs, "MACs of both networks")
    macs |= {name: Product((*clips, both)) for name, clips in sets.items()}
    passes = _PASSES * stage_2.epochs * videos.train + videos.evaluated
    how = f"passes ({_PASSES} × {stage_2.epochs} epochs × {videos.train:,} videos + {videos.evaluated:,})"
    steps = ((num_clips - 1, "steps"), (costs.step_macs, "MACs"))
    macs["stage 2 and evaluation"] = Product(((passes, how), *steps))
    maps = (costs.expensive.map_bytes + costs.cheap.map_bytes, "bytes of both networks")
    disk = {"videos": Product(((videos.stored, "videos"), (videos.mean_bytes, "bytes")))}
    disk |= {name: Product((*clips, maps)) for name, clips in sets.items()}
    batch_maps = ((stage_2.batch_videos, "videos"), (num_clips, "clips"), maps, (2, "(in single precision)"))
    memory["stage 2: features of a batch"] = Product(batch_maps)
    return Estimate(macs, disk, memory)


def gpu_hours(macs: float, *, tflops: float = TFLOPS, utilisation: float = UTILISATION) -> float:
    """Give the hours that one GPU takes for so many MACs, each a multiplication and an addition.

    Args:
        tflops: its peak, in 1e12 operations a second.
        utilisation: the share of the peak that is reached.
    Raises: ValueError if either is not positive, or the share is above 1.
    """
    if not tflops > 0 or not 0 < utilisation <= 1:
        raise ValueError(f"tflops is {tflops} and utilisation {utilisation}; both must be above 0, the share at most 1")
    return 2 * macs / (tflops * 1e12 * utilisation) / 3600
