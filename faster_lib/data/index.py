"""The index of a set of videos, `runs/<profile>/index.csv`: what its lists name, what each file is or why it is unused.

`make index` writes it for real videos, which the library knows by this file alone, so that it never opens one that is
missing or corrupt. Generated videos have such a file in their folder.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from faster_lib.data.datasets import Census, Video, VideoList
from faster_lib.data.synthetic import CLASSES, RECIPE, Planned, plan_videos, write_planned
from faster_lib.data.video import DECODERS, File, VideoError
from faster_lib.paths import DATA, RUNS
from faster_lib.profiles import Profile
from faster_lib.store import REMEDY, Entry, has_hash, hash_of, read_hash, remembered, write_whole

log = logging.getLogger(__name__)
_warn_once = lru_cache(log.warning)

INDEX, CHECK = "index.csv", ".sha256"  # beside an index of real videos: its hash, as `sha256sum` writes it


class Indexed(NamedTuple):
    """One row of an index; a class without videos has a row without a path."""

    path: str  # from the root, with slashes; absolute where it lies elsewhere
    label: str
    target: int
    split: str  # of sets with three folds a word for each, "-" where the fold does not use the video
    file: File = File()


def folder_of(path: str) -> Path:
    """Give the folder that a profile names: relative paths start from `$FASTER_DATA`, by default `data/` of the kit."""
    return DATA / Path(path).expanduser()


def load_videos(profile: Profile, split: str, *, runs: Path = RUNS, is_training: bool = False) -> VideoList:
    """Find a split's readable videos; generated ones are made where they are missing, real ones stand in the index.

    Raises: FileNotFoundError without an index; ValueError if it has no such split, not the profile's number of classes,
        or no readable video, and for training if too many are unreadable.
    """
    if profile.scene is None:
        table, root = _existing_index(profile, runs), folder_of(profile.data.root)
    else:
        entry, plan = _plan_entry(profile, split, runs)
        entry.complete(lambda: _generate(plan, entry.path, profile))
        table, root = entry.path / INDEX, entry.path
        _mend(plan, table, profile)
    rows, data = read_index(table), profile.data
    if len(classes := dict(sorted((row.target, row.label) for row in rows))) != data.num_classes:
        raise ValueError(f"{table} has {len(classes)} classes, but data.num_classes is {data.num_classes}")
    words = [row.split.split()[data.fold - 1] if data.fold and row.path else row.split for row in rows]
    if split not in words:
        raise ValueError(f"{table} has no split {split!r}; it has {', '.join(sorted({*words} - {'', '-'}))}")
    chosen = [row for row, word in zip(rows, words, strict=True) if word == split]
    kept = [row for row in chosen if not row.file.problem]
    if others := {row.file.decoder for row in kept} - {*DECODERS}:
        raise ValueError(f"{table} names the decoder {others.pop()!r}; run: make index PROFILE={profile.name}")
    missing = sum(row.file.problem.startswith("missing") for row in chosen)
    census = Census(len(chosen), len(kept), missing, corrupt=len(chosen) - len(kept) - missing)
    _check_share(census, data.most_unreadable_share, f"split {split!r} in {table}", is_training)
    videos = tuple(Video(root / path, target, file) for path, _, target, _, file in kept)
    return VideoList(videos, tuple(classes.values()), census)


def videos_key(profile: Profile, split: str, *, runs: Path = RUNS) -> str:
    """Name what the videos of a split are, by what decides it: the scene, or the index; no video is made or read."""
    if profile.scene is None:
        depends = {"index": read_hash(_existing_index(profile, runs))}
    else:
        depends = _plan_entry(profile, split, runs)[0].depends
    return hash_of({**depends, "split": split, "fold": profile.data.fold})


def clips_key_facts(profile: Profile) -> dict[str, Any]:
    """Give those values of the data section that decide how clips are cut from videos, as plain JSON."""
    keys = {"video_frames", "train_short_side_px", "test_short_side_px", "crop_px", "flip"}
    return profile.data.model_dump(mode="json", include=keys)


@remembered(2)  # a study asks for it in each of its cells
def read_index(table: Path) -> list[Indexed]:
    """Read an index as it was written."""
    _, *lines = from_csv(table.read_bytes())
    return [Indexed(line[0], line[1], int(line[2]), line[3], parse_file(line[4:])) for line in lines]


def parse_file(texts: Sequence[str]) -> File:
    """Read what a row of a table says of a file."""
    return File(*(kind(text) for kind, text in zip(File.__annotations__.values(), texts, strict=True)))


def as_csv(*rows: Iterable[Any]) -> bytes:
    """Write rows as the content of a table."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # names of files may be any bytes


def from_csv(content: bytes) -> list[list[str]]:
    """Read the rows of a table."""
    return list(csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline="")))


def write_index(table: Path, rows: Sequence[Indexed], labels: Sequence[str]) -> None:
    """Write an index of videos, and of classes that have none."""
    shown = {row.label for row in rows}
    bare = [Indexed("", label, target, "") for target, label in enumerate(labels) if label not in shown]
    header = (*Indexed._fields[:-1], *File._fields)
    write_whole(table, as_csv(header, *((*row[:-1], *row.file) for row in [*rows, *bare])))


def _existing_index(profile: Profile, runs: Path) -> Path:
    table, remedy = runs / profile.name / INDEX, f"by: make index PROFILE={profile.name}"
    if not table.is_file():
        raise FileNotFoundError(f"there is no index {table}; make it {remedy}")
    if (check := table.with_suffix(CHECK)).is_file() and not has_hash(table, check.read_text().partition(" ")[0]):
        raise ValueError(f"{table} is damaged; make it again {remedy}")
    return table


def _plan_entry(profile: Profile, split: str, runs: Path) -> tuple[Entry, list[Planned]]:
    plan = plan_videos(profile.scene, split, has_folds=profile.data.fold is not None)
    scene = profile.scene.model_dump(mode="json", exclude={"videos"})
    depends = {"recipe": RECIPE, "scene": scene, "videos": dict(Counter(video.split for video in plan))}
    return Entry(profile.name, "videos", plan[0].split.replace(" ", "_"), depends, runs), plan


def _generate(plan: Sequence[Planned], folder: Path, profile: Profile) -> dict[str, int]:
    scene, labels, rows = profile.scene, sorted(CLASSES), []
    missing = [video for video in plan if not (folder / video.name).is_file()]
    write_planned(missing, folder, scene, workers=profile.loading.workers)
    about = (scene.frames, float(scene.fps), scene.size_px, scene.size_px, "h264", "decord")
    for name, label, split, _ in plan:
        file = File(*about, (folder / name).stat().st_size, read_hash(folder / name))
        rows.append(Indexed(name, label, labels.index(label), split, file))
    write_index(folder / INDEX, rows, labels)
    return {"videos": len(rows), "bytes": sum(row.file.bytes for row in rows)}


def _mend(plan: Sequence[Planned], table: Path, profile: Profile) -> None:
    """Make those generated videos again whose bytes are not those that the index has; they get the same bytes."""
    hashes = {row.path: row.file.sha256 for row in read_index(table)}
    if damaged := [video for video in plan if not has_hash(table.parent / video.name, hashes[video.name])]:
        paths = [table.parent / video.name for video in damaged]
        log.warning("%s is damaged or gone, as %d of %d are; made again", paths[0], len(paths), len(plan))
        write_planned(damaged, table.parent, profile.scene, workers=profile.loading.workers)
        if wrong := [path for path in paths if not has_hash(path, hashes[path.name])]:
            raise ValueError(f"{wrong[0]} now has other bytes, as of another encoder; {REMEDY}")


def _check_share(census: Census, most_share: float, where: str, is_training: bool) -> None:
    unreadable = census.missing + census.corrupt
    said = f"{unreadable} of the {census.expected} videos of {where} cannot be used: "
    said += f"{census.missing} missing, {census.corrupt} corrupt; the index says why"
    if not census.used or (is_training and unreadable > most_share * census.expected):
        raise ValueError(f"{said}. data.most_unreadable_share is {most_share}: mend the set, or raise it")
    if unreadable:
        _warn_once("%s; they are left out", said)


def check_skipped(
    skipped: Sequence[tuple[int, str]], so_far: dict[str, str], videos: VideoList, most_share: float
) -> None:
    """Note the videos that could not be read though the index says so, and log each once.

    Raises: VideoError if these and those that the index knows are more than `most_share` of all.
    """
    for place, reason in skipped:
        if so_far.setdefault(str(videos.videos[place].path), reason) is reason:
            log.warning("skipped: %s", reason)
    census = videos.census
    if (unreadable := len(so_far) + census.missing + census.corrupt) > most_share * census.expected:
        of = f"{unreadable} of {census.expected} videos cannot be read, more than data.most_unreadable_share, which is"
        raise VideoError(f"{of} {most_share}; the last: {[*so_far.values()][-1]}")
