"""Stage 1: a clip network learns on random clips."""

import argparse
import hashlib
import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from faster_lib.backbones import Backbone, build_backbone, check_clip_frames, load_weights
from faster_lib.checkpoints import is_weight_file
from faster_lib.data.datasets import Batch, EpochDraws, RandomClips, VideoList, collate
from faster_lib.data.layouts import folder_of
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.transforms import normalise
from faster_lib.data.video import VideoError
from faster_lib.features import TrainedBackbone
from faster_lib.optimisation import build_optimiser, take_step
from faster_lib.paths import RUNS
from faster_lib.profiles import BackboneTraining, Profile, load_profile
from faster_lib.store import Entry, write_whole

log = logging.getLogger(__name__)

FIRST_LOSSES = 5  # kept with a network, so that a second training can be compared with the first after a few steps
RECIPE_BACKBONE = 3  # raised whenever the same profile would train another network


def backbone_entry(profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS) -> Entry:
    """Name the place of a trained clip network among all that the profile could train.

    It depends on the weights of the network that it starts from, which is trained first where the profile says so.
    """
    check_clip_frames(clip_frames)
    depends = {
        "recipe": RECIPE_BACKBONE,
        "network": name,
        "width": profile.networks.width,
        "clip_frames": clip_frames,
        "training": profile.backbone_training.model_dump(mode="json", exclude={"checkpoint_iterations"}),
        **what_videos_depend_on(profile, profile.backbone_training.split, runs=runs),
    }
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
        write_whole(entry.path / "weights.safetensors", content)
        return measures

    entry.complete(make)
    (entry.path / "checkpoint.pt").unlink(missing_ok=True)  # only now: a record may not come to be written
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
    settings = profile.backbone_training
    network.to(memory_format=torch.channels_last_3d).train()
    optimiser, schedule = build_optimiser(network.parameters(), settings, settings.iterations)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    checkpoint = entry.path / "checkpoint.pt"
    progress = {"iteration": 0, "loss": None, "first_losses": [], "training_seconds": 0.0, "skipped": {}}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        progress = state["progress"]
        for part, content in zip(parts.values(), state["parts"], strict=True):
            part.load_state_dict(content)
    start = time.perf_counter() - progress["training_seconds"]
    batches = _load_batches(videos, profile, clip_frames, first=progress["iteration"])
    bar = tqdm(
        batches, desc=f"train {entry.label}", unit="batch", initial=progress["iteration"], total=settings.iterations
    )
    for batch in bar:
        skip_unreadable(batch, videos, progress["skipped"], profile.data.most_unreadable_share)
        progress["iteration"] += 1
        if not len(batch.targets):
            schedule.step()
            continue
        clips = normalise(batch.clips.flatten(0, 1)).contiguous(memory_format=torch.channels_last_3d)
        loss = nn.functional.cross_entropy(network(clips), batch.targets.repeat_interleave(settings.clips_per_video))
        take_step(loss, network.parameters(), optimiser, schedule, settings)
        if len(progress["first_losses"]) < FIRST_LOSSES:
            progress["first_losses"].append(loss.item())
        progress["loss"] = loss.item() if progress["loss"] is None else 0.95 * progress["loss"] + 0.05 * loss.item()
        progress["training_seconds"] = time.perf_counter() - start
        bar.set_postfix(loss=f"{progress['loss']:.2f}", refresh=False)
        if progress["iteration"] % settings.checkpoint_iterations == 0:
            content = io.BytesIO()
            torch.save({"progress": progress, "parts": [part.state_dict() for part in parts.values()]}, content)
            write_whole(checkpoint, content.getvalue())
    return {**progress, "training_seconds": round(progress["training_seconds"], 1), "videos": videos.census}


def skip_unreadable(batch: Batch, videos: VideoList, skipped: dict[str, str], most_share: float) -> None:
    """Note the videos that could not be read though the index says so, and log each once.

    Raises: VideoError if these and those that the index knows are more than `most_share` of all.
    """
    for index, reason in batch.skipped:
        if skipped.setdefault(str(videos.paths[index]), reason) is reason:
            log.warning("skipped: %s", reason)
    unreadable = len(skipped) + videos.missing + videos.corrupt
    if skipped and unreadable > most_share * videos.census["expected"]:
        raise VideoError(
            f"{unreadable} of {videos.census['expected']} videos cannot be read, more than data.most_unreadable_share, "
            f"which is {most_share}; the last: {list(skipped.values())[-1]}"
        )


def _load_batches(videos: VideoList, profile: Profile, clip_frames: int, *, first: int) -> DataLoader:
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
    )
    return DataLoader(clips, batch_sampler=draws, num_workers=profile.loading.workers, collate_fn=collate)


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


def seeded(seed: int, build, *args):
    """Build a module whose initial weights depend on the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one clip network; what has been trained, or is shipped with the repository, is found again."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.training", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/, such as tiny")
    parser.add_argument("--backbone", required=True, help="a name of build_backbone, such as r2d_26")
    parser.add_argument("-L", type=int, required=True, help="frames per clip, a multiple of 8")
    parser.add_argument("--threads", type=int, help="of PyTorch; the last digits of the weights depend on it")
    parser.add_argument(
        "--anew",
        type=Path,
        metavar="FOLDER",
        help="use this folder in place of runs/, and no shipped network but one to start from",
    )
    parser.add_argument("--fold", type=int, help="of the official splits of UCF-101 and HMDB-51: 1, 2 or 3")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    runs = given.anew.resolve() if given.anew else RUNS
    profile = load_profile(given.profile)
    profile = profile if given.fold is None else profile.in_fold(given.fold)
    train_backbone(profile, given.backbone, given.L, runs=runs, may_be_shipped=given.anew is None)


if __name__ == "__main__":
    main()
