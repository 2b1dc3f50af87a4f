"""Stage 1: a clip network learns on random clips."""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from faster_lib.data.datasets import Batch, RandomClips, VideoList, draw_epochs
from faster_lib.data.index import check_skipped, clips_key_facts, folder_of, load_videos, videos_key
from faster_lib.inference import keep_freed_memory
from faster_lib.models.backbones import ClipNetwork, build_backbone, load_weights
from faster_lib.models.clips import CLIP_FRAMES_MULTIPLE, check_clip_frames, normalise
from faster_lib.models.weights import is_weight_file
from faster_lib.paths import RUNS
from faster_lib.profile_sections import BackboneTraining
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import Entry, write_whole
from faster_lib.training.checkpoints import find_checkpoints, freeze_list, remove_checkpoints
from faster_lib.training.loop import Task, run_training, training_facts
from faster_lib.training.ranks import complete_together, find_ranks, limited_threads, seeded
from faster_lib.workers import count_cores, load_ahead

RECIPE_STAGE_1 = 4  # raised whenever the same profile would train another network


@dataclass(frozen=True)
class TrainedBackbone:
    """A clip network of a profile, and the place of its weights. Naming it does no work; `network` reads them."""

    profile: Profile
    name: str
    clip_frames: int
    entry: Entry
    pretrained: "TrainedBackbone | None" = None  # the one that it starts from

    @cached_property
    def network(self) -> ClipNetwork:
        """The trained network, frozen and in eval mode."""
        network = build_network(self.profile, self.name)
        network.load_state_dict(load(self.entry.read()))
        return network.eval().requires_grad_(False)

    @property
    def seconds(self) -> float:
        """How long the training took; after an interruption, since it went on."""
        return self.entry.record["measures"]["training_seconds"]


def name_backbone(profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS) -> TrainedBackbone:
    """Name a clip network among all that the profile could train, and the networks that it goes on from.

    Raises: ValueError if L is no multiple of 8; FileNotFoundError without the index of real videos, or without the
        weight file that the profile starts from.
    """
    check_clip_frames(clip_frames)
    if profile.networks.trained_in is not None:
        return name_backbone(load_profile(profile.networks.trained_in), name, clip_frames, runs=runs)
    settings: BackboneTraining = profile.backbone_training
    first, length = profile.networks.pretrained_in and load_profile(profile.networks.pretrained_in), clip_frames
    if settings.grown_from is not None:
        length = max(clip_frames // 2, CLIP_FRAMES_MULTIPLE)
        first = load_profile(settings.grown_from) if length == CLIP_FRAMES_MULTIPLE else profile
    before = first and name_backbone(first, name, length, runs=runs)
    depends = {
        "recipe": RECIPE_STAGE_1,
        "network": name,
        "width": profile.networks.width,
        "num_classes": profile.data.num_classes,
        "clip_frames": clip_frames,
        "training": training_facts(settings, profile.engine),
        "videos": videos_key(profile, profile.backbone_training.split, runs=runs),
        "clips": clips_key_facts(profile),
        "start": _start_facts(start_of(profile, name)),
        "pretrained": before and before.entry.key,
    }
    entry = Entry(profile.name, "networks", f"{name.replace('/', '-')}-L{clip_frames}", depends, runs)
    return TrainedBackbone(profile, name, clip_frames, entry, before)


def start_of(profile: Profile, name: str) -> str | None:
    """Give the weights from which a network's training starts: a file, a publisher's name, or None if it grows.

    A relative file lies in `data/`, or in the folder that `FASTER_DATA` names.
    """
    pair, is_grown = profile.networks, profile.backbone_training.grown_from is not None
    weights = None if is_grown else {pair.cheap: pair.cheap_weights, pair.expensive: pair.expensive_weights}.get(name)
    return str(folder_of(weights)) if weights is not None and is_weight_file(weights) else weights


def _start_facts(weights: str | None) -> list[Any] | str | None:
    """Tell a start from others without reading it: a file by its name, size and time."""
    if weights is None or not is_weight_file(weights):
        return weights
    about = Path(weights).stat()
    return [Path(weights).name, about.st_size, about.st_mtime_ns]


def build_network(profile: Profile, name: str) -> ClipNetwork:
    """Build a network as it is before its training; its weights depend on the profile's seed alone."""
    data, networks = profile.data, profile.networks
    return seeded(profile.backbone_training.seed, build_backbone, name, data.num_classes, networks.width)


def train_backbone(
    profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS, may_be_shipped: bool = True
) -> TrainedBackbone:
    """Train a clip network (stage 1), unless it is trained or shipped.

    The training starts from the weights that the profile names for this network, from the network of the profile that
    it is pre-trained in, all but the classifier, from the one that it grows from, or from nothing. An
    interrupted one goes on from its last checkpoint and ends in the same weights. Convolutions and the classifier are
    kept in half precision.

    Source: FASTER, "Setups for clip-level backbones": random clips of L consecutive frames, cosine schedule.
    """
    trained = name_backbone(profile, name, clip_frames, runs=runs)
    path, profile, before = trained.entry.path, trained.profile, trained.pretrained
    is_grown = profile.backbone_training.grown_from is not None
    if before is not None and not is_grown:  # stage 2 goes on from its units too
        train_backbone(before.profile, name, before.clip_frames, runs=runs)

    def make() -> dict[str, Any]:
        if may_be_shipped and (found := trained.entry.shipped()) is not None:
            content, about = found
            measures = {**about["measures"], "shipped": True}
        else:
            if is_grown:
                train_backbone(before.profile, name, before.clip_frames, runs=runs)
            videos = load_videos(profile, profile.backbone_training.split, runs=runs, is_training=True)
            if profile.scene is None and not find_checkpoints(path):
                fold = f"split {profile.backbone_training.split}, fold {profile.data.fold}"
                root = folder_of(profile.data.root)
                freeze_list(trained.entry, fold, [os.path.relpath(video.path, root) for video in videos.videos])
            network, measures = _train(trained, videos)
            state = {k: (v.half() if v.ndim > 1 else v).contiguous() for k, v in network.state_dict().items()}
            if not all(value.isfinite().all() for value in state.values()):
                raise FloatingPointError(f"a weight of {trained.entry.label} is too large for half precision")
            content = save(state)
        if find_ranks().is_main_process:
            write_whole(path / "weights.safetensors", content)
        return measures

    complete_together(trained.entry, make)
    remove_checkpoints(path)  # only now: a record may not come to be written
    return trained


def _train(trained: TrainedBackbone, videos: VideoList) -> tuple[ClipNetwork, dict[str, Any]]:
    profile, clip_frames = trained.profile, trained.clip_frames
    settings: BackboneTraining = profile.backbone_training
    network = build_network(profile, trained.name)
    if (weights := start_of(profile, trained.name)) is not None:
        load_weights(network, weights)
    if trained.pretrained is not None:
        before = trained.pretrained.network.state_dict()
        kept = {k: value for k, value in before.items() if settings.grown_from or not k.startswith("classifier.")}
        network.load_state_dict(kept, strict=False)
    if settings.learned_layers is not None:
        network.learn_last(settings.learned_layers)
    batch_videos = count_batch_videos(settings, clip_frames)
    form = {"clip_frames": clip_frames, "clips_per_video": settings.clips_per_video, "seed": settings.seed}
    clips = RandomClips(videos, profile.data, **form, kept_gib=profile.loading.kept_frames_gib)

    def load_from(first: int, mine: Sequence[int], parts: int) -> Iterator[Batch]:
        form = {"batch_videos": batch_videos, "first": first, "iterations": settings.iterations, "seed": settings.seed}
        draws = draw_epochs(len(videos), **form, mine=mine, parts=parts)
        return load_ahead(clips.load_batch, draws, profile.loading.workers)

    task = Task(
        folder=trained.entry.path,
        settings=settings,
        engine=profile.engine,
        steps=settings.iterations,
        batch_samples=batch_videos * settings.clips_per_video,
        seed=settings.seed,
        batches=load_from,
        compute=lambda network, batch: _compute(network, batch, profile, clip_frames),
        check=lambda skipped, so_far: check_skipped(skipped, so_far, videos, profile.data.most_unreadable_share),
    )
    learner = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    keep_freed_memory()
    # On a CPU the threads wait for each other, and all of them for a core that a loading thread has.
    taken = profile.loading.workers if find_ranks().device.type == "cpu" else 0
    with limited_threads(count_cores() - taken) as threads:
        measures = run_training(learner, task)
    network.load_state_dict(learner.state_dict())
    return network, {**measures, "threads": threads, "videos": vars(videos.census)}


def _compute(network: nn.Module, batch: Batch, profile: Profile, clip_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    device, size = next(network.parameters()).device, profile.data.crop_px
    clips = batch.clips if len(batch.targets) else torch.empty(0, 1, 3, clip_frames, size, size)
    clips = normalise(clips.to(device, non_blocking=True).flatten(0, 1))
    targets = batch.targets.to(device).repeat_interleave(profile.backbone_training.clips_per_video)
    return network(clips.contiguous(memory_format=torch.channels_last_3d)), targets


def count_batch_videos(settings: BackboneTraining, clip_frames: int) -> int:
    """Give the number of videos whose clips of L frames fill a batch of stage 1.

    Raises: ValueError if a batch holds not even one video's clips.
    """
    clips = min(settings.batch_frames // clip_frames, settings.most_batch_clips)
    if clips < settings.clips_per_video:
        limits = f"batch_frames is {settings.batch_frames}, most_batch_clips is {settings.most_batch_clips}"
        fault = f"a batch holds {clips} clips of L = {clip_frames} frames ({limits}), but clips_per_video is"
        raise ValueError(f"{fault} {settings.clips_per_video}; raise what keeps a batch below that")
    return clips // settings.clips_per_video
