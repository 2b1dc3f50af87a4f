"""Measured cells: what is known of one, and where it is kept, in `runs/` or with the kit."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load

from faster_lib.data.datasets import Census
from faster_lib.data.index import load_videos, videos_key
from faster_lib.flops import video_gmacs
from faster_lib.model_file import About, save_model
from faster_lib.models.faster import Faster, Schedule
from faster_lib.paths import RESULTS
from faster_lib.provenance import circumstances
from faster_lib.store import Entry
from faster_lib.training.features import FeaturePair
from faster_lib.training.loop import training_facts
from faster_lib.training.stage2 import build_faster, is_learned, settings_of

RECIPE_STAGE_2 = 6  # raised whenever the same features and settings would give another result
PRETRAINING_SPLIT = "val"  # what a pre-trained aggregator is measured on, since Kinetics' test has no labels
Cell = tuple[str, Schedule]  # an aggregator's name and which network sees which clip
Run = tuple[Cell, int]  # and the seed of its training


@dataclass(frozen=True)
class Measured:
    """One cell, trained with one seed, on the videos of a split. Accuracies are in percent, 0 to 100."""

    video1: float  # share of the videos whose class has the highest score, or
    video5: float  # is among the five highest
    video1_of_expected: float  # `video1` if every listed video that cannot be read counts as wrong
    macro_f1: float  # mean F1 of the classes that the videos have
    commonest: float  # what `video1` would be if the commonest class were always said
    correct: str  # for each video, in order, 1 where it is right and 0 elsewhere
    census: Census  # how many videos were expected, used, missing and corrupt
    train_loss: float | None = None  # mean over the last epoch; None where nothing is learned
    seconds: float = 0.0  # of its own training, all starts together
    made: str = ""  # by which commit, on what and when, of a result that comes with the kit


def learns(cell: Cell) -> bool:
    """Whether a cell has anything to train."""
    return cell[0] != "avg_pool"


def aggregator_entry(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> Entry:
    """Name the place of one measured cell; no network is read for that."""
    profile = pair.profile
    depends = {
        "recipe": RECIPE_STAGE_2,
        "networks": [pair.expensive.entry.key, pair.cheap.entry.key],
        "aggregator": aggregator,
        "reduction": profile.networks.reduction,
        "schedule": str(schedule),
        "test": videos_key(profile, split, runs=pair.runs),
        "compiled": profile.loading.compiled,
        **({"bits": 8} if profile.loading.features == "stored_8_bit" else {}),
    }
    if learns((aggregator, schedule)):
        depends["training"] = training_facts(settings_of(profile, aggregator), profile.engine)
        depends["train"] = videos_key(profile, "train", runs=pair.runs)
        depends |= {"seed": seed, "view_seed": profile.backbone_training.seed}
        if pair.pretrained is not None:
            depends["pretrained"] = aggregator_entry(pair.pretrained, aggregator, schedule, seed, PRETRAINING_SPLIT).key
    label = f"{aggregator}-L{pair.clip_frames}-{schedule.count('E')}E{schedule.count('C')}C-seed{seed}"
    return Entry(profile.name, "aggregators", label, depends, pair.runs)


def read_measured(entry: Entry) -> Measured:
    """Read a complete cell, after a look at its record."""
    entry.check()
    measures, seconds = (record := entry.record)["measures"], record["seconds"]
    return Measured(**{**measures, "census": Census(**measures["census"]), "seconds": seconds})


def load_faster(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> Faster:
    """Give a measured cell's trained model, both networks included, in eval mode: it takes clips.

    Raises: FileNotFoundError if it was not trained in this `runs/`; the message says how it is.
    """
    entry = aggregator_entry(pair, aggregator, schedule, seed, split)
    model = build_faster(pair, aggregator, schedule)
    if not learns((aggregator, schedule)):
        return model.eval()
    if not entry.is_complete:
        command = f"python workflow/train.py --profile {pair.profile.name} --stage aggregator -L {pair.clip_frames}"
        command += f" --aggregator {aggregator} --seed {seed} --split {split} --ratio X"
        raise FileNotFoundError(f"{entry.path} is not trained; train it by measure_all(..., anew=True), or: {command}")
    missing, unexpected = model.load_state_dict(load(entry.read()), strict=False)
    if unexpected or any(is_learned(name) for name in missing):
        raise RuntimeError(f"{entry.path} does not fit the model: missing {missing}, unexpected {unexpected}")
    return model.eval()


def save_faster(
    pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str, path: str | Path
) -> None:
    """Save a measured cell's model as a file that `faster_lib.load` reads anywhere; raises as `load_faster`."""
    model, profile, L = load_faster(pair, aggregator, schedule, seed, split), pair.profile, pair.clip_frames
    parts = {"expensive": model.expensive, "cheap": model.cheap, "aggregator": model.aggregator}
    entry, networks = aggregator_entry(pair, aggregator, schedule, seed, split), profile.networks
    record = entry.record if entry.is_complete else {"measures": {}}
    accuracies = {key: record["measures"].get(key) for key in ("video1", "video5", "macro_f1", "census")}
    about = About(
        expensive=pair.expensive.name,
        cheap=pair.cheap.name,
        width=networks.width,
        aggregator=aggregator,
        reduction=networks.reduction,
        schedule=str(schedule),
        classes=load_videos(profile, split, runs=pair.runs).classes,
        clip_frames=L,
        test_short_side_px=profile.data.test_short_side_px,
        crop_px=profile.data.crop_px,
        gmacs=video_gmacs(**parts, schedule=schedule, L=L, size_px=profile.data.crop_px),
        measured={"split": split, **accuracies},
        made={"profile": profile.name, "result": entry.path.name, **circumstances()},
    )
    save_model(model, about, path)


@lru_cache(1)
def shipped_results(path: Path = RESULTS) -> dict[str, Measured]:
    """Read the measured cells that come with the kit, by the name of their entry: its label and its key."""
    found = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            census = Census(*(int(row.pop(count)) for count in ("expected", "used", "missing", "corrupt")))
            texts = {"correct": f"{int(row.pop('correct'), 16):0{census.used}b}", "made": row.pop("made")}
            known = [key for key in row if key in Measured.__dataclass_fields__]  # other columns are for readers
            entry, numbers = row.pop("entry"), {key: float(row[key]) if row[key] else None for key in known}
            found[entry] = Measured(**numbers, **texts, census=census)
    return found
