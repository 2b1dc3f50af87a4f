"""`params/<profile>.yaml` as one frozen, validated object; an unknown key is an error."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from faster_lib.paths import PARAMS

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
FOLDED = ("ucf101", "hmdb51")  # the sources that come with three official splits


class ProfileError(ValueError):
    """A profile that is missing or wrong; the message lists every fault with its value and what would be right."""


class Section(BaseModel):
    """A part of a profile: frozen, nothing converted, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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

    @model_validator(mode="after")
    def _shots_fit(self) -> "Scene":
        if self.shots[1] * self.shortest_shot_frames > self.frames:
            raise ValueError(f"{self.shots[1]} shots of {self.shortest_shot_frames} frames exceed {self.frames} frames")
        for key in ("shots", "context_share", "context_contrast", "action_share", "hard_legibility", "speed_px"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is {[low, high]}; the first must not exceed the second")
        return self


class Data(Section):
    """Where the videos are, and how a clip is cut from them."""

    source: Literal["generated", "annotated", "kinetics", "ucf101", "hmdb51", "path_label", "folders"]
    root: str | None  # the folder of real videos, in a layout of `faster_lib.data.layouts`; null where there is a scene
    annotations: str | None = None  # the folder of the lists, where it is another
    fold: Annotated[int, Field(ge=1, le=3)] | None = None  # of the official splits of UCF-101 and HMDB-51
    most_unreadable_share: Share = 0.05  # of the listed videos; where more are missing or corrupt, nothing is trained
    num_classes: Annotated[int, Field(ge=2)]
    video_frames: Positive
    train_short_side_px: tuple[Positive, Positive]
    test_short_side_px: Positive
    crop_px: Annotated[int, Field(ge=32)]
    flip: bool

    @model_validator(mode="after")
    def _crop_fits(self) -> "Data":
        low, high = self.train_short_side_px
        if low > high:
            raise ValueError(f"train_short_side_px is {[low, high]}; the first must not exceed the second")
        if self.crop_px > min(low, self.test_short_side_px):
            raise ValueError(
                f"crop_px is {self.crop_px}, more than the shortest side of {min(low, self.test_short_side_px)}"
            )
        if self.source == "generated" and self.root is not None:
            raise ValueError(f"root is {self.root!r}, but generated videos have none")
        if self.fold is not None and self.source not in FOLDED:
            raise ValueError(f"fold is {self.fold}, but {self.source} videos have no folds; leave it null")
        if self.annotations is not None and self.source in ("generated", "annotated"):
            raise ValueError(f"annotations is {self.annotations!r}, but {self.source} videos have no lists elsewhere")
        return self


class Networks(Section):
    """The two clip networks and the recurrent unit."""

    expensive: str
    expensive_weights: str | None = None  # a weight file, or the name of torchvision's; null starts from nothing
    cheap: str
    cheap_weights: str | None = None  # likewise
    width: Rate
    reduction: Positive

    @model_validator(mode="after")
    def _one_start_each(self) -> "Networks":
        if self.expensive == self.cheap and self.expensive_weights != self.cheap_weights:
            raise ValueError(
                f"expensive and cheap are both {self.cheap!r}, but expensive_weights is {self.expensive_weights!r} and "
                f"cheap_weights is {self.cheap_weights!r}; one network starts from one file"
            )
        return self


class Pretraining(Section):
    """What both stages start from: the networks and the recurrent unit of another profile."""

    profile: str


# Section and key of what must agree for networks, and a recurrent unit over as many clips, to go on from others.
_SHARED_WITH_PRETRAINING = (
    ("networks", "expensive"),
    ("networks", "cheap"),
    ("networks", "width"),
    ("networks", "reduction"),
    ("data", "video_frames"),
)


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
    clips_per_video: Positive
    seed: int


class AggregatorTraining(Optimisation):
    """Stage 2: a recurrent unit on the stored feature maps of the frozen networks."""

    batch_videos: Positive
    epochs: Positive
    views: Positive  # random clip samplings of each training video that are stored
    dropout: Share


class Engine(Section):
    """How a step is computed, on however many processes."""

    mixed_precision: Literal["no", "bf16"]
    accumulation: Positive  # parts of each process's share of a batch, one after the other
    sync_batch_norm: bool  # over all processes, so that their number does not matter


class Loading(Section):
    """How much of the machine the data path uses."""

    workers: Annotated[int, Field(ge=0)]
    shard_videos: Positive
    features: Literal["stored", "on_the_fly"]  # whether the feature maps of the frozen networks are kept for stage 2
    compiled: bool = False  # whether the frozen networks are; worth a minute in each process near the paper's size

    @property
    def numerics(self) -> dict[str, Any]:
        """Give what changes the last digits of features, for the hashes of what is made from them."""
        return {"compiled": True} if self.compiled else {}


class Profile(Section):
    """One scale of the whole kit."""

    name: str
    data: Data
    scene: Scene | None
    networks: Networks
    pretraining: Pretraining | None = None
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
        """Give the same profile on another of the official splits of UCF-101 or HMDB-51.

        Raises: ValueError if its set has no such fold.
        """
        if self.data.source not in FOLDED or fold not in (1, 2, 3):
            raise ValueError(f"fold is {fold!r}; {' and '.join(FOLDED)} have folds, 1 to 3, and no other set")
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    @model_validator(mode="after")
    def _scene_matches(self) -> "Profile":
        if self.data.source == "generated" and self.scene is None:
            raise ValueError("generated videos need a scene section")
        if (self.data.root is None) != (self.scene is not None):
            rule = "a scene, so that they are generated" if self.data.root is None else "no scene (scene: null)"
            raise ValueError(f"{self.data.source} videos whose root is {self.data.root!r} need {rule}")
        if self.scene is not None and (self.data.source == "annotated" or self.data.annotations is not None):
            raise ValueError(
                f"data.source is {self.data.source!r} and data.annotations {self.data.annotations!r}, but there is a "
                "scene; generated videos come with their lists, in any layout but annotated"
            )
        weights = {key: getattr(self.networks, key) for key in ("expensive_weights", "cheap_weights")}
        if self.pretraining is not None and any(weights.values()):
            raise ValueError(f"networks has {weights}, but pretraining gives both networks; leave one of the two null")
        if self.scene is not None and self.scene.frames != self.data.video_frames:
            raise ValueError(f"scene.frames is {self.scene.frames}, but data.video_frames is {self.data.video_frames}")
        return self


class _OnceLoader(yaml.SafeLoader):
    """YAML whose mappings hold each key once; PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_profile(name: str, *, folder: Path = PARAMS) -> Profile:
    """Read and check `<folder>/<name>.yaml`, and that its networks fit those of the profile it is pre-trained in.

    Raises: ProfileError if there is no such profile, or for any missing, unknown or mistyped key.
    """
    profile = _read(name, folder)
    chain = [profile]
    while (before := chain[-1].pretraining) is not None:
        where = f"params/{chain[-1].name}.yaml: pretraining.profile is {before.profile!r}"
        if before.profile in (known.name for known in chain):
            raise ProfileError(f"{where}, which is {chain[-1].name!r} itself or starts from it; it must come before")
        try:
            chain.append(_read(before.profile, folder))
        except ProfileError as error:
            raise ProfileError(f"{where}: {error}") from None
        for section, key in _SHARED_WITH_PRETRAINING:
            own, theirs = (getattr(getattr(each, section), key) for each in chain[-2:])
            if own != theirs:
                raise ProfileError(f"{where}, whose {section}.{key} is {theirs!r}; here it is {own!r} and must agree")
    return profile


def _read(name: str, folder: Path) -> Profile:
    path = folder / f"{name}.yaml"
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise ProfileError(f"unknown profile {name!r}; choose one of {', '.join(known)}, or write params/{name}.yaml")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"params/{path.name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"params/{path.name} holds {content!r}; it must hold sections such as data and networks")
    return parse_profile({"name": name, **content}, source=f"params/{path.name}")


def parse_profile(content: dict[str, Any], *, source: str) -> Profile:
    """Check a profile held as nested dicts.

    Raises: ProfileError naming `source` and listing all faults.
    """
    try:
        return Profile.model_validate_json(json.dumps(content))  # as JSON: a list may become a tuple, and no more
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise ProfileError(f"{source} has {error.error_count()} fault(s):\n{faults}") from None


def _describe(fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "profile"
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key (its value is {fault['input']!r}){hint}"
    if fault["type"] == "missing":
        return f"{where}: this key is missing"
    hint = "; YAML reads 1e-3 as text, write 1.0e-3" if fault["type"] == "float_type" else ""
    message = fault["msg"].removeprefix("Value error, ")
    quoted = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r}{hint})"
    return f"{where}: {message}{quoted}"


def _known_keys(section: type[Section] = Section) -> set[str]:
    return set(section.model_fields).union(*(_known_keys(inner) for inner in section.__subclasses__()))
