"""The lists in which data sets come, and what they name: path, label, split of each video in every fold.

Files are found by the lists' names, there or not. The official lists of Kinetics, UCF-101 and HMDB-51 are read as they
are downloaded, and so are lists of paths and class numbers, class folders, and `annotations.csv`.
"""

import csv
import hashlib
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from faster_lib.data.video import File
from faster_lib.paths import DATA
from faster_lib.profiles import FOLDED, Data

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_SPLITS = ("train", "val", "test")
_KINETICS_COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
_SPLIT_NAMES = {"validate": "val", "validation": "val"}  # as the older release of Kinetics writes it


class Indexed(NamedTuple):
    """One row of an index; a class without videos has a row without a path."""

    path: str  # from the root, with slashes; absolute where it lies elsewhere
    label: str
    target: int
    split: str  # of sets with three folds a word for each, "-" where the fold does not use the video
    file: File = File()


# Path, label, split and fold (1 where the set has none) of each line; and the labels in the order of their targets.
Listed = tuple[list[tuple[Path, str, str, int]], list[str]]


def folder_of(path: str) -> Path:
    """Give the folder that a profile names: relative paths start from `$FASTER_DATA`, by default `data/` of the kit."""
    return DATA / Path(path).expanduser()


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
    targets = {label: target for target, label in enumerate(labels)}
    videos = ((name_in(root, path), label_of[path], " ".join(row)) for (path, _), row in words.items())
    return [Indexed(name, label, targets[label], split) for name, label, split in videos], labels


def name_in(root: Path, path: Path) -> str:
    """Give a path as an index has it."""
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


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    return header, lines


def _read_lines(path: Path, pattern: str, fault: str) -> list[tuple[str, ...]]:
    """Give the groups of a pattern in each line; raises ValueError that quotes the line that does not match it."""
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    found = []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())):
        if not (match := re.fullmatch(pattern, line)):
            raise ValueError(f"{path}: {line!r} {fault}")
        found.append(match.groups())
    return found


def read_annotated(root: Path, lists: Path) -> Listed:
    """Read `annotations.csv`: path (relative to root), label and split."""
    path, columns = root / "annotations.csv", ["path", "label", "split"]
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; it must have the columns {','.join(columns)}")
    header, lines = _read_csv(path)
    if header != columns:
        raise ValueError(f"{path} has the columns {header}; they must be {','.join(columns)}")
    for number, line in enumerate(lines, start=2):
        if len(line) != 3 or not all(line):
            raise ValueError(f"{path}, line {number}: {line} is not one path, label and split")
    return [(root / name, label, split, 1) for name, label, split in lines], sorted({line[1] for line in lines})


def read_kinetics(root: Path, lists: Path) -> Listed:
    """Read every CSV of Kinetics' form; files are `<id>_<start>_<end>`, times padded to 6 digits, in any folder.

    Source: Kay et al. 2017, both releases of the lists (`validate` or `val`, with or without quotes and `is_cc`).
    """
    find, listed, width = _finder(root), [], len(_KINETICS_COLUMNS)
    for path in sorted(lists.glob("*.csv")):
        header, lines = _read_csv(path)
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


def read_ucf101(root: Path, lists: Path) -> Listed:
    """Read `classInd.txt`, `trainlist01.txt` to `testlist03.txt`; classes keep their official order.

    Source: Soomro et al. 2012, "ucfTrainTestlist"; it spells 128 names in another case than the files.
    """
    lists = next((path.parent for path in lists.glob("**/classInd.txt")), lists)
    numbered = _read_lines(lists / "classInd.txt", r"(\d+)\s+(\S+)", "is not a number and a class")
    labels = [label for _, label in sorted(numbered, key=lambda pair: int(pair[0]))]
    known, find, listed = {label.casefold(): label for label in labels}, _finder(root), []
    pattern = rf"(?i)(({'|'.join(map(re.escape, labels))})/\S+).*"  # training lists end in the class number
    for fold, split in itertools.product((1, 2, 3), ("train", "test")):
        path = lists / f"{split}list{fold:02d}.txt"
        for name, label in _read_lines(path, pattern, "is of no class in classInd.txt"):
            listed.append((find(name, is_case_free=True), known[label.casefold()], split, fold))
    return listed, labels


def read_hmdb51(root: Path, lists: Path) -> Listed:
    """Read `<class>_test_split<fold>.txt` of all classes: flag 1 is training, 2 test, 0 neither.

    Source: Kuehne et al. 2011, "testTrainMulti_7030_splits".
    """
    firsts = sorted(lists.glob("**/*_test_split1.txt"))
    if not firsts:
        raise FileNotFoundError(f"no <class>_test_split1.txt in {lists}")
    labels, find, listed = [path.name.removesuffix("_test_split1.txt") for path in firsts], _finder(root), []
    for label, fold in itertools.product(labels, (1, 2, 3)):
        path = firsts[0].with_name(f"{label}_test_split{fold}.txt")
        for name, flag in _read_lines(path, "(.*) ([012])", "does not end in a flag 0, 1 or 2"):
            if flag != "0":
                listed.append((find(f"{label}/{name}"), label, {"1": "train", "2": "test"}[flag], fold))
    return listed, labels


def read_path_label(root: Path, lists: Path) -> Listed:
    """Read `<split>.csv`, `.txt` or `.list` with a path and a class number a line, parted by a blank, comma or tab.

    Classes get their names from `classes.txt` or `label_map.txt`, a name a line, where there is one.

    Source: the lists of PySlowFast and mmaction2.
    """
    named = next(filter(Path.is_file, (lists / name for name in ("classes.txt", "label_map.txt"))), None)
    labels = [label for (label,) in _read_lines(named, "(.+)", "")] if named else None
    names = ([lists / f"{split}{end}" for end in (".csv", ".txt", ".list")] for split in _SPLITS)
    found, numbered = [path for each in names for path in [*filter(Path.is_file, each)][:1]], []
    if not found:
        raise FileNotFoundError(f"no list in {lists}: there must be one such as train.csv, train.txt or train.list")
    for path in found:
        for name, number in _read_lines(path, r"(.+?)[ ,\t]+(\d+)", "is not a path and a class number"):
            if labels is not None and int(number) >= len(labels):
                raise ValueError(f"{path}: class {number} of {name} is none of the {len(labels)} that have a name")
            numbered.append((root / name, int(number), path.stem))
    labels = labels or [str(number) for number in range(1 + max((number for _, number, _ in numbered), default=-1))]
    return [(path, labels[number], split, 1) for path, number, split in numbered], labels


def read_folders(root: Path, lists: Path) -> Listed:
    """Read one folder per class; a split is what `<split>.txt` lists, or the folder `<split>` of such folders.

    Where the set has neither, each video's path decides by its hash: 8 in 10 are for training, 1 for val, 1 for test.
    """
    listed, labels = [], set()
    for split in _SPLITS:
        path, folder = lists / f"{split}.txt", root / split
        if path.is_file():
            labels |= (known := _subfolders(root))
            pattern = rf"(({'|'.join(map(re.escape, known))})[/\\].*)"
            lines = _read_lines(path, pattern, f"is in no class folder of {root}")
            listed += [(root / name.replace("\\", "/"), label, split, 1) for name, label in lines]
        elif folder.is_dir():
            labels |= _subfolders(folder)
            listed += [(path, path.relative_to(folder).parts[0], split, 1) for path in video_files(folder)]
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


LAYOUTS: dict[str, Callable[[Path, Path], Listed]] = {
    "annotated": read_annotated,
    "kinetics": read_kinetics,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "path_label": read_path_label,
    "folders": read_folders,
}
