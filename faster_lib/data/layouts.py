"""The file layouts in which the data sets come, read into lists of videos. No video is opened, none is left out.

A video that its list names and the folder lacks stays in the list, under the path where it should be.
"""

import csv
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from faster_lib.data.datasets import VideoList, read_annotations
from faster_lib.paths import DATA
from faster_lib.profiles import Data

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
SPLITS = ("train", "val", "test")
_KINETICS_COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
_SPLIT_NAMES = {"validate": "val", "validation": "val"}  # as the older release of Kinetics writes it


class Listed(NamedTuple):
    """One line of an annotation file."""

    path: Path
    label: str


def read_layout(data: Data, split: str) -> VideoList:
    """Read one split of a data set in the layout that `data.source` names.

    Raises: FileNotFoundError without the lists of that layout; ValueError for a list that is malformed, or a split or
        fold that the set does not have. Both name the file and what it should hold.
    """
    root = folder_of(data.root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root is {data.root!r}, but {root} is no folder; put the videos there, or set FASTER_DATA to "
            "the folder that relative paths start from"
        )
    if data.source == "annotated":
        return read_annotations(root, split)
    lists = folder_of(data.annotations) if data.annotations else root
    if not lists.is_dir():
        raise FileNotFoundError(
            f"data.annotations is {data.annotations!r}, but {lists} is no folder; put the lists there"
        )
    listed, labels = LAYOUTS[data.source](root, lists, split, data.fold or 1)
    if not listed:
        raise ValueError(f"no video of split {split!r} is listed in {lists} (data.source is {data.source!r})")
    label_of = _once(listed, lists)
    places = {label: place for place, label in enumerate(labels)}
    return VideoList(tuple(label_of), tuple(places[label] for label in label_of.values()), tuple(labels))


def folder_of(path: str) -> Path:
    """Give the folder that a profile names: relative paths start from `$FASTER_DATA`, by default `data/` of the kit."""
    return DATA / Path(path).expanduser()


def video_files(folder: Path) -> list[Path]:
    """List the video files below a folder, by their endings, in the order of their paths."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]


class Files:
    """The video files below a folder, found by their name, whatever the ending and the folders between."""

    def __init__(self, root: Path):
        self.root = root
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in video_files(root):
            self._by_name[path.stem.casefold()].append(path)

    def find(self, expected: str, *, split: str = "", is_case_free: bool = False) -> Path:
        """Find a file by its path from the root; of several, the one in a folder of that name or of the split's.

        Returns: the path; where there is none, the expected one.
        Raises: ValueError if two files fit equally well.
        """
        wanted = Path(expected)
        found = self._by_name.get(wanted.stem.casefold(), [])
        if not is_case_free:
            found = [path for path in found if path.stem == wanted.stem]
        for folder in (wanted.parent.name.casefold(), split):
            inside = [path for path in found if folder in (part.casefold() for part in path.parent.parts)]
            found = inside or found
        if len(found) > 1:
            raise ValueError(f"{expected!r} may be {found[0]} or {found[1]}; keep one of them below {self.root}")
        return found[0] if found else self.root / expected


def read_kinetics(root: Path, lists: Path, split: str, fold: int) -> tuple[list[Listed], list[str]]:
    """Read every CSV of Kinetics' form; files are `<id>_<start>_<end>`, times padded to 6 digits, in any folder.

    Source: Kay et al. 2017, both releases of the lists (`validate` or `val`, with or without quotes and `is_cc`).
    """
    rows = [row for path in sorted(lists.glob("*.csv")) for row in _kinetics_rows(path)]
    if not rows:
        raise FileNotFoundError(f"no CSV in {lists} has the columns {','.join(_KINETICS_COLUMNS)}")
    splits = {row["split"] for row in rows}
    if split not in splits:
        raise ValueError(f"the CSVs in {lists} have no split {split!r}; they have {', '.join(sorted(splits))}")
    files = Files(root)
    chosen = [row for row in rows if row["split"] == split]
    names = [f"{row['youtube_id']}_{row['time_start']:06d}_{row['time_end']:06d}.mp4" for row in chosen]
    listed = [Listed(files.find(name, split=split), row["label"]) for name, row in zip(names, chosen, strict=True)]
    return listed, sorted({row["label"] for row in rows})


def _kinetics_rows(path: Path) -> Iterator[dict]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or reader.fieldnames[: len(_KINETICS_COLUMNS)] != _KINETICS_COLUMNS:
            return
        for number, row in enumerate(reader, start=2):
            try:
                times = {key: int(float(row[key])) for key in ("time_start", "time_end")}
                split = row["split"].strip()
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {list(row.values())} is no row of Kinetics") from error
            yield {**row, **times, "split": _SPLIT_NAMES.get(split, split)}


def read_ucf101(root: Path, lists: Path, split: str, fold: int) -> tuple[list[Listed], list[str]]:
    """Read `classInd.txt` and `trainlist0<fold>.txt` or `testlist0<fold>.txt`; classes keep their official order.

    The lists spell 128 names of HandstandPushups in another case than the files.

    Source: Soomro et al. 2012, "ucfTrainTestlist".
    """
    lists = _inner(lists, "ucfTrainTestlist")
    _check_split(split, ("train", "test"), "UCF-101")
    numbered = [line.split() for line in _lines(lists / "classInd.txt")]
    labels = [name for _, name in sorted(numbered, key=lambda pair: int(pair[0]))]
    known = {label.casefold(): label for label in labels}
    path, files, listed = lists / f"{split}list{fold:02d}.txt", Files(root), []
    for line in _lines(path):
        name = line.split()[0]  # the training list has the class number behind it
        folder = name.split("/")[0]
        if folder.casefold() not in known:
            raise ValueError(f"{path}: {line!r} is of no class in classInd.txt")
        listed.append(Listed(files.find(name, is_case_free=True), known[folder.casefold()]))
    return listed, labels


def read_hmdb51(root: Path, lists: Path, split: str, fold: int) -> tuple[list[Listed], list[str]]:
    """Read `<class>_test_split<fold>.txt` of all classes: flag 1 is training, 2 test, 0 neither.

    Source: Kuehne et al. 2011, "testTrainMulti_7030_splits".
    """
    lists = _inner(lists, "testTrainMulti_7030_splits")
    _check_split(split, ("train", "test"), "HMDB-51")
    ending = f"_test_split{fold}.txt"
    paths = sorted(lists.glob(f"*{ending}"))
    if not paths:
        raise FileNotFoundError(f"no <class>{ending} in {lists}")
    files, listed, wanted = Files(root), [], {"train": "1", "test": "2"}[split]
    labels = [path.name.removesuffix(ending) for path in paths]
    for path, label in zip(paths, labels, strict=True):
        for line in _lines(path):
            name, _, flag = line.rpartition(" ")
            if flag not in ("0", "1", "2"):
                raise ValueError(f"{path}: {line!r} does not end in a flag 0, 1 or 2")
            if flag == wanted:
                listed.append(Listed(files.find(f"{label}/{name}"), label))
    return listed, labels


def read_path_label(root: Path, lists: Path, split: str, fold: int) -> tuple[list[Listed], list[str]]:
    """Read `<split>.csv`, `.txt` or `.list` with a path and a class number a line, parted by a blank, comma or tab.

    Classes get their names from `classes.txt` or `label_map.txt` beside it, a name a line, where there is one.

    Source: the lists of PySlowFast and mmaction2.
    """
    path = _one_of(lists, [f"{split}{ending}" for ending in (".csv", ".txt", ".list")])
    listed = []
    for line in _lines(path):
        match = re.fullmatch(r"(.+?)[ ,\t]+(\d+)", line)
        if not match:
            raise ValueError(f"{path}: {line!r} is not a path and a class number")
        listed.append(Listed(root / match[1], match[2]))
    names = next((_lines(lists / name) for name in ("classes.txt", "label_map.txt") if (lists / name).is_file()), None)
    if names is None:
        return listed, [str(number) for number in range(1 + max((int(v.label) for v in listed), default=-1))]
    for video in listed:
        if int(video.label) >= len(names):
            raise ValueError(
                f"{path}: class {video.label} of {video.path} is none of the {len(names)} that have a name"
            )
    return [Listed(video.path, names[int(video.label)]) for video in listed], names


def read_folders(root: Path, lists: Path, split: str, fold: int) -> tuple[list[Listed], list[str]]:
    """Read one folder per class; the split is what `<split>.txt` lists, or the folder `<split>` of such folders.

    Where the set has neither for any split, each video's path decides by its hash: 8 in 10 are for training, 1 for val,
    1 for the test.

    Raises: ValueError if other splits have a list or a folder, and this one has none.
    """
    top = root / split if (root / split).is_dir() else root
    labels = sorted(path.name for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    if (lists / f"{split}.txt").is_file():
        listed = [Listed(root / line, line.replace("\\", "/").split("/")[0]) for line in _lines(lists / f"{split}.txt")]
        for video in listed:
            if video.label not in labels:
                raise ValueError(f"{lists / f'{split}.txt'}: {video.path} is in no class folder of {root}")
        return listed, labels
    videos = [Listed(path, label) for label in labels for path in video_files(top / label)]
    if top == root:
        others = [name for name in SPLITS if (lists / f"{name}.txt").is_file() or (root / name).is_dir()]
        if others:
            raise ValueError(f"{root} has no split {split!r}: there are lists or folders of {', '.join(others)} alone")
        log.info(
            "%s has no %s.txt and no folder %s: the hash of its path puts each video in a split", root, split, split
        )
        videos = [video for video in videos if _split_by_hash(video.path.relative_to(root)) == split]
    return videos, labels


def _split_by_hash(path: Path) -> str:
    number = int(hashlib.sha256(path.as_posix().encode()).hexdigest()[:8], 16) % 10
    return {8: "val", 9: "test"}.get(number, "train")


LAYOUTS: dict[str, Callable[[Path, Path, str, int], tuple[list[Listed], list[str]]]] = {
    "kinetics": read_kinetics,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "path_label": read_path_label,
    "folders": read_folders,
}


def _once(listed: list[Listed], lists: Path) -> dict[Path, str]:
    """Give each video's label; repeated lines count once, and one video of two classes is an error."""
    labels: dict[Path, str] = {}
    for video in listed:
        if labels.setdefault(video.path, video.label) != video.label:
            raise ValueError(f"{lists} lists {video.path} as {labels[video.path]!r} and as {video.label!r}")
    if len(labels) < len(listed):
        log.warning("%d lines in %s repeat others and count once", len(listed) - len(labels), lists)
    return labels


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _inner(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _one_of(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no list in {folder}: there must be one of {', '.join(names)}")


def _check_split(split: str, known: tuple[str, ...], what: str) -> None:
    if split not in known:
        raise ValueError(f"{what} has no split {split!r}; it has {' and '.join(known)}")
