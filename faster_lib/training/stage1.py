"""Stage 1: a clip network learns on random clips."""

import argparse
import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from faster_lib.data.datasets import Batch, EpochDraws, RandomClips, VideoList
from faster_lib.data.layouts import folder_of
from faster_lib.data.loading import load_batches
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.video import VideoError
from faster_lib.inference import keep_freed_memory
from faster_lib.jobs import count_cores
from faster_lib.models.backbones import Backbone, build_backbone, load_weights
from faster_lib.models.clips import check_clip_frames, normalise
from faster_lib.models.faster import Schedule
from faster_lib.models.weights import is_weight_file
from faster_lib.paths import RUNS
from faster_lib.profiles import BackboneTraining, Profile, load_profile
from faster_lib.store import Entry, write_whole
from faster_lib.training.evaluation import measure_all
from faster_lib.training.feature_maps import limited_threads
from faster_lib.training.features import FeaturePair, TrainedBackbone
from faster_lib.training.loop import Task, fit
from faster_lib.training.optimisation import seeded, what_training_depends_on
from faster_lib.training.ranks import complete_together, find_ranks
from faster_lib.training.training_state import CHECKPOINT, curves_of

log = logging.getLogger(__name__)

RECIPE_BACKBONE = 3  # raised whenever the same profile would train another network


def backbone_entry(profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS) -> Entry:
    """Name the place of a trained clip network among all that the profile could train.

    It depends on the weights of the network that it starts from, which is trained first where the profile says so.
    """
    check_clip_frames(clip_frames)
    depends = {
        "network": name,
        "width": profile.networks.width,
        "clip_frames": clip_frames,
        **what_training_depends_on(profile, profile.backbone_training),
        **what_videos_depend_on(profile, profile.backbone_training.split, runs=runs),
    }
    if RECIPE_BACKBONE > 3:  # up to 3 it stood nowhere: the videos' recipe took its place
        depends["recipe_backbone"] = RECIPE_BACKBONE
    if (weights := start_of(profile, name)) is not None:
        depends["weights"] = _sha256(weights) if is_weight_file(weights) else weights
    if (before := _pretrained(profile, name, clip_frames, runs)) is not None:
        depends["pretrained"] = before.weights_sha256
    return Entry("backbones", f"{name.replace('/', '-')}-L{clip_frames}", depends, runs)


def start_of(profile: Profile, name: str) -> str | None:
    """Give the weights from which a network's training starts: a file, torchvision's name for some, or None.

    A relative file lies in `data/`, or in the folder that `FASTER_DATA` names.
    """
    networks = profile.networks
    starts = {networks.cheap: networks.cheap_weights, networks.expensive: networks.expensive_weights}
    weights = starts.get(name)
    return str(folder_of(weights)) if weights is not None and is_weight_file(weights) else weights


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretrained(profile: Profile, name: str, clip_frames: int, runs: Path) -> TrainedBackbone | None:
    if profile.pretraining is None:
        return None
    return train_backbone(load_profile(profile.pretraining.profile), name, clip_frames, runs=runs)


def train_backbone(
    profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS, may_be_shipped: bool = True
) -> TrainedBackbone:
    """Train a clip network (stage 1), or load it if it is trained or shipped; it comes back frozen, in eval mode.

    The training starts from the weights that the profile names for this network, from the network of the profile that
    it is pre-trained in, all but the classifier, or from nothing.
    An interrupted training goes on from its last checkpoint and ends in the same weights. Convolutions and the
    classifier are kept in half precision, and every result is one of the weights so kept.

    Source: FASTER, "Setups for clip-level backbones": random clips of L consecutive frames, cosine schedule.
    """
    entry = backbone_entry(profile, name, clip_frames, runs=runs)
    settings = profile.backbone_training
    network = seeded(settings.seed, build_backbone, name, profile.data.num_classes, profile.networks.width)
    before = _pretrained(profile, name, clip_frames, runs)

    def make() -> dict[str, Any]:
        if may_be_shipped and (found := entry.shipped()) is not None:
            content, about = found
            measures = {**about["measures"], "shipped": True}
        else:
            if (weights := start_of(profile, name)) is not None:
                load_weights(network, weights)
            if before is not None:
                kept = {k: v for k, v in before.network.state_dict().items() if not k.startswith("classifier.")}
                network.load_state_dict(kept, strict=False)
            videos = load_videos(profile, settings.split, runs=runs, is_training=True)
            measures = _fit_backbone(network, videos, profile, clip_frames, entry)
            content = save({key: _compact(value) for key, value in network.state_dict().items()})
        if find_ranks().is_main_process:
            write_whole(entry.path / "weights.safetensors", content)
        return measures

    complete_together(entry, make)
    (entry.path / CHECKPOINT).unlink(missing_ok=True)  # only now: a record may not come to be written
    weights = (entry.path / "weights.safetensors").read_bytes()
    network.load_state_dict(load(weights))
    network.eval().requires_grad_(False)
    seconds = entry.record["measures"]["training_seconds"]
    return TrainedBackbone(name, clip_frames, network, hashlib.sha256(weights).hexdigest(), seconds, before)


def _compact(value: torch.Tensor) -> torch.Tensor:
    """Halve the matrices; what batch norm keeps stays in full precision."""
    return (value.half() if value.ndim > 1 else value).contiguous()


def _fit_backbone(
    network: Backbone, videos: VideoList, profile: Profile, clip_frames: int, entry: Entry
) -> dict[str, Any]:
    settings, size = profile.backbone_training, profile.data.crop_px
    batch_videos = count_batch_videos(settings, clip_frames)

    def compute(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(network.parameters()).device
        clips = batch.clips if len(batch.targets) else torch.empty(0, 1, 3, clip_frames, size, size)
        clips = normalise(clips.to(device, non_blocking=True).flatten(0, 1))
        targets = batch.targets.to(device).repeat_interleave(settings.clips_per_video)
        return network(clips.contiguous(memory_format=torch.channels_last_3d)), targets

    task = Task(
        label=entry.label,
        settings=settings,
        engine=profile.engine,
        steps=settings.iterations,
        batch_samples=batch_videos * settings.clips_per_video,
        seed=settings.seed,
        batches=lambda first, mine, parts: _load_batches(videos, profile, clip_frames, first, mine, parts),
        compute=compute,
        check=lambda skipped, so_far: check_skipped(skipped, so_far, videos, profile.data.most_unreadable_share),
        checkpoint=entry.path / CHECKPOINT,
        curves=curves_of(entry.path),
    )
    learner = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    keep_freed_memory()
    # On a CPU the threads wait for each other, and all of them for a core that a loading thread has.
    taken = profile.loading.workers if find_ranks().device.type == "cpu" else 0
    with limited_threads(count_cores() - taken) as threads:
        measures = fit(learner, task)
    network.load_state_dict(learner.state_dict())
    return {**measures, "threads": threads, "videos": videos.census}


def check_skipped(
    skipped: Sequence[tuple[int, str]], so_far: dict[str, str], videos: VideoList, most_share: float
) -> None:
    """Note the videos that could not be read though the index says so, and log each once.

    Raises: VideoError if these and those that the index knows are more than `most_share` of all.
    """
    for index, reason in skipped:
        if so_far.setdefault(str(videos.paths[index]), reason) is reason:
            log.warning("skipped: %s", reason)
    unreadable = len(so_far) + videos.missing + videos.corrupt
    if unreadable > most_share * videos.census["expected"]:
        raise VideoError(
            f"{unreadable} of {videos.census['expected']} videos cannot be read, more than data.most_unreadable_share, "
            f"which is {most_share}; the last: {list(so_far.values())[-1]}"
        )


def _load_batches(
    videos: VideoList, profile: Profile, clip_frames: int, first: int, mine: Sequence[int], parts: int
) -> Iterator[Batch]:
    settings = profile.backbone_training
    clips = RandomClips(
        videos, profile.data, clip_frames=clip_frames, clips_per_video=settings.clips_per_video, seed=settings.seed
    )
    draws = EpochDraws(
        len(videos),
        batch_videos=count_batch_videos(settings, clip_frames),
        first=first,
        iterations=settings.iterations,
        seed=settings.seed,
        mine=mine,
        parts=parts,
    )
    return load_batches(clips, draws, profile.loading.workers)


def count_batch_videos(settings: BackboneTraining, clip_frames: int) -> int:
    """Give the number of videos whose clips of L frames fill a batch of stage 1.

    Raises: ValueError if a batch holds not even one video's clips.
    """
    clips = min(settings.batch_frames // clip_frames, settings.most_batch_clips)
    if clips < settings.clips_per_video:
        raise ValueError(
            f"a batch holds {clips} clips of L = {clip_frames} frames (batch_frames is {settings.batch_frames}, "
            f"most_batch_clips is {settings.most_batch_clips}), but clips_per_video is {settings.clips_per_video}; "
            "raise what keeps a batch below that in backbone_training"
        )
    return clips // settings.clips_per_video


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one clip network, or one aggregator on a pair of them; what is trained or shipped is found again.

    Under `accelerate launch` all processes do it together.
    """
    given = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    runs = given.anew.resolve() if given.anew else RUNS
    profile = load_profile(given.profile)
    profile = profile if given.fold is None else profile.in_fold(given.fold)
    if given.stage == "backbone":
        train_backbone(profile, given.backbone, given.L, runs=runs, may_be_shipped=given.anew is None)
        return
    names = (profile.networks.expensive, profile.networks.cheap)
    pair = FeaturePair(profile, *(train_backbone(profile, name, given.L, runs=runs) for name in names), runs=runs)
    cell = (given.aggregator, Schedule.ratio(pair.num_clips, given.ratio))
    (found,) = measure_all(pair, [cell], seeds=[given.seed], split=given.split)[cell]
    if find_ranks().is_main_process:
        log.info("%s, %s on %s: video@1 %.2f %%", *cell, given.split, found["video@1"])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faster_lib.training.stage1", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/, such as tiny")
    parser.add_argument("--stage", choices=["backbone", "aggregator"], default="backbone")
    parser.add_argument("-L", type=int, required=True, help="frames per clip, a multiple of 8")
    parser.add_argument("--fold", type=int, help="of the official splits of UCF-101 and HMDB-51: 1, 2 or 3")
    parser.add_argument(
        "--threads",
        type=int,
        help="of PyTorch, at most: loading threads have a core each; the last digits of the weights depend on it",
    )
    folder = "use this folder in place of runs/, and no shipped network but one to start from"
    parser.add_argument("--anew", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument("--backbone", help="stage backbone: a name of build_backbone, such as r2d_26")
    parser.add_argument("--aggregator", default="fast_gru", help="stage aggregator: a name of build_aggregator")
    parser.add_argument("--ratio", type=int, default=1, help="stage aggregator: cheap clips per expensive one")
    parser.add_argument("--seed", type=int, default=0, help="stage aggregator")
    parser.add_argument("--split", default="test", help="stage aggregator: of the videos that it is measured on")
    given = parser.parse_args(arguments)
    if given.stage == "backbone" and given.backbone is None:
        parser.error("--stage backbone needs --backbone, such as r2d_26")
    return given


if __name__ == "__main__":
    main()
