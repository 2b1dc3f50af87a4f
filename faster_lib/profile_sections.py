"""The sections of a profile: each key with its type and bounds, and the rules between the keys of a section."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rules = Iterable[tuple[bool, str]]  # whether each is broken, and the fault to say then
FOLDED = ("ucf101", "hmdb51")  # the sources that come with three official splits, and so have three folds


class Section(BaseModel):
    """A part of a profile: frozen, nothing converted, nothing unknown, every pair of numbers a range."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> "Section":
        pairs = ((key, value) for key, value in self if isinstance(value, tuple))
        rules = [(a > b, f"{key} is {[a, b]}; the first must not exceed the second") for key, (a, b) in pairs]
        for is_broken, fault in (*rules, *self._rules()):
            if is_broken:
                raise ValueError(fault)
        return self

    def _rules(self) -> Rules:
        return ()


class Scene(Section):
    """How the generated videos look; `faster_lib.data.synthetic` says what for."""

    frames: Positive
    size_px: Annotated[int, Field(ge=32, multiple_of=2)]
    fps: Positive
    crf: Annotated[int, Field(ge=0, le=51)]
    gop_frames: Positive
    videos: dict[Literal["stage1", "train", "val", "test"], Positive]
    shots: tuple[Positive, Positive]
    shortest_shot_frames: Positive
    context_share: tuple[Share, Share]
    context_contrast: tuple[NonNegative, NonNegative]
    action_share: tuple[Share, Share]
    flicker_share: Share
    hard_share: Share
    hard_legibility: tuple[Share, Share]
    distractor_share: Share
    actors: Positive
    actor_px: Positive
    actor_contrast: NonNegative
    speed_px: tuple[NonNegative, NonNegative]
    shake_px: NonNegative
    noise: NonNegative
    seed: int

    def _rules(self) -> Rules:
        shots, shortest = self.shots[1], self.shortest_shot_frames
        yield shots * shortest > self.frames, f"{shots} shots of {shortest} frames exceed {self.frames} frames"


class Data(Section):
    """Where the videos are, and how a clip is cut from them."""

    source: Literal["generated", "annotated", "kinetics", "ucf101", "hmdb51", "path_label", "folders"]
    root: str | None  # the folder of real videos, in a layout of `faster_lib.data.index`; null where they are generated
    annotations: str | None = None  # the folder of the lists, where it is another
    fold: Annotated[int, Field(ge=1, le=3)] | None = None  # of three; null where the set has none
    most_unreadable_share: Share = 0.05  # of the listed videos; where more are missing or corrupt, nothing is trained
    num_classes: Annotated[int, Field(ge=2)]
    video_frames: Positive
    train_short_side_px: tuple[Positive, Positive]
    test_short_side_px: Positive
    crop_px: Annotated[int, Field(ge=32)]
    flip: bool

    def _rules(self) -> Rules:
        shortest, videos = min(self.train_short_side_px[0], self.test_short_side_px), f"{self.source} videos"
        yield self.crop_px > shortest, f"crop_px is {self.crop_px}, more than the shortest side of {shortest}"
        is_generated, is_folded = self.source == "generated", self.source in FOLDED
        rule = "have none" if is_generated else "need the folder that they are in"
        yield (self.root is None) != is_generated, f"root is {self.root!r}, but {videos} {rule}"
        rule = "three folds; choose 1, 2 or 3" if is_folded else "no folds; leave it null"
        is_wrong = not is_generated and (self.fold is not None) != is_folded
        yield is_wrong, f"fold is {self.fold}, but {videos} have {rule}"
        is_wrong = self.annotations is not None and self.source in ("generated", "annotated")
        yield is_wrong, f"annotations is {self.annotations!r}, but {videos} have no lists elsewhere"


class Networks(Section):
    """The two clip networks and the recurrent unit."""

    expensive: str
    expensive_weights: str | None = None  # a weight file, or a publisher's name for some; null starts from nothing
    cheap: str
    cheap_weights: str | None = None  # likewise
    trained_in: str | None = None  # another profile, whose trained networks serve here as they are
    width: Rate
    reduction: Positive

    def _rules(self) -> Rules:
        starts = self.model_dump(include={"expensive_weights", "cheap_weights"})
        fault = f"expensive and cheap are both {self.cheap!r}, but {starts}; one network has one start"
        yield self.expensive == self.cheap and len({*starts.values()}) > 1, fault


class Pretraining(Section):
    """What both stages start from: the networks and the recurrent unit of another profile."""

    profile: str


class Optimisation(Section):
    """What both stages share: optimiser and schedule."""

    optimiser: Literal["adamw", "sgd"]
    learning_rate: Rate
    learning_rate_samples: Positive | None  # in a batch for which the rate is meant, and scaled; null: it is as it is
    weight_decay: NonNegative
    momentum: Share
    warmup_share: Share
    clip_gradient_norm: NonNegative  # 0 leaves gradients as they are
    checkpoint_iterations: Positive


class BackboneTraining(Optimisation):
    """Stage 1: one clip network on random clips."""

    split: Literal["stage1", "train"]  # whose videos it sees; stage 2 always sees those of train
    batch_frames: Positive  # of all clips of a batch together, whatever L
    most_batch_clips: Positive  # where so many frames would be more clips
    iterations: Positive
    # Where given, a network for L > 8 starts from the one for half of L, and is trained so long, at that rate.
    grown_iterations: Positive | None = None
    grown_learning_rate: Rate | None = None
    # Where given, the classifier and so many layers before it learn alone; null: all layers do.
    learned_layers: Annotated[int, Field(ge=0)] | None = None
    clips_per_video: Positive
    seed: int

    def _rules(self) -> Rules:
        grown = (self.grown_iterations, self.grown_learning_rate)
        yield grown.count(None) == 1, f"grown_iterations and grown_learning_rate are {grown}; give both or none"


class AggregatorTraining(Optimisation):
    """Stage 2: a recurrent unit on the stored feature maps of the frozen networks."""

    batch_videos: Positive
    epochs: Positive
    views: Positive  # random clip samplings of each training video that are stored


class Engine(Section):
    """How a step is computed, on however many processes."""

    mixed_precision: Literal["no", "bf16"]
    accumulation: Positive  # parts of each process's share of a batch, one after the other


class Loading(Section):
    """How much of the machine the data path uses."""

    workers: Annotated[int, Field(ge=0)]
    shard_videos: Positive
    features: Literal["stored", "on_the_fly"]  # whether the feature maps of the frozen networks are kept for stage 2
    compiled: bool = False  # whether the frozen networks are; worth a minute in each process near the paper's size
