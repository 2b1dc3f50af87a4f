"""FASTER: an expensive network on some clips of a video, a cheap one on the rest, an aggregator over their features."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from faster_lib.models.aggregators import Aggregator, Pointwise
from faster_lib.models.clips import ClipNetwork, check_clip_frames, check_whole


class Schedule(str):
    """Which network sees which clip: a word of E (expensive) and C (cheap), the first clip first.

    Raises: ValueError for an empty word or any other letter.
    """

    __slots__ = ()

    def __new__(cls, pattern: str) -> "Schedule":
        if not isinstance(pattern, str) or not pattern or set(pattern) - {"E", "C"}:
            raise ValueError(f"schedule {pattern!r} must be a word of E (expensive) and C (cheap), such as 'ECCC'")
        return super().__new__(cls, pattern)

    @classmethod
    def ratio(cls, num_clips: int, cheap_per_expensive: int) -> "Schedule":
        """Make the pattern 1:x: the first clip of each group of 1 + x is expensive. At x = 0 all are, at N - 1 one is.

        Source: FASTER, Table 4; the place within a group is ours, the paper does not say.
        Raises: ValueError if groups of 1 + x do not fill `num_clips` exactly.
        """
        check_whole("num_clips", num_clips)
        check_whole("cheap_per_expensive", cheap_per_expensive, least=0)
        group = 1 + cheap_per_expensive
        if num_clips % group:
            fitting = ", ".join(f"1:{x}" for x in range(num_clips) if num_clips % (1 + x) == 0)
            groups = f"groups of {group} clips, which do not divide {num_clips} clips"
            raise ValueError(f"ratio 1:{cheap_per_expensive} makes {groups}; choose one of {fitting}")
        return cls(("E" + "C" * cheap_per_expensive) * (num_clips // group))

    def __repr__(self) -> str:
        return f"Schedule({str(self)!r})"


class StreamState(NamedTuple):
    """What `Faster.step` carries from clip to clip: how many clips it has seen, and the aggregator's state."""

    num_clips: int
    memory: Any


class Faster(nn.Module):
    """Classify a video from its clips.

    A cheap map that differs from the expensive one is brought to its l x h x w by adaptive average pooling (repeated
    where it is coarser), scaled, and brought to its channels by `projection`. That is ours; the paper's maps agree.

    Shape: (B, N, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; N at most the schedule's length
    Args:
        num_classes: of the classifier over the aggregated features. Averaging uses the networks' own classifiers.
        feature_scales: by which the features of (expensive, cheap) are multiplied before they are aggregated. Ours:
            bringing them to unit size suits gates that start near 0 and a candidate within -1 and 1.
    Raises: ValueError if the networks and the aggregator do not fit each other.
    Source: FASTER (AAAI 2020), Fig. 1b, Eq. 1.
    """

    def __init__(
        self,
        expensive: ClipNetwork,
        cheap: ClipNetwork,
        aggregator: Aggregator,
        schedule: Schedule | str,
        num_classes: int,
        *,
        feature_scales: tuple[float, float] = (1.0, 1.0),
    ):
        super().__init__()
        self.expensive, self.cheap, self.aggregator = expensive, cheap, aggregator
        self.schedule = Schedule(schedule)
        check_whole("num_classes", num_classes)
        if len(feature_scales) != 2 or not all(math.isfinite(scale) and scale > 0 for scale in feature_scales):
            raise ValueError(f"feature_scales is {feature_scales}; it must be two positive numbers")
        self.register_buffer("feature_scales", torch.tensor(feature_scales))
        self.projection, self.classifier = None, None
        if aggregator.aggregates_scores:
            own, other = (network.classifier.out_features for network in (expensive, cheap))
            if (own, other) != (num_classes, num_classes):
                of = f"{own} of the expensive network, {other} of the cheap one, {num_classes} asked for"
                raise ValueError(f"classes differ: {of}")
            return
        if (own := expensive.channels) != (other := aggregator.channels):
            raise ValueError(f"channels differ: {own} of the expensive network, {other} of the aggregator")
        if cheap.channels != expensive.channels:
            self.projection = Pointwise(cheap.channels, expensive.channels)
            nn.init.normal_(self.projection.weight, std=cheap.channels**-0.5)  # a mean square of 1 stays so, on average
        self.classifier = nn.Linear(aggregator.channels, num_classes)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Look at all expensive clips in one call and at all cheap ones in another, then aggregate them in order."""
        if clips.ndim != 6 or clips.shape[2] != 3:
            raise ValueError(f"clips have shape {tuple(clips.shape)}; they must be (B, N, 3, L, H, W)")
        check_clip_frames(int(clips.shape[3]))  # a whole number also while a tracer watches
        self._check_num_clips(clips.shape[1])
        schedule, maps = self.schedule[: clips.shape[1]], {}
        for letter in sorted(set(schedule)):
            places, chosen = [t for t, other in enumerate(schedule) if other == letter], clips
            if len(places) < len(schedule):
                chosen = clips.movedim(2, -1)[:, places].movedim(-1, 2)  # colours stay last in memory
            found = self._network(letter).features(chosen.flatten(0, 1)).unflatten(0, (len(clips), len(places)))
            maps |= zip(places, found.unbind(1), strict=True)
        size = self.expensive.feature_size(tuple(int(side) for side in clips.shape[-3:]))
        return self._classify_maps([maps[t] for t in range(len(schedule))], size)

    def step(self, clip: torch.Tensor, state: StreamState | None = None) -> tuple[StreamState, torch.Tensor]:
        """Take in one more clip and classify the video so far.

        Shape: clip (B, 3, L, H, W) -> state, (B, num_classes) logits
        Raises: ValueError if the schedule's clips have all been seen.
        """
        seen, memory = (0, None) if state is None else state
        self._check_num_clips(seen + 1)
        letter, size = self.schedule[seen], self.expensive.feature_size(tuple(int(side) for side in clip.shape[-3:]))
        feature = self._prepare(self._network(letter).features(clip), letter, size)
        state = StreamState(seen + 1, self.aggregator.run(feature[None], memory))
        return state, self._classify(state.memory)

    def from_features(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Classify videos from the feature maps of their first clips, each by the network that the schedule names.

        Shape: N tensors, the t-th (B, C_t, l, h, w) -> (B, num_classes) logits
        Raises: ValueError if the maps do not fit, or if without an expensive one the size to aggregate is unknown.
        """
        self._check_num_clips(len(maps))
        sizes, shapes = {}, [tuple(feature.shape) for feature in maps]
        for t, (shape, letter) in enumerate(zip(shapes, self.schedule, strict=False)):
            videos, channels = shapes[0][0], self._network(letter).channels
            if len(shape) != 5 or shape != (videos, channels, *sizes.setdefault(letter, shape[2:])):
                must = f"({videos}, {channels}, l, h, w), with one l, h, w for each network"
                raise ValueError(f"maps have shapes {shapes}; map {t} of {self.schedule!r} must be {must}")
        reference = (16, 64, 96)  # a clip that tells apart networks whose maps differ in size: its sides differ
        is_known = "E" in sizes or self.expensive.feature_size(reference) == self.cheap.feature_size(reference)
        if not (is_known or self.aggregator.aggregates_scores):
            raise ValueError(f"{len(maps)} clips of {self.schedule!r} hold no expensive map, to whose size they come")
        return self._classify_maps(maps, sizes.get("E", maps[0].shape[2:]))

    def _network(self, letter: str) -> ClipNetwork:
        return self.expensive if letter == "E" else self.cheap

    def _classify_maps(self, maps: Sequence[torch.Tensor], size: tuple[int, int, int]) -> torch.Tensor:
        prepared = [self._prepare(feature, letter, size) for feature, letter in zip(maps, self.schedule, strict=False)]
        features = torch.stack([feature.movedim(1, -1) for feature in prepared])  # channels last in memory
        return self._classify(self.aggregator.run(features.movedim(-1, 2)))  # (N, B, ...)

    def _prepare(self, feature: torch.Tensor, letter: str, size: tuple[int, int, int]) -> torch.Tensor:
        """Turn a feature map into the aggregator's x_t: scores for averaging, otherwise the scaled map of `size`."""
        if self.aggregator.aggregates_scores:
            return self._network(letter).classify(feature).softmax(dim=-1)
        if tuple(int(side) for side in feature.shape[-3:]) != tuple(size):
            feature = nn.functional.adaptive_avg_pool3d(feature, size)
        feature = self.feature_scales["EC".index(letter)] * feature
        return feature if letter == "E" or self.projection is None else self.projection(feature)

    def _classify(self, memory: Any) -> torch.Tensor:
        read = self.aggregator.read(memory)
        if self.classifier is None:
            return read.clamp_min(torch.finfo(read.dtype).tiny).log()  # logits whose softmax is the mean probability
        return self.classifier(read)

    def _check_num_clips(self, num_clips: int) -> None:
        if not (most := len(self.schedule)) >= num_clips >= 1:
            raise ValueError(f"{num_clips} clips do not fit the schedule {self.schedule!r} of {most} clips")
