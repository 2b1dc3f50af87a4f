"""Stage 2: an aggregator and its classifier learn on the feature maps of the frozen networks."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from faster_lib.data.datasets import generator_for
from faster_lib.inference import fast_form
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profile_sections import AggregatorTraining, Profile
from faster_lib.training.features import FeaturePair, Request
from faster_lib.training.loop import Task, run_trainings
from faster_lib.training.ranks import find_ranks, seeded


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


def settings_of(profile: Profile, aggregator: str) -> AggregatorTraining:
    """Give the settings by which an aggregator is trained: those that were chosen for it on `val`, if any were."""
    settings: AggregatorTraining = profile.aggregator_training
    chosen = settings.tuned[aggregator].model_dump(exclude_none=True) if aggregator in settings.tuned else {}
    return settings.model_copy(update={**chosen, "tuned": {}})


class Head(NamedTuple):
    """An aggregator with its classifier, and how it is trained."""

    name: str
    schedule: Schedule
    seed: int
    folder: Path  # where its checkpoint lies, from which an interrupted training goes on
    start: Mapping[str, torch.Tensor] | None = None  # weights of an aggregator trained on another profile's features


class Trained(NamedTuple):
    """A model in eval mode, the mean training loss of its last epoch, and the seconds of its own training."""

    model: Faster
    loss: float | None = None
    seconds: float = 0.0


def is_learned(name: str) -> bool:
    """Whether a part or a value of a Faster, by its name, is of stage 2 and not of a frozen network."""
    return name.split(".")[0] not in ("expensive", "cheap")


def train_heads(pair: FeaturePair, heads: Sequence[Head]) -> list[Trained | FloatingPointError]:
    """Train aggregators and their classifiers (stage 2) in this process, in one pass over the networks' features.

    Heads of the same seed and number of clips see the same clips, which are read once a step for all of them.

    Returns: of each the trained model, its aggregator in the fast form, or what was not finite, which leaves the others
        as they are.
    Source: FASTER, "Setups for learning to aggregate".
    """
    alike = defaultdict(list)
    for head in heads:
        alike[head.seed, len(head.schedule)].append(head)
    readers = {key: _Reader(pair, of_key) for key, of_key in alike.items()}
    begun = [_begin(pair, head, readers[head.seed, len(head.schedule)]) for head in heads]
    trained = []
    for (model, learned, task), end in zip(begun, run_trainings([each[1:] for each in begun]), strict=True):
        learned.cpu()
        if isinstance(end, dict):
            end = Trained(model.eval(), sum(end["last_losses"]) / task.kept_losses, end["training_seconds"])
        trained.append(end)
    return trained


def _begin(pair: FeaturePair, head: Head, reader: "_Reader") -> tuple[Faster, nn.ModuleDict, Task]:
    """Build a head; give it with its frozen networks, those parts of it that learn, and their training."""
    profile, settings = pair.profile, settings_of(pair.profile, head.name)
    model = seeded(head.seed, build_faster, pair, head.name, head.schedule)
    if head.start is not None:
        model.aggregator.load_state_dict(head.start)
    model.aggregator = fast_form(model.aggregator)
    learned = nn.ModuleDict({name: part for name, part in model.named_children() if is_learned(name)})

    def read_batches(first: int, mine: Sequence[int], parts: int) -> Iterator[_Drawn]:
        for step in range(first, settings.epochs * reader.steps):
            maps, targets = reader.read(step, head.schedule)
            yield from (_Drawn([each[part::parts] for each in maps], targets[part::parts]) for part in mine)

    task = Task(
        folder=head.folder,
        settings=settings,
        engine=profile.engine,
        steps=settings.epochs * reader.steps,
        batch_samples=min(settings.batch_videos, len(reader.features.targets)),
        seed=head.seed,
        batches=read_batches,
        compute=lambda _, drawn: (model.from_features(drawn.maps), drawn.targets),
        kept_losses=reader.steps,
        is_shared=False,
    )
    return model, learned, task


class _Drawn(NamedTuple):
    """The feature maps of some videos' clips, N maps (B, C, l, h, w), and the videos' classes (B,)."""

    maps: list[torch.Tensor]
    targets: torch.Tensor


class _Reader:
    """The training batches of heads of one seed and number of clips, each read once for all their schedules."""

    def __init__(self, pair: FeaturePair, heads: Sequence[Head]):
        self.features, self.batch_videos = pair.open("train"), pair.profile.aggregator_training.batch_videos
        self.seed, self.schedules = heads[0].seed, sorted({head.schedule for head in heads})
        self.epochs = max(settings_of(pair.profile, head.name).epochs for head in heads)
        self.steps = math.ceil(len(self.features.targets) / self.batch_videos)  # an epoch
        self.step, self.batches = -1, self._read_from(0)  # which reads nothing yet

    def read(self, step: int, schedule: Schedule) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give the maps that a schedule sees at a step, and the classes; quick for the last step and the next."""
        if step != self.step:
            if step != self.step + 1:
                self.batches = self._read_from(step)
            self.step, self.last = step, next(self.batches)
        maps, targets = self.last
        return maps[self.schedules.index(schedule)], targets

    def _read_from(self, first: int) -> Iterator[tuple[list[list[torch.Tensor]], torch.Tensor]]:
        requests, ahead = itertools.tee(self._draw_from(first))
        targets, device = self.features.targets, find_ranks().device
        for (videos, *_), maps in zip(requests, self.features.read_each(ahead, self.schedules), strict=True):
            yield maps, targets[videos].to(device)

    def _draw_from(self, first: int) -> Iterator[Request]:
        """Draw each batch from a step on; an epoch sees one view of each video."""
        features, num_clips = self.features, len(self.schedules[0])
        for epoch in range(first // self.steps, self.epochs):
            generator = generator_for(self.seed, epoch)
            order = torch.randperm(len(features.targets), generator=generator)
            for step, batch in enumerate(order.split(self.batch_videos), start=epoch * self.steps):
                clips = draw_clips(len(batch), features.num_clips, num_clips, generator)
                if step >= first:
                    yield batch, (batch + epoch) % features.num_views, clips


def draw_clips(num_videos: int, num_stored: int, num_clips: int, generator: torch.Generator) -> torch.Tensor:
    """Draw N of each video's stored clips, in temporal order: (videos, N).

    N of many clips that were drawn independently are N clips drawn independently.
    """
    if num_clips == num_stored:
        return torch.arange(num_stored).expand(num_videos, -1)
    chances = torch.rand(num_videos, num_stored, generator=generator)
    return chances.topk(num_clips, dim=1).indices.sort(dim=1).values
