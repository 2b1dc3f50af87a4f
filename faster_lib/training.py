"""Stage 1: a clip network on random clips. Stage 2: a recurrent unit on the feature maps of the frozen networks."""

import hashlib
import io
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from faster_lib.aggregators import build_aggregator
from faster_lib.backbones import Backbone, build_backbone, check_clip_frames
from faster_lib.data.datasets import EpochDraws, RandomClips, VideoList, generator_for
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.transforms import normalise
from faster_lib.faster import Faster, Schedule
from faster_lib.features import FeaturePair, Features, TrainedBackbone
from faster_lib.paths import RUNS
from faster_lib.profiles import BackboneTraining, Optimisation, Profile
from faster_lib.store import Entry, write_whole

RECIPE_BACKBONE = 2  # raised whenever the same profile would train another network


def backbone_entry(profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS) -> Entry:
    """Name the place of a trained clip network among all that the profile could train."""
    check_clip_frames(clip_frames)
    depends = {
        "recipe": RECIPE_BACKBONE,
        "network": name,
        "width": profile.networks.width,
        "clip_frames": clip_frames,
        "training": profile.backbone_training.model_dump(mode="json", exclude={"checkpoint_iterations"}),
        **what_videos_depend_on(profile, "train"),
    }
    return Entry("backbones", f"{name}-L{clip_frames}", depends, runs)


def train_backbone(profile: Profile, name: str, clip_frames: int, *, runs: Path = RUNS) -> TrainedBackbone:
    """Train a clip network (stage 1), or load it if it has been trained; it comes back frozen, in eval mode.

    An interrupted training goes on from its last checkpoint and ends in the same weights.

    Source: FASTER, "Setups for clip-level backbones": random clips of L consecutive frames, cosine schedule.
    """
    entry = backbone_entry(profile, name, clip_frames, runs=runs)
    network = seeded(
        profile.backbone_training.seed, build_backbone, name, profile.data.num_classes, profile.networks.width
    )
    if not entry.is_complete:
        videos = load_videos(profile, "train", runs=runs)
        with entry.making() as measures:
            if not entry.is_complete:
                measures["loss"] = _fit_backbone(network, videos, profile, clip_frames, entry)
                write_whole(entry.path / "weights.safetensors", save(network.state_dict()))
                (entry.path / "checkpoint.pt").unlink(missing_ok=True)
    weights = (entry.path / "weights.safetensors").read_bytes()
    network.load_state_dict(load(weights))
    network.eval().requires_grad_(False)
    return TrainedBackbone(
        name, clip_frames, network, hashlib.sha256(weights).hexdigest(), seconds=entry.record["seconds"]
    )


def _fit_backbone(network: Backbone, videos: VideoList, profile: Profile, clip_frames: int, entry: Entry) -> float:
    settings = profile.backbone_training
    network.train()
    optimiser, schedule = build_optimiser(network.parameters(), settings, settings.iterations)
    checkpoint = entry.path / "checkpoint.pt"
    first, smooth_loss = 0, None
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        for part, content in zip((network, optimiser, schedule), state["parts"], strict=True):
            part.load_state_dict(content)
        first, smooth_loss = state["iteration"], state["loss"]
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
    loader = DataLoader(clips, batch_sampler=draws, num_workers=profile.loading.workers)
    bar = tqdm(loader, desc=f"train {entry.label}", unit="batch", initial=first, total=settings.iterations)
    for iteration, (batch, targets) in enumerate(bar, start=first + 1):
        logits = network(normalise(batch.flatten(0, 1)))
        loss = nn.functional.cross_entropy(logits, targets.repeat_interleave(settings.clips_per_video))
        take_step(loss, network.parameters(), optimiser, schedule, settings)
        smooth_loss = loss.item() if smooth_loss is None else 0.95 * smooth_loss + 0.05 * loss.item()
        bar.set_postfix(loss=f"{smooth_loss:.2f}", refresh=False)
        if iteration % settings.checkpoint_iterations == 0:
            parts = [network.state_dict(), optimiser.state_dict(), schedule.state_dict()]
            content = io.BytesIO()
            torch.save({"iteration": iteration, "loss": smooth_loss, "parts": parts}, content)
            write_whole(checkpoint, content.getvalue())
    return round(smooth_loss, 4)


def count_batch_videos(settings: BackboneTraining, clip_frames: int) -> int:
    """Give the number of videos whose clips of L frames fill a batch of stage 1.

    Raises: ValueError if the batch holds not even one video's clips.
    """
    frames = clip_frames * settings.clips_per_video
    if frames > settings.batch_frames:
        raise ValueError(
            f"batch_frames is {settings.batch_frames}, but {settings.clips_per_video} clip(s) of L = {clip_frames} "
            f"frames of one video are {frames}; raise backbone_training.batch_frames to at least that"
        )
    return settings.batch_frames // frames


def train_aggregator(pair: FeaturePair, name: str, schedule: Schedule, seed: int) -> tuple[Faster, float]:
    """Train an aggregator and its classifier (stage 2) on the stored features of the frozen networks.

    The classifier starts as the expensive network's, undone for the features' scale; an epoch sees one view of each
    video (both ours; the paper does not say).

    Returns: the model in eval mode, and the mean training loss of the last epoch.
    Source: FASTER, "Setups for learning to aggregate".
    """
    settings = pair.profile.aggregator_training
    train = pair.load("train")
    steps = settings.epochs * math.ceil(len(train.targets) / settings.batch_videos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_faster(pair, name, schedule)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser, schedule_lr = build_optimiser(learned, settings, steps)
        model.train()
        for epoch in range(settings.epochs):
            losses = []
            order = torch.randperm(len(train.targets), generator=generator_for(seed, epoch))
            for batch in order.split(settings.batch_videos):
                loss = nn.functional.cross_entropy(_classify(model, train, batch, epoch), train.targets[batch])
                take_step(loss, learned, optimiser, schedule_lr, settings)
                losses.append(loss.item())
    return model.eval(), sum(losses) / len(losses)


def build_faster(pair: FeaturePair, name: str, schedule: Schedule) -> Faster:
    """Put the frozen networks, a fresh aggregator and its classifier together."""
    profile, expensive, cheap = pair.profile, pair.expensive.network, pair.cheap.network
    aggregator = build_aggregator(name, expensive.channels, profile.networks.reduction)
    scales = (1.0, 1.0) if aggregator.aggregates_scores else pair.scales
    dropout = profile.aggregator_training.dropout
    classes = profile.data.num_classes
    model = Faster(expensive, cheap, aggregator, schedule, classes, feature_scales=scales, dropout=dropout)
    if model.classifier is not None:
        with torch.no_grad():
            model.classifier[-1].weight.copy_(expensive.classifier.weight / scales[0])
            model.classifier[-1].bias.copy_(expensive.classifier.bias)
    return model


def _classify(model: Faster, features: Features, batch: torch.Tensor, epoch: int) -> torch.Tensor:
    view = (batch + epoch) % features.expensive.shape[1]
    return model.from_features(features.expensive[batch, view].float(), features.cheap[batch, view].float())


def seeded(seed: int, build, *args):
    """Build a module whose initial weights depend on the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: Optimisation, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Build the optimiser and its schedule: linear warm-up, then a half cosine down to 0.

    Source: the cosine is FASTER's (Loshchilov and Hutter 2016).
    """
    parameters = list(parameters)
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        betas = (settings.momentum, 0.999)
        optimiser = torch.optim.AdamW(
            parameters, settings.learning_rate, betas=betas, weight_decay=settings.weight_decay
        )
    warmup = max(1, round(settings.warmup_share * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def take_step(loss, parameters, optimiser, schedule, settings: Optimisation) -> None:
    """Do one optimiser step, with the gradient's norm clipped if the settings say so.

    Raises: FloatingPointError if the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; lower learning_rate, which is {settings.learning_rate}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip_gradient_norm:
        nn.utils.clip_grad_norm_(parameters, settings.clip_gradient_norm)
    optimiser.step()
    schedule.step()
