"""`params/<profile>.yaml` as one frozen, validated object; an unknown key is an error.

A profile that begins with `base: <name>` states only what differs from that one, key by key; lists, and the numbers of
videos of a scene, are replaced whole.
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from faster_lib.paths import PARAMS

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rules = Iterable[tuple[bool, str]]  # whether each is broken, and the fault to say then
FOLDED = ("ucf101", "hmdb51")  # the sources that come with three official splits, and so have three folds


class ProfileError(ValueError):
    """A profile that is missing or wrong; the message lists every fault with its value and what would be right."""


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
    expensive_weights: str | None = None  # a weight file, or the name of torchvision's; null starts from nothing
    cheap: str
    cheap_weights: str | None = None  # likewise
    width: Rate
    reduction: Positive

    def _rules(self) -> Rules:
        starts = self.model_dump(include={"expensive_weights", "cheap_weights"})
        fault = f"expensive and cheap are both {self.cheap!r}, but {starts}; one network has one start"
        yield self.expensive == self.cheap and len({*starts.values()}) > 1, fault


class Pretraining(Section):
    """What both stages start from: the networks and the recurrent unit of another profile."""

    profile: str


# What must agree for networks, and a recurrent unit over as many clips, to go on from others.
_SHARED = (*(("networks", key) for key in ("expensive", "cheap", "width", "reduction")), ("data", "video_frames"))


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
        """Give the same profile in another of its three folds; raises ValueError if it has no such fold."""
        if self.data.fold is None or fold not in (1, 2, 3):
            raise ValueError(f"fold is {fold!r}; only a profile that states data.fold has folds, 1 to 3")
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    def _rules(self) -> Rules:
        data, scene = self.data, self.scene
        rule = "a scene section" if scene is None else "no scene (scene: null)"
        yield (scene is None) != (data.source != "generated"), f"{data.source} videos need {rule}"
        starts = self.networks.model_dump(include={"expensive_weights", "cheap_weights"})
        fault = f"networks has {starts}, but pretraining gives both networks; leave one of the two null"
        yield self.pretraining is not None and any(starts.values()), fault
        if scene is not None:
            fault = f"scene.frames is {scene.frames}, but data.video_frames is {data.video_frames}"
            yield scene.frames != data.video_frames, fault
            fits = 0 < 2 * scene.videos.get("test", 0) <= scene.videos.get("train", 0)
            fault = f"scene.videos is {scene.videos}; three folds need twice as many of train as of test"
            yield data.fold is not None and not fits, fault


class _OnceLoader(yaml.SafeLoader):
    """YAML whose mappings hold each key once; PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key in (key for key, _ in node.value if keys.count(key.value) > 1):
            raise yaml.constructor.ConstructorError(problem=f"{key.value!r} is twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_profile(name: str | Path, *, folder: Path = PARAMS) -> Profile:
    """Read and check a file such as mine/own.yaml, or `<folder>/<name>.yaml`, whose networks fit those it starts from.

    Raises: ProfileError if there is no such profile, or for any missing, unknown or mistyped key.
    """
    files = {path.stem: (path, f"params/{path.name}") for path in folder.glob("*.yaml")}
    if (path := Path(name).expanduser()).suffix == ".yaml":
        name, files[path.stem] = path.stem, (path, str(path))
    chain: list[Profile] = []  # each pre-trained in the next
    where = ""
    while name is not None:
        if name in [profile.name for profile in chain]:
            raise ProfileError(f"{where}, which leads back to {name!r}; it must come before")
        content, origins = _read_over_base(name, files, where)
        profile = parse_profile({"name": name, **content}, source=files[name][1], origins=origins)
        for section, key in _SHARED if chain else ():
            own, theirs = (getattr(getattr(each, section), key) for each in (chain[-1], profile))
            if own != theirs:
                raise ProfileError(f"{where}, whose {section}.{key} is {theirs!r}; here it is {own!r} and must agree")
        chain.append(profile)
        name = profile.pretraining and profile.pretraining.profile
        where = f"{origins.get(('pretraining', 'profile'))}: pretraining.profile is {name!r}"
    return chain[0]


def _read_over_base(name: str, files: dict[str, tuple], where: str, above: tuple = ()) -> tuple[dict, dict[tuple, str]]:
    """Read a profile, which is wanted as `where` says, over its base: -> sections, file of each (section[, key])."""
    path, source = files.get(name, (None, f"params/{name}.yaml"))
    if name in above:
        raise ProfileError(f"{where}, which leads back to {name!r}")
    if path is None or not path.is_file():
        choice = f"choose one of {', '.join(sorted(files))}, or write {source}"
        raise ProfileError(f"{where and f'{where}: '}unknown profile {name!r}; {choice}")
    try:
        own = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(own, dict):
        raise ProfileError(f"{source} holds {own!r}; it must hold sections such as data and networks")
    content, origins, base = {}, {}, own.pop("base", None)
    if base is not None:
        content, origins = _read_over_base(base, files, f"{source}: base is {base!r}", (*above, name))
    for section, stated in own.items():
        if isinstance(stated, dict):
            origins |= {(section, key): source for key in stated}
            stated = {**below, **stated} if isinstance(below := content.get(section), dict) else stated
        content[section], origins[section,] = stated, source
    return content, origins


def parse_profile(content: dict[str, Any], *, source: str, origins: dict[tuple, str] | None = None) -> Profile:
    """Check a profile held as nested dicts; `origins` says in which file a (section[, key]) stands, if not in `source`.

    Raises: ProfileError naming `source`, all faults, and the file of each that stands in another.
    """
    try:
        return Profile.model_validate_json(json.dumps(content))  # as JSON: a list may become a tuple, and no more
    except ValidationError as error:
        lines = [f"{source} has {error.error_count()} fault(s):"]
        for fault in error.errors():
            file = (origins or {}).get(fault["loc"][:2], source)
            lines.append(f"  {_describe(fault)}" + (f" (in {file})" if file != source else ""))
        raise ProfileError("\n".join(lines)) from None


def _describe(fault: dict[str, Any]) -> str:
    where, value = ".".join(map(str, fault["loc"])) or "profile", fault["input"]
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key (its value is {value!r}){hint}"
    if fault["type"] == "missing":
        return f"{where}: this key is missing"
    hint = "; YAML reads 1e-3 as text, write 1.0e-3" if fault["type"] == "float_type" else ""
    quoted = "" if isinstance(value, dict) else f" (it is {value!r}{hint})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{quoted}"


def _known_keys(section: type[Section] = Section) -> set[str]:
    return set(section.model_fields).union(*(_known_keys(inner) for inner in section.__subclasses__()))
