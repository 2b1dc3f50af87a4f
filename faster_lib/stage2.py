"""Stage 2: an aggregator and its classifier learn on the feature maps of the frozen networks."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from faster_lib.aggregators import build_aggregator
from faster_lib.data.datasets import generator_for
from faster_lib.faster import Faster, Schedule
from faster_lib.features import FeaturePair, Features
from faster_lib.optimisation import build_optimiser, take_step


def train_aggregator(
    pair: FeaturePair, name: str, schedule: Schedule, seed: int, *, start: Mapping[str, torch.Tensor] | None = None
) -> tuple[Faster, float]:
    """Train an aggregator and its classifier (stage 2) on the stored features of the frozen networks.

    The classifier starts as the expensive network's, undone for the features' scale; an epoch sees one view of each
    video (both ours; the paper does not say).

    Args:
        start: weights of an aggregator that was trained before, on the features of another profile.
    Returns: the model in eval mode, and the mean training loss of the last epoch.
    Source: FASTER, "Setups for learning to aggregate".
    """
    settings = pair.profile.aggregator_training
    train = pair.load("train")
    num_clips = train.expensive.shape[2]
    steps = settings.epochs * math.ceil(len(train.targets) / settings.batch_videos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_faster(pair, name, schedule)
        if start is not None:
            model.aggregator.load_state_dict(start)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser, schedule_lr = build_optimiser(learned, settings, steps)
        model.train()
        for epoch in range(settings.epochs):
            losses = []
            generator = generator_for(seed, epoch)
            order = torch.randperm(len(train.targets), generator=generator)
            for batch in order.split(settings.batch_videos):
                clips = _draw_clips(len(batch), num_clips, len(schedule), generator)
                logits = _classify(model, train, batch, epoch, clips)
                loss = nn.functional.cross_entropy(logits, train.targets[batch])
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


def _draw_clips(num_videos: int, num_stored: int, num_clips: int, generator: torch.Generator) -> torch.Tensor:
    """Draw N of each video's stored clips, in temporal order: (videos, N).

    N of many clips that were drawn independently are N clips drawn independently.
    """
    if num_clips == num_stored:
        return torch.arange(num_stored).expand(num_videos, -1)
    chances = torch.rand(num_videos, num_stored, generator=generator)
    return chances.topk(num_clips, dim=1).indices.sort(dim=1).values


def _classify(model: Faster, features: Features, batch: torch.Tensor, epoch: int, clips: torch.Tensor) -> torch.Tensor:
    view = (batch + epoch) % features.expensive.shape[1]
    chosen = (part[batch[:, None], view[:, None], clips].float() for part in (features.expensive, features.cheap))
    return model.from_features(*chosen)
