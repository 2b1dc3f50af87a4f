"""Stage 2: an aggregator and its classifier learn on the feature maps of the frozen networks."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from faster_lib.data.datasets import generator_for
from faster_lib.inference import fast_form
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profile_sections import AggregatorTraining
from faster_lib.training.features import FeaturePair, Features, Request
from faster_lib.training.loop import Task, run_training
from faster_lib.training.ranks import find_ranks, seeded

FROZEN = ("expensive", "cheap")  # parts of a Faster that stage 2 leaves as they are


def build_faster(pair: FeaturePair, name: str, schedule: Schedule) -> Faster:
    """Put the frozen networks, a fresh aggregator and its classifier together.

    The classifier starts as the expensive network's, undone for the features' scale (ours; the paper does not say).
    """
    profile, expensive, cheap = pair.profile, pair.expensive.network, pair.cheap.network
    aggregator = build_aggregator(name, expensive.channels, profile.networks.reduction)
    scales = (1.0, 1.0) if aggregator.aggregates_scores else pair.scales
    model = Faster(expensive, cheap, aggregator, schedule, profile.data.num_classes, feature_scales=scales)
    if model.classifier is not None:
        with torch.no_grad():
            model.classifier.weight.copy_(expensive.classifier.weight / scales[0])
            model.classifier.bias.copy_(expensive.classifier.bias)
    return model


def train_aggregator(
    pair: FeaturePair,
    name: str,
    schedule: Schedule,
    seed: int,
    *,
    folder: Path,
    start: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Faster, float]:
    """Train an aggregator and its classifier (stage 2) on the features of the frozen networks, in this process alone.

    Args:
        start: weights of an aggregator that was trained before, on the features of another profile.
        folder: where the checkpoint lies, from which an interrupted training goes on.
    Returns: the model in eval mode, its aggregator in the fast form, and the mean training loss of the last epoch.
    Source: FASTER, "Setups for learning to aggregate".
    """
    settings, train = pair.profile.aggregator_training, pair.open("train")
    steps = math.ceil(len(train.targets) / settings.batch_videos)
    model = seeded(seed, build_faster, pair, name, schedule)
    if start is not None:
        model.aggregator.load_state_dict(start)
    model.aggregator = fast_form(model.aggregator)
    learned = nn.ModuleDict({name: part for name, part in model.named_children() if name not in FROZEN})
    device = find_ranks().device

    def read_batches(first: int, mine: Sequence[int], parts: int) -> Iterator[_Drawn]:
        requests, ahead = itertools.tee(_draw_batches(train, settings, len(schedule), seed, first, mine, parts))
        for (videos, *_), maps in zip(requests, train.read_each(ahead, schedule), strict=True):
            yield _Drawn(maps, train.targets[videos])

    task = Task(
        folder=folder,
        settings=settings,
        engine=pair.profile.engine,
        steps=settings.epochs * steps,
        batch_samples=min(settings.batch_videos, len(train.targets)),
        seed=seed,
        batches=read_batches,
        compute=lambda _, drawn: (model.from_features([m.to(device) for m in drawn.maps]), drawn.targets.to(device)),
        kept_losses=steps,
        is_shared=False,
    )
    losses = run_training(learned, task)["last_losses"]
    return model.cpu().eval(), sum(losses) / len(losses)


class _Drawn(NamedTuple):
    """The feature maps of some videos' clips, N maps (B, C, l, h, w), and the videos' classes (B,)."""

    maps: list[torch.Tensor]
    targets: torch.Tensor


def _draw_batches(
    train: Features,
    settings: AggregatorTraining,
    num_clips: int,
    seed: int,
    first: int,
    mine: Sequence[int],
    parts: int,
) -> Iterator[Request]:
    """Draw the parts of each batch from a step on; an epoch sees one view of each video."""
    videos, steps = len(train.targets), math.ceil(len(train.targets) / settings.batch_videos)
    for epoch in range(first // steps, settings.epochs):
        generator = generator_for(seed, epoch)
        order = torch.randperm(videos, generator=generator)
        for step, batch in enumerate(order.split(settings.batch_videos), start=epoch * steps):
            clips = draw_clips(len(batch), train.num_clips, num_clips, generator)
            views = (batch + epoch) % train.num_views
            if step >= first:
                yield from ((batch[part::parts], views[part::parts], clips[part::parts]) for part in mine)


def draw_clips(num_videos: int, num_stored: int, num_clips: int, generator: torch.Generator) -> torch.Tensor:
    """Draw N of each video's stored clips, in temporal order: (videos, N).

    N of many clips that were drawn independently are N clips drawn independently.
    """
    if num_clips == num_stored:
        return torch.arange(num_stored).expand(num_videos, -1)
    chances = torch.rand(num_videos, num_stored, generator=generator)
    return chances.topk(num_clips, dim=1).indices.sort(dim=1).values
