"""The index of a set of videos, `runs/<profile>/index.csv`: what its lists name, what each file is or why it is unused.

Everything else reads only that file, and never opens a video that is missing or corrupt. Here the lists are read in the
forms in which the data sets come, and every file is read whole, in a worker process that may abort or hang without
harm. Generated videos have such a file in their folder.
"""

import argparse
import csv
import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as LimitReached
from concurrent.futures import as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from faster_lib.data.datasets import Census, Video, VideoList
from faster_lib.data.synthetic import CLASSES, RECIPE, Planned, plan_videos, write_planned
from faster_lib.data.video import VideoError, probe_video
from faster_lib.paths import DATA, RUNS
from faster_lib.profiles import FOLDED, Data, Profile, load_profile
from faster_lib.store import Entry, hash_of, naming, remove_partials, write_whole

log = logging.getLogger(__name__)
_warn_once = lru_cache(log.warning)

INDEX = "index.csv"
TIME_LIMIT_SECONDS = 60.0  # for a file, and
SECONDS_PER_MB = 5.0  # more for each megabyte: one core reads 100 frames of 340 x 256 in that time if it is slow
VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_SPLITS = ("train", "val", "test")
_FLAGS = {"1": "train", "2": "test", "0": "-"}  # of HMDB-51's lists
_KINETICS_COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
_SPLIT_NAMES = {"validate": "val", "validation": "val"}  # as the older release of Kinetics writes it
_LENGTHS = (8, 16, 32)  # of clips, for which the summary counts the videos that are shorter. Source: Table 2
_MOST_NAMED = 20  # of the unreadable and of the duplicate videos that the summary names


class File(NamedTuple):
    """What reading a file showed."""

    frames: int = 0
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    codec: str = ""
    decoder: str = ""  # as `Video` has it
    bytes: int = 0
    sha256: str = ""
    problem: str = ""  # empty, or "missing: ..." or "corrupt: ..."


class Indexed(NamedTuple):
    """One row of an index; a class without videos has a row without a path."""

    path: str  # from the root, with slashes; absolute where it lies elsewhere
    label: str
    target: int
    split: str  # of sets with three folds a word for each, "-" where the fold does not use the video
    file: File = File()


# A line of the lists: path, label, split, and the fold, 1 where the set has none. The readers also give all classes.
Listed = tuple[Path, str, str, int]


def load_videos(profile: Profile, split: str, *, runs: Path = RUNS, is_training: bool = False) -> VideoList:
    """Find a split's readable videos; generated ones are made where they are missing, real ones stand in the index.

    Args:
        is_training: refuse a split of which too many videos are missing or corrupt.
    Raises: FileNotFoundError without an index; ValueError if it has no such split or not the profile's number of
        classes, or if too many videos are unreadable.
    """
    if profile.scene is None:
        table, root = _existing_index(profile, runs), folder_of(profile.data.root)
    else:
        entry, plan = _plan_entry(profile, split, runs)
        entry.complete(lambda: _generate(plan, entry.path, profile))
        table, root = entry.path / INDEX, entry.path
    rows = read_index(table)
    classes = dict(sorted((row.target, row.label) for row in rows))
    if len(classes) != profile.data.num_classes:
        raise ValueError(f"{table} has {len(classes)} classes, but data.num_classes is {profile.data.num_classes}")
    words = [row.split.split()[profile.data.fold - 1] if profile.data.fold and row.path else row.split for row in rows]
    if split not in words:
        raise ValueError(f"{table} has no split {split!r}; it has {', '.join(sorted({*words} - {'', '-'}))}")
    chosen = [row for row, word in zip(rows, words, strict=True) if word == split]
    kept = [row for row in chosen if not row.file.problem]
    missing = sum(row.file.problem.startswith("missing") for row in chosen)
    videos = tuple(Video(root / path, target, file.frames, file.decoder) for path, _, target, _, file in kept)
    found = VideoList(videos, tuple(classes.values()), missing, len(chosen) - len(kept) - missing)
    _check_share(found.census, profile.data.most_unreadable_share, f"split {split!r} in {table}", is_training)
    return found


def videos_key(profile: Profile, split: str, *, runs: Path = RUNS) -> str:
    """Name what the videos of a split are, by what decides it: the scene, or the index; no video is made or read."""
    if profile.scene is None:
        depends = {"index": hashlib.sha256(_existing_index(profile, runs).read_bytes()).hexdigest()}
    else:
        depends = _plan_entry(profile, split, runs)[0].depends
    return hash_of({**depends, "split": split, "fold": profile.data.fold})


def clips_key_facts(profile: Profile) -> dict[str, Any]:
    """Give those values of the data section that decide how clips are cut from videos, as plain JSON."""
    keys = {"video_frames", "train_short_side_px", "test_short_side_px", "crop_px", "flip"}
    return profile.data.model_dump(mode="json", include=keys)


def folder_of(path: str) -> Path:
    """Give the folder that a profile names: relative paths start from `$FASTER_DATA`, by default `data/` of the kit."""
    return DATA / Path(path).expanduser()


def read_index(table: Path) -> list[Indexed]:
    """Read an index as it was written."""
    with table.open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    return [Indexed(line[0], line[1], int(line[2]), line[3], _parse(line[4:])) for line in lines]


def _parse(texts: Sequence[str]) -> File:
    return File(*(kind(text) for kind, text in zip(File.__annotations__.values(), texts, strict=True)))


def _as_csv(*rows: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def write_index(table: Path, rows: Sequence[Indexed], labels: Sequence[str]) -> None:
    """Write an index of videos, and of classes that have none."""
    shown = {row.label for row in rows}
    bare = [Indexed("", label, target, "") for target, label in enumerate(labels) if label not in shown]
    header = (*Indexed._fields[:-1], *File._fields)
    write_whole(table, _as_csv(header, *((*row[:-1], *row.file) for row in [*rows, *bare])))


def _existing_index(profile: Profile, runs: Path) -> Path:
    table = runs / profile.name / INDEX
    if not table.is_file():
        raise FileNotFoundError(f"there is no index {table}; make it by: make index PROFILE={profile.name}")
    return table


def _plan_entry(profile: Profile, split: str, runs: Path) -> tuple[Entry, list[Planned]]:
    plan = plan_videos(profile.scene, split, has_folds=profile.data.fold is not None)
    scene = profile.scene.model_dump(mode="json", exclude={"videos"})
    depends = {"recipe": RECIPE, "scene": scene, "videos": dict(Counter(video.split for video in plan))}
    return Entry(profile.name, "videos", plan[0].split.replace(" ", "_"), depends, runs), plan


def _generate(plan: Sequence[Planned], folder: Path, profile: Profile) -> dict[str, int]:
    scene, labels, rows = profile.scene, sorted(CLASSES), []
    write_planned(plan, folder, scene, workers=profile.loading.workers)
    for name, label, split, _ in plan:
        content = (folder / name).read_bytes()
        form = (scene.frames, float(scene.fps), scene.size_px, scene.size_px, "h264", "decord")
        file = File(*form, len(content), hashlib.sha256(content).hexdigest())
        rows.append(Indexed(name, label, labels.index(label), split, file))
    write_index(folder / INDEX, rows, labels)
    return {"videos": len(rows), "bytes": sum(row.file.bytes for row in rows)}


def _check_share(census: Census, most_share: float, where: str, is_training: bool) -> None:
    unreadable = census.missing + census.corrupt
    said = f"{unreadable} of the {census.expected} videos of {where} cannot be used: "
    said += f"{census.missing} missing, {census.corrupt} corrupt; the index says why"
    if not census.used or (is_training and unreadable > most_share * census.expected):
        raise ValueError(f"{said}. data.most_unreadable_share is {most_share}: mend the set, or raise it")
    if unreadable:
        _warn_once("%s; they are left out", said)


def list_videos(data: Data) -> tuple[list[Indexed], list[str]]:
    """List the videos of all splits and folds by the set's own lists, there or not, and its classes in order.

    Raises: FileNotFoundError without such lists; ValueError, naming file and line, for a list that is malformed.
    """
    root, lists = folder_of(data.root), folder_of(data.annotations or data.root)
    for key, path in (("root", root), ("annotations", lists)):
        if not path.is_dir():
            where = f"data.{key} is {getattr(data, key)!r}, but {path} is no folder"
            raise FileNotFoundError(f"{where}; relative paths start from {DATA}, or from FASTER_DATA")
    listed, labels = LAYOUTS[data.source](root, lists)
    has_folds, words, label_of = data.source in FOLDED, {}, {}
    for path, label, split, fold in listed:
        if len(split.split()) != 1:
            raise ValueError(f"{lists} lists {path} in the split {split!r}, whose name must be one word")
        if label_of.setdefault(path, label) != label:
            raise ValueError(f"{lists} lists {path} as {label_of[path]!r} and as {label!r}")
        row = words.setdefault((path, "" if has_folds else split), ["-"] * (3 if has_folds else 1))
        if row[fold - 1] not in ("-", split):
            raise ValueError(f"{lists} lists {path} in {row[fold - 1]} and in {split} of fold {fold}")
        row[fold - 1] = split
    if not words:
        raise ValueError(f"no video is listed in {lists} (data.source is {data.source!r})")
    if repeated := len(listed) - sum(word != "-" for row in words.values() for word in row):
        log.warning("%d lines in %s repeat others and count once", repeated, lists)
    targets, rows = {label: target for target, label in enumerate(labels)}, []
    for (path, _), row in words.items():
        rows.append(Indexed(_name_in(root, path), label_of[path], targets[label_of[path]], " ".join(row)))
    return rows, labels


def _name_in(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def video_files(folder: Path) -> list[Path]:
    """List the video files below a folder, by their endings, in the order of their paths."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]


def _finder(root: Path) -> Callable[..., Path]:
    """Give a function that finds a video file below a folder by its name, whatever its ending and the folders between.

    Of several it is the one in a folder of the expected name or of the split's; ValueError if two fit equally well.
    Where there is none, the expected path is given.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in video_files(root):
        by_name[path.stem.casefold()].append(path)

    def find(expected: str, *, split: str = "", is_case_free: bool = False) -> Path:
        wanted = Path(expected)
        found = by_name.get(wanted.stem.casefold(), [])
        found = [path for path in found if is_case_free or path.stem == wanted.stem]
        for folder in (wanted.parent.name.casefold(), split):
            found = [path for path in found if folder in (part.casefold() for part in path.parent.parts)] or found
        if len(found) > 1:
            raise ValueError(f"{expected!r} may be {found[0]} or {found[1]}; keep one of them below {root}")
        return found[0] if found else root / expected

    return find


def read_annotated(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read `annotations.csv`: path (relative to root), label and split."""
    path, columns = root / "annotations.csv", ["path", "label", "split"]
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; it must have the columns {','.join(columns)}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *lines = csv.reader(file)
    if header != columns:
        raise ValueError(f"{path} has the columns {header}; they must be {','.join(columns)}")
    for number, line in enumerate(lines, start=2):
        if len(line) != 3 or not all(line):
            raise ValueError(f"{path}, line {number}: {line} is not one path, label and split")
    return [(root / name, label, split, 1) for name, label, split in lines], sorted({line[1] for line in lines})


def read_kinetics(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read every CSV of Kinetics' form; files are `<id>_<start>_<end>`, times padded to 6 digits, in any folder.

    Source: Kay et al. 2017, both releases of the lists (`validate` or `val`, with or without quotes and `is_cc`).
    """
    find, listed, width = _finder(root), [], len(_KINETICS_COLUMNS)
    for path in sorted(lists.glob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        for number, line in enumerate(lines if header[:width] == _KINETICS_COLUMNS else (), start=2):
            try:
                label, key, *times, split = line[:width]
                start, end = (f"{int(float(time)):06d}" for time in times)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {line} is no row of Kinetics") from error
            split = _SPLIT_NAMES.get(split.strip(), split.strip())
            listed.append((find(f"{key}_{start}_{end}.mp4", split=split), label, split, 1))
    if not listed:
        raise FileNotFoundError(f"no CSV in {lists} has the columns {','.join(_KINETICS_COLUMNS)}")
    return listed, sorted({label for _, label, _, _ in listed})


def read_ucf101(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read `classInd.txt`, `trainlist01.txt` to `testlist03.txt`; classes keep their official order.

    The lists spell 128 names of HandstandPushups in another case than the files.

    Source: Soomro et al. 2012, "ucfTrainTestlist".
    """
    lists = next((path.parent for path in lists.glob("**/classInd.txt")), lists)
    numbered = [line.split() for line in _lines(lists / "classInd.txt")]
    labels = [name for _, name in sorted(numbered, key=lambda pair: int(pair[0]))]
    known, find, listed = {label.casefold(): label for label in labels}, _finder(root), []
    for fold, split in itertools.product((1, 2, 3), ("train", "test")):
        path = lists / f"{split}list{fold:02d}.txt"
        for line in _lines(path):
            name = line.split()[0]  # the training list has the class number behind it
            folder = name.split("/")[0].casefold()
            if folder not in known:
                raise ValueError(f"{path}: {line!r} is of no class in classInd.txt")
            listed.append((find(name, is_case_free=True), known[folder], split, fold))
    return listed, labels


def read_hmdb51(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read `<class>_test_split<fold>.txt` of all classes: flag 1 is training, 2 test, 0 neither.

    Source: Kuehne et al. 2011, "testTrainMulti_7030_splits".
    """
    firsts = sorted(lists.glob("**/*_test_split1.txt"))
    if not firsts:
        raise FileNotFoundError(f"no <class>_test_split1.txt in {lists}")
    labels, find, listed = [path.name.removesuffix("_test_split1.txt") for path in firsts], _finder(root), []
    for label, fold in itertools.product(labels, (1, 2, 3)):
        path = firsts[0].with_name(f"{label}_test_split{fold}.txt")
        for line in _lines(path):
            name, _, flag = line.rpartition(" ")
            if flag not in _FLAGS:
                raise ValueError(f"{path}: {line!r} does not end in a flag 0, 1 or 2")
            if flag != "0":
                listed.append((find(f"{label}/{name}"), label, _FLAGS[flag], fold))
    return listed, labels


def read_path_label(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read `<split>.csv`, `.txt` or `.list` with a path and a class number a line, parted by a blank, comma or tab.

    Classes get their names from `classes.txt` or `label_map.txt` beside it, a name a line, where there is one.

    Source: the lists of PySlowFast and mmaction2.
    """
    endings, names, numbered = (".csv", ".txt", ".list"), ("classes.txt", "label_map.txt"), []
    labels = next((_lines(lists / name) for name in names if (lists / name).is_file()), None)
    found = [next(filter(Path.is_file, (lists / f"{split}{end}" for end in endings)), None) for split in _SPLITS]
    for path in filter(None, found):
        for line in _lines(path):
            match = re.fullmatch(r"(.+?)[ ,\t]+(\d+)", line)
            if not match:
                raise ValueError(f"{path}: {line!r} is not a path and a class number")
            if labels is not None and int(match[2]) >= len(labels):
                raise ValueError(
                    f"{path}: class {match[2]} of {match[1]} is none of the {len(labels)} that have a name"
                )
            numbered.append((root / match[1], int(match[2]), path.stem))
    if not any(found):
        raise FileNotFoundError(f"no list in {lists}: there must be one such as train.csv, train.txt or train.list")
    labels = labels or [str(number) for number in range(1 + max((number for _, number, _ in numbered), default=-1))]
    return [(path, labels[number], split, 1) for path, number, split in numbered], labels


def read_folders(root: Path, lists: Path) -> tuple[list[Listed], list[str]]:
    """Read one folder per class; a split is what `<split>.txt` lists, or the folder `<split>` of such folders.

    Where the set has neither for any split, each video's path decides by its hash: 8 in 10 are for training, 1 for val,
    1 for the test.
    """
    listed, labels = [], set()
    for split in _SPLITS:
        path = lists / f"{split}.txt"
        if path.is_file():
            labels |= (known := _subfolders(root))
            for line in (line.replace("\\", "/") for line in _lines(path)):
                if line.split("/")[0] not in known:
                    raise ValueError(f"{path}: {line} is in no class folder of {root}")
                listed.append((root / line, line.split("/")[0], split, 1))
        elif (root / split).is_dir():
            labels |= _subfolders(root / split)
            found = video_files(root / split)
            listed += [(path, path.relative_to(root / split).parts[0], split, 1) for path in found]
    if not labels:
        log.info("%s has no list and no folder of a split: the hash of its path puts each video in one", root)
        labels = _subfolders(root)
        for path in video_files(root):
            name = path.relative_to(root).as_posix()
            tenth = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
            listed.append((path, name.split("/")[0], {8: "val", 9: "test"}.get(tenth, "train"), 1))
    return [video for video in listed if video[1] in labels], sorted(labels)


def _subfolders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


LAYOUTS: dict[str, Callable[[Path, Path], tuple[list[Listed], list[str]]]] = {
    "annotated": read_annotated,
    "kinetics": read_kinetics,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "path_label": read_path_label,
    "folders": read_folders,
}


def index_videos(
    profile: Profile, *, workers: int, time_limit: float = TIME_LIMIT_SECONDS, runs: Path = RUNS
) -> list[Indexed]:
    """List and read a profile's real videos, and write `runs/<profile>/index.csv`; files known already are not read.

    Args:
        time_limit: seconds that a file may take, before what its size adds.
    """
    listed, labels = list_videos(profile.data)
    folder, root = runs / profile.name, folder_of(profile.data.root)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    paths = dict.fromkeys(root / row.path for row in listed)
    files = scan(paths, root, folder / "index.scan.csv", workers=workers, time_limit=time_limit)
    rows = [row._replace(file=files[root / row.path]) for row in listed]
    write_index(folder / INDEX, rows, labels)
    return rows


def scan(
    paths: Iterable[Path], root: Path, memory: Path, *, workers: int, time_limit: float = TIME_LIMIT_SECONDS
) -> dict[Path, File]:
    """Read files side by side, those that `memory` does not know with the size and time of change that they have.

    A row of `memory` is written as soon as it is known, so that an interrupted scan goes on.
    """
    with FileLock(f"{memory}.lock"):
        known, found, todo = _read_memory(memory), {}, {}
        for path in paths:
            try:
                stat = path.stat()
            except OSError as error:
                found[path] = File(problem=f"missing: no such file ({error.strerror})")
                continue
            modified_ns, found[path] = known.get(_name_in(root, path), (0, File()))
            if (modified_ns, found[path].bytes) != (stat.st_mtime_ns, stat.st_size):
                todo[path] = stat
        if todo:  # the memory whole first, whatever an interruption left at its end
            write_whole(memory, _as_csv(*((name, time, *file) for name, (time, file) in known.items())))
        for path, file in _read_files({path: stat.st_size for path, stat in todo.items()}, workers, time_limit):
            found[path] = file
            with naming(memory), memory.open("ab") as rows:
                rows.write(_as_csv((_name_in(root, path), todo[path].st_mtime_ns, *file)))
    return found


def _read_memory(memory: Path) -> dict[str, tuple[int, File]]:
    """Give the rows by path; half a line, as an interruption or a full disk leaves it, counts as none."""
    content = memory.read_bytes() if memory.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1].decode()
    lines = csv.reader(io.StringIO(whole, newline=""))
    return {line[0]: (int(line[1]), _parse(line[2:])) for line in lines}


def _read_files(sizes: Mapping[Path, int], workers: int, time_limit: float) -> Iterator[tuple[Path, File]]:
    if not sizes:
        return
    context = multiprocessing.get_context("forkserver")  # decord's open readers would not survive a fork of this one
    context.set_forkserver_preload([__name__])
    with ProcessPool(max_workers=max(workers, 1), context=context, initializer=_hush) as pool:
        futures = {}
        for path, size in sizes.items():
            limit = time_limit + SECONDS_PER_MB * size / 1e6
            futures[pool.schedule(_read_file, args=[path, size], timeout=limit)] = path, size
        try:
            for future in tqdm(as_completed(futures), desc="index videos", unit="video", total=len(futures)):
                path, size = futures.pop(future)
                try:
                    yield path, future.result()
                except LimitReached as error:
                    yield path, File(bytes=size, problem=f"corrupt: reading it took more than {error.args[1]:.0f} s")
                except ProcessExpired as error:
                    reason = f"the decoder aborted (exit code {error.exitcode})"
                    yield path, File(bytes=size, problem=f"corrupt: {reason}")
        except BaseException:
            pool.stop()
            raise


def _hush() -> None:
    """Let the decoders of a worker process say nothing of their own: what is wrong with a file stands in its row."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _read_file(path: Path, size: int) -> File:
    """Read one file, in a worker process."""
    sha256 = ""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return File(*probe_video(path), size, sha256)
    except (VideoError, OSError, MemoryError) as error:
        reason = f"{error}".removeprefix(f"{path}: ") or type(error).__name__
        return File(bytes=size, sha256=sha256, problem=f"corrupt: {reason}")


def summarise(rows: Sequence[Indexed]) -> str:
    """Say what an index holds: expected, missing, corrupt, too short, and what is in more than one split."""
    columns = "{:<14}{:>9}{:>9}{:>8}{:>8}  {}".format
    lines = [columns("split", "expected", "readable", "missing", "corrupt", "shorter than L = 8, 16, 32, and looped")]
    splits: dict[str, list[File]] = defaultdict(list)
    for row in rows:
        words = row.split.split()
        for fold, word in enumerate(words, start=1):
            splits[f"{word}, fold {fold}" if len(words) > 1 else word].append(row.file)
    for split, files in splits.items():
        count = Counter(file.problem.split(":")[0] for file in files)
        short = (str(sum(not file.problem and file.frames < length for file in files)) for length in _LENGTHS)
        counts = (len(files), *(count[key] for key in ("", "missing", "corrupt")))
        if not split.startswith("-"):
            lines.append(columns(split, *counts, ", ".join(short)))
    files = {row.path: row.file for row in rows}
    codecs = Counter(f"{file.codec} read by {file.decoder}" for file in files.values() if not file.problem)
    lines.append("codec: " + ", ".join(f"{codec} ({number})" for codec, number in codecs.most_common()))
    unreadable = [f"  {path}: {file.problem}" for path, file in files.items() if file.problem]
    for what, found in (("unreadable", unreadable), ("the same content in two splits", _list_shared(rows))):
        more = len(found) - _MOST_NAMED
        lines += [f"{what}: {len(found)}", *found[:_MOST_NAMED]]
        lines += [f"  ... and {more} more, in the index"] if more > 0 else []
    return "\n".join(lines)


def _list_shared(rows: Sequence[Indexed]) -> list[str]:
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        places[row.file.sha256].setdefault(row.split, row.path)
    places.pop("", None)  # of what could not be read
    folds = {sha256: zip(*(split.split() for split in found), strict=True) for sha256, found in places.items()}
    shared = [places[key] for key in folds if any(len({*words} - {"-"}) > 1 for words in folds[key])]
    return ["  " + ", ".join(f"{split}: {path}" for split, path in found.items()) for found in shared]


def main(arguments: Sequence[str] | None = None) -> None:
    """Index the videos of a profile's data set, and say what is missing, corrupt, too short or there twice."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.data.index", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/ of real videos")
    parser.add_argument("--workers", type=int, help="processes; default: loading.workers of the profile")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_SECONDS, help="seconds for a file")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    profile = load_profile(given.profile)
    if profile.scene is not None:
        raise SystemExit(f"params/{profile.name}.yaml is of generated videos, which need no index")
    workers = given.workers or profile.loading.workers
    try:
        rows = index_videos(profile, workers=workers, time_limit=given.time_limit, runs=RUNS)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    log.info("%s\nindex: %s", summarise(rows), RUNS / profile.name / INDEX)


if __name__ == "__main__":
    main()
