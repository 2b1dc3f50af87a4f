"""The lists in which data sets come, and what they name: path, label, split of each video in every fold.

Files are found by the lists' names, there or not. The official lists of Kinetics, UCF-101 and HMDB-51 are read as they
are downloaded, and so are lists of paths and class numbers, class folders, and `annotations.csv`.
"""

import csv
import hashlib
import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import av

from faster_lib.data.index import Indexed, folder_of
from faster_lib.paths import DATA
from faster_lib.profile_sections import FOLDED, Data

log = logging.getLogger(__name__)
_plain = partial(normalize, "NFC")  # one form of an accent, however it is stored

_VIDEO = ".3g2 .3gp .asf .avi .flv .m1v .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv"
_OTHER = ".bmp .csv .gz .jpeg .jpg .json .list .md .mp3 .npy .npz .part .pkl .png .py .tar .txt .wav .webp .xml .zip"
VIDEO_SUFFIXES, OTHER_SUFFIXES = set(_VIDEO.split()), set(_OTHER.split())  # files of any other ending are tried
_SPLITS = ("train", "val", "test")
_CLIP = re.compile(rb"[_-](c|clip|part)\d+(?=\.\w+$)", re.IGNORECASE)  # which part of one recording a file is
_KINETICS_COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
_SPLIT_NAMES = {"validate": "val", "validation": "val"}  # as the older release of Kinetics writes it


class Line(NamedTuple):
    """What one line of a list says of a video; the fold is 1 where the set has none."""

    path: Path
    label: str
    split: str
    fold: int
    where: str


Listed = tuple[list[Line], list[str]]  # and the labels in the order of their targets


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
    if not listed:
        raise ValueError(f"no video is listed in {lists} (data.source is {data.source!r})")
    joined, targets = _join(listed, 3 if data.source in FOLDED else 1), {label: i for i, label in enumerate(labels)}
    return [Indexed(name_in(root, v.path), v.label, targets[v.label], " ".join(row)) for v, row in joined], labels


def _join(listed: Sequence[Line], folds: int) -> list[tuple[Line, list[str]]]:
    """Join the lines of each video: the first of them, and its split in each fold; without folds, a split apart."""
    firsts, words, repeated = {}, {}, []
    for line in listed:
        if len(line.split.split()) != 1:
            raise ValueError(f"{line.where}: the split {line.split!r} must be one word")
        first = firsts.setdefault(line.path, line)
        if first.label != line.label:
            raise ValueError(f"{first.where} lists {line.path} as {first.label!r}, {line.where} as {line.label!r}")
        _, row = words.setdefault((line.path, folds > 1 or line.split), (line, ["-"] * folds))
        before, row[line.fold - 1] = row[line.fold - 1], line.split
        if before not in ("-", line.split):
            raise ValueError(f"{line.where}: {line.path} in {before} and in {line.split} of fold {line.fold}")
        repeated += [line.where] * (before != "-")
    if repeated:
        log.warning("%d lines repeat others and count once, the first of them: %s", len(repeated), repeated[0])
    return list(words.values())


def name_in(root: Path, path: Path) -> str:
    """Give a path as an index has it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def video_files(folder: Path) -> list[Path]:
    """List the video files below a folder in the order of their paths, through links, and none that is hidden."""
    found, others = [], []
    for path in _walk(folder):
        suffix = path.suffix.lower()
        (found if suffix in VIDEO_SUFFIXES or (suffix not in OTHER_SUFFIXES and _is_video(path)) else others).append(
            path
        )
    if others:
        log.info("%d files below %s are no videos, such as %s", len(others), folder, others[0])
    return found


def _is_video(path: Path) -> bool:
    """Try whether a file holds moving pictures, which a still image, a text and a song with its cover do not."""
    try:
        with av.open(os.fspath(path), metadata_errors="replace") as file:
            name, stream = file.format.name, file.streams.best("video")
            is_still = "image2" in name or name == "tty" or name.endswith("_pipe")
            return not (stream is None or is_still or av.stream.Disposition.attached_pic in stream.disposition)
    except Exception:  # whatever PyAV raises for what it cannot open
        return False


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    if (real := os.path.realpath(folder)) in above:  # a link back to where it is
        return
    with os.scandir(folder) as entries:
        shown = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in shown:
        yield from _walk(folder / name, (*above, real)) if is_folder else (folder / name,)


def _find(root: Path, name: str) -> Path:
    """Find the file that a list names, in whatever form its name is stored: as it is, decomposed, or in old bytes."""
    forms = (name, normalize("NFD", name), os.fsdecode(name.encode("cp1252", "ignore")))
    return next((root / form for form in forms if os.path.lexists(root / form)), root / name)


def _finder(root: Path) -> Callable[..., Path]:
    """Give a function that finds a video file below a folder by its name, whatever its ending and the folders between.

    Of several it is the one in a folder of the expected name or of the split's; ValueError if two fit equally well.
    Where there is none, the expected path is given.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in video_files(root):
        by_name[_plain(path.stem).casefold()].append(path)

    def find(expected: str, *, split: str = "", is_case_free: bool = False) -> Path:
        wanted = Path(expected)
        found = by_name.get(wanted.stem.casefold(), [])
        found = [path for path in found if is_case_free or _plain(path.stem) == wanted.stem]
        for folder in (wanted.parent.name.casefold(), split):
            found = [path for path in found if folder in (part.casefold() for part in path.parent.parts)] or found
        if len(found) > 1:
            raise ValueError(f"{expected!r} may be {found[0]} or {found[1]}; keep one of them below {root}")
        return found[0] if found else root / expected

    return find


def read_list(path: Path, pattern: str = "", fault: str = "") -> list[tuple[str, list[str]]]:
    """Read any list: the place of each line that is not empty, and its fields without quotes and blanks around them.

    The fields are the groups of a pattern, or without one what stands between commas. Raises FileNotFoundError without
    a file, and ValueError that says the fault of a line that does not match.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    content, found = path.read_bytes(), []
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = _plain(content.decode(encoding))
            break
        except UnicodeDecodeError:
            log.warning("%s is not in %s", path, encoding.removesuffix("-sig").upper())
    for number, line in enumerate(re.split("\r\n?|\n", text), start=1):
        line, where = _unquote(line) if pattern else line.strip(), f"{path}, line {number}"
        if pattern and line and not (match := re.fullmatch(pattern, line)):
            raise ValueError(f"{where}: {line!r} {fault}")
        if line:
            fields = match.groups() if pattern else next(csv.reader([line], skipinitialspace=True))
            found.append((where, [_unquote(field) for field in fields]))
    return found


def _unquote(text: str) -> str:
    match = re.fullmatch(r"""(["'])((?:(?!\1).)+)\1""", text.strip())
    return (match[2] if match else text).strip()


def read_annotated(root: Path, lists: Path) -> Listed:
    """Read `annotations.csv`: path (relative to root), label and split."""
    path, columns = root / "annotations.csv", ["path", "label", "split"]
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; it must have the columns {','.join(columns)}")
    (_, header), *lines = read_list(path) or [("", [])]
    if header != columns:
        raise ValueError(f"{path} has the columns {header}; they must be {','.join(columns)}")
    if wrong := [f"{where}: {line}" for where, line in lines if len(line) != 3 or not all(line)]:
        raise ValueError(f"{wrong[0]} is not one path, label and split")
    listed = [Line(_find(root, name), label, split, 1, where) for where, (name, label, split) in lines]
    return listed, sorted({line.label for line in listed})


def read_kinetics(root: Path, lists: Path) -> Listed:
    """Read every CSV of Kinetics' form, of either release (`validate` or `val`, with or without `is_cc`).

    Files are `<id>_<start>_<end>`, times padded to 6 digits, in any folder. Source: Kay et al. 2017.
    """
    find, listed, width = _finder(root), [], len(_KINETICS_COLUMNS)
    for path in sorted(lists.glob("*.csv")):
        (_, header), *lines = read_list(path) or [("", [])]
        for where, line in lines if header[:width] == _KINETICS_COLUMNS else ():
            try:
                label, key, *times, split = line[:width]
                start, end = (f"{int(float(time)):06d}" for time in times)
            except ValueError as error:
                raise ValueError(f"{where}: {line} is no row of Kinetics") from error
            split = _SPLIT_NAMES.get(split, split)
            listed.append(Line(find(f"{key}_{start}_{end}.mp4", split=split), label, split, 1, where))
    if not listed:
        raise FileNotFoundError(f"no CSV in {lists} has the columns {','.join(_KINETICS_COLUMNS)}")
    return listed, sorted({line.label for line in listed})


def read_ucf101(root: Path, lists: Path) -> Listed:
    """Read Soomro et al. 2012, `ucfTrainTestlist`, which spells 128 names in another case than the files."""
    lists = next((path.parent for path in lists.glob("**/classInd.txt")), lists)
    numbered = read_list(lists / "classInd.txt", r"(\d+)\s+(\S+)", "is not a number and a class")
    labels = [label for _, label in sorted((int(number), label) for _, (number, label) in numbered)]
    known, find, listed = {label.casefold(): label for label in labels}, _finder(root), []
    pattern = rf"(?i)(({'|'.join(map(re.escape, labels))})/\S+).*"  # training lists end in the class number
    for fold, split in itertools.product((1, 2, 3), ("train", "test")):
        path = lists / f"{split}list{fold:02d}.txt"
        for where, (name, label) in read_list(path, pattern, "is of no class in classInd.txt"):
            listed.append(Line(find(name, is_case_free=True), known[label.casefold()], split, fold, where))
    return listed, labels


def read_hmdb51(root: Path, lists: Path) -> Listed:
    """Read Kuehne et al. 2011, `<class>_test_split<fold>.txt`: flag 1 is training, 2 test, 0 neither."""
    firsts = sorted(lists.glob("**/*_test_split1.txt"))
    if not firsts:
        raise FileNotFoundError(f"no <class>_test_split1.txt in {lists}")
    labels, find, listed = [path.name.removesuffix("_test_split1.txt") for path in firsts], _finder(root), []
    for label, fold in itertools.product(labels, (1, 2, 3)):
        path = firsts[0].with_name(f"{label}_test_split{fold}.txt")
        for where, (name, flag) in read_list(path, "(.*) ([012])", "does not end in a flag 0, 1 or 2"):
            if flag != "0":
                listed.append(Line(find(f"{label}/{name}"), label, {"1": "train", "2": "test"}[flag], fold, where))
    return listed, labels


def read_path_label(root: Path, lists: Path) -> Listed:
    """Read `<split>.csv`, `.txt` or `.list`, a path and a class number a line, as PySlowFast and mmaction2 have them.

    Classes get their names from `classes.txt` or `label_map.txt`, a name a line, where there is one.
    """
    named = next(filter(Path.is_file, (lists / name for name in ("classes.txt", "label_map.txt"))), None)
    labels = [label for _, (label,) in read_list(named, "(.+)")] if named else None
    names = ([lists / f"{split}{end}" for end in (".csv", ".txt", ".list")] for split in _SPLITS)
    found, numbered = [path for each in names for path in [*filter(Path.is_file, each)][:1]], []
    if not found:
        raise FileNotFoundError(f"no list in {lists}: there must be one such as train.csv, train.txt or train.list")
    for path in found:
        for where, (name, number) in read_list(path, r'(.+?)[ ,;\t]+"?(\d+)"?', "is not a path and a class number"):
            if labels is not None and int(number) >= len(labels):
                raise ValueError(f"{where}: class {number} of {name} is none of the {len(labels)} that have a name")
            numbered.append((where, name, int(number), path.stem))
    labels = labels or [str(i) for i in range(1 + max((number for _, _, number, _ in numbered), default=-1))]
    return [Line(_find(root, name), labels[i], split, 1, where) for where, name, i, split in numbered], labels


def read_folders(root: Path, lists: Path) -> Listed:
    """Read one folder per class; a split is what `<split>.txt` lists, or the folder `<split>` of such folders.

    Where the set has neither, each video's path decides by its hash: 8 in 10 are for training, 1 for val, 1 for test;
    where that leaves a split empty, one in five of each class is for val and for test.
    Names such as x_g01_c02.avi, or x_clip2.mp4, tell which videos were cut from one recording: these stay together.
    """
    listed, labels = [], set()
    for split in _SPLITS:
        path, folder = lists / f"{split}.txt", root / split
        if path.is_file():
            labels |= (known := _subfolders(root))
            pattern = rf"(({'|'.join(map(re.escape, known))})[/\\].*)"
            for where, (name, label) in read_list(path, pattern, f"is in no class folder of {root}"):
                listed.append(Line(_find(root, name.replace("\\", "/")), label, split, 1, where))
        elif folder.is_dir():
            labels |= _subfolders(folder)
            listed += _of_folders(folder, split)
    if not labels:
        log.info("%s has no list and no folder of a split: the hash of its path puts each video in one", root)
        labels, listed = _subfolders(root), _of_folders(root)
    return [line for line in listed if line.label in labels], sorted(labels)


def _of_folders(folder: Path, split: str = "") -> list[Line]:
    """List the videos of folders that are named by class; without a split, the hash of each path chooses one."""
    listed = []
    for path in video_files(folder):
        name = path.relative_to(folder)
        group = _CLIP.sub(b"", os.fsencode(name))  # clips of one recording stay together, where names tell
        tenth = int(hashlib.sha256(group).hexdigest()[:8], 16) % 10
        chosen = split or {8: "val", 9: "test"}.get(tenth, "train")
        listed.append(Line(path, _plain(name.parts[0]), chosen, 1, str(path)))
    if split or {line.split for line in listed} == {*_SPLITS}:
        return listed
    log.warning("%s has too few videos for that: of each class one in five is for val and for test", folder)
    return sorted(_deal(listed, folder), key=lambda line: line.path)


def _deal(listed: Sequence[Line], folder: Path) -> Iterator[Line]:
    """Put one in five of each class in val and in test, at least one each of three, in the order of their hashes."""

    def digest(line: Line) -> str:
        return hashlib.sha256(os.fsencode(line.path.relative_to(folder))).hexdigest()

    for label in sorted({line.label for line in listed}):
        lines = sorted((line for line in listed if line.label == label), key=digest)
        fifth = max(len(lines) // 5, 1) if len(lines) >= len(_SPLITS) else 0
        words = ["val"] * fifth + ["test"] * fifth
        yield from (line._replace(split=word) for line, word in itertools.zip_longest(lines, words, fillvalue="train"))


def _subfolders(folder: Path) -> set[str]:
    return {_plain(path.name) for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


_READERS = (read_annotated, read_kinetics, read_ucf101, read_hmdb51, read_path_label, read_folders)
LAYOUTS = {read.__name__.removeprefix("read_"): read for read in _READERS}  # by data.source
