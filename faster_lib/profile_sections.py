"""What a profile is: its sections, each key with its type and bounds, and the rules between keys."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Rules = Iterable[tuple[bool, str]]  # whether each is broken, and the fault to say then
FOLDED = ("ucf101", "hmdb51")  # the sources that come with three official splits, and so have three folds


class Section(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """A part of a profile: frozen, nothing converted, nothing unknown, every pair of numbers a range."""

    @model_validator(mode="after")
    def _check(self) -> "Section":
        fault = "{} is {}; no number may exceed the next"
        rules = [([*v] != sorted(v), fault.format(key, [*v])) for key, v in self if isinstance(v, tuple)]
        if broken := [fault for is_broken, fault in (*rules, *self._rules()) if is_broken]:
            raise ValueError(broken[0])
        return self

    def _rules(self) -> Rules:
        return ()


class Scene(Section):
    """How the generated videos look; `faster_lib.data.synthetic` says what for."""

    frames: PositiveInt
    size_px: Annotated[int, Field(ge=32, multiple_of=2)]
    fps: PositiveInt
    crf: Annotated[int, Field(ge=0, le=51)]
    gop_frames: PositiveInt
    videos: dict[Literal["stage1", "train", "val", "test"], PositiveInt]
    shots: tuple[PositiveInt, PositiveInt]
    shortest_shot_frames: PositiveInt
    context_share: tuple[Share, Share]
    context_contrast: tuple[NonNegativeFloat, NonNegativeFloat]
    action_share: tuple[Share, Share]
    flicker_share: Share
    hard_share: Share
    hard_legibility: tuple[Share, Share]
    distractor_share: Share
    actors: PositiveInt
    actor_px: PositiveInt
    actor_contrast: NonNegativeFloat
    speed_px: tuple[NonNegativeFloat, NonNegativeFloat]
    shake_px: NonNegativeFloat
    noise: NonNegativeFloat
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
    video_frames: PositiveInt
    train_short_side_px: tuple[PositiveInt, PositiveInt]
    test_short_side_px: PositiveInt
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
    pretrained_in: str | None = None  # another profile, from whose networks and recurrent units both stages go on
    width: PositiveFloat
    reduction: PositiveInt

    def _rules(self) -> Rules:
        starts = self.model_dump(include={"expensive_weights", "cheap_weights"})
        fault = f"expensive and cheap are both {self.cheap!r}, but {starts}; one network has one start"
        yield self.expensive == self.cheap and len({*starts.values()}) > 1, fault
        fault = f"{starts} stand beside pretrained_in, which gives both networks; leave one of the two null"
        yield self.pretrained_in is not None and any(starts.values()), fault


class Optimisation(Section):
    """What both stages share: optimiser and schedule."""

    optimiser: Literal["adamw", "sgd"]
    learning_rate: PositiveFloat
    learning_rate_samples: PositiveInt | None  # in a batch for which the rate is meant; null: it is not scaled
    weight_decay: NonNegativeFloat
    momentum: Share
    warmup_share: Share
    clip_gradient_norm: NonNegativeFloat  # 0 leaves gradients as they are
    checkpoint_iterations: PositiveInt


class BackboneTraining(Optimisation):
    """Stage 1: one clip network on random clips."""

    split: Literal["stage1", "train"]  # whose videos it sees; stage 2 always sees those of train
    batch_frames: PositiveInt  # of all clips of a batch together, whatever L
    most_batch_clips: PositiveInt  # where so many frames would be more clips
    iterations: PositiveInt
    # The profile from whose network for L = 8 this one's for L = 8 and 16 go on; that for L = 32 does from L = 16.
    grown_from: str | None = None
    # Where given, the classifier and so many layers before it learn alone; null: all layers do.
    learned_layers: NonNegativeInt | None = None
    clips_per_video: PositiveInt
    seed: int


class Tuned(Section):
    """What was chosen for one aggregator."""

    learning_rate: PositiveFloat
    epochs: PositiveInt | None = None  # null: as all


class Tuning(Section):
    """The pairs that are tried on `val` for every aggregator alike, in rising order (workflow/tune.py)."""

    learning_rates: tuple[PositiveFloat, ...]
    epochs: tuple[PositiveInt, ...]


class AggregatorTraining(Optimisation):
    """Stage 2: a recurrent unit on the stored feature maps of the frozen networks."""

    batch_videos: PositiveInt
    epochs: PositiveInt
    views: PositiveInt  # random clip samplings of each training video that are stored
    tuning: Tuning
    tuned: dict[str, Tuned] = {}  # by aggregator; the others have the values above


class Engine(Section):
    """How a step is computed, on however many processes."""

    mixed_precision: Literal["no", "bf16"]
    accumulation: PositiveInt  # parts of each process's share of a batch, one after the other


class Loading(Section):
    """How much of the machine the data path uses."""

    workers: NonNegativeInt
    kept_frames_gib: NonNegativeFloat = 0.0  # decoded frames of a training of stage 1 that may stay in memory
    shard_videos: PositiveInt
    # Whether the feature maps of the frozen networks are kept for stage 2, and if so in 16 bits a number or in 8.
    features: Literal["stored", "stored_8_bit", "on_the_fly"]
    compiled: bool = False  # whether the frozen networks are; worth a minute in each process near the paper's size


class Profile(Section):
    """One scale of the whole kit."""

    name: str
    data: Data
    scene: Scene | None
    networks: Networks
    backbone_training: BackboneTraining
    aggregator_training: AggregatorTraining
    engine: Engine
    loading: Loading

    @property
    def is_paper_scale(self) -> bool:
        """Whether accuracies may be compared with the paper's: real videos, and its networks at full width."""
        is_papers = "/" not in self.networks.expensive + self.networks.cheap  # as torchvision's names have one
        return self.scene is None and self.networks.width == 1.0 and is_papers

    def in_fold(self, fold: int) -> "Profile":
        """Give the same profile in another of its three folds; raises ValueError if it has no such fold."""
        if self.data.fold is None or fold not in (1, 2, 3):
            raise ValueError(f"fold is {fold!r}; only a profile that states data.fold has folds, 1 to 3")
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    def _rules(self) -> Rules:
        data, scene = self.data, self.scene
        rule = "a scene section" if scene is None else "no scene (scene: null)"
        yield (scene is None) != (data.source != "generated"), f"{data.source} videos need {rule}"
        both = self.networks.pretrained_in, self.backbone_training.grown_from
        fault = f"networks.pretrained_in and backbone_training.grown_from are {both}; leave one of the two null"
        yield None not in both, fault
        if scene is not None:
            fault = f"scene.frames is {scene.frames}, but data.video_frames is {data.video_frames}"
            yield scene.frames != data.video_frames, fault
            fits = 0 < 2 * scene.videos.get("test", 0) <= scene.videos.get("train", 0)
            fault = f"scene.videos is {scene.videos}; three folds need twice as many of train as of test"
            yield data.fold is not None and not fits, fault
