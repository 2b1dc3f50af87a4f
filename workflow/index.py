"""Index the real videos of a profile: `make index PROFILE=mine` runs `python -m workflow.index --profile mine`.

The index says of each listed video what it is, or why it cannot be used; the summary says how many of each there are.
"""

import argparse
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from faster_lib.data.index import CHECK, INDEX, Indexed, folder_of, read_index, write_index
from faster_lib.data.video import File
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import remove_partials, write_whole
from workflow.lists import list_videos
from workflow.scan import scan

log = logging.getLogger(__name__)

LENGTHS = (8, 16, 32)  # of clips, for which the summary counts the videos that are shorter. Source: Table 2
MOST_NAMED = 20  # of the unreadable and of the duplicate videos that the summary names


def index_videos(profile: Profile, *, runs: Path = RUNS) -> list[Indexed]:
    """List and read a profile's real videos, and write `runs/<profile>/index.csv`; files known already are not read."""
    listed, labels = list_videos(profile.data)
    folder, root = runs / profile.name, folder_of(profile.data.root)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    paths = dict.fromkeys(root / row.path for row in listed)
    files = scan(paths, root, folder / "index.scan.csv", workers=profile.loading.workers)
    rows = [row._replace(file=files[root / row.path]) for row in listed]
    write_index(table := folder / INDEX, rows, labels)
    write_whole(table.with_suffix(CHECK), f"{hashlib.sha256(table.read_bytes()).hexdigest()}  {INDEX}\n".encode())
    return rows


def summarise(rows: Sequence[Indexed]) -> str:
    """Say what an index holds: expected, missing, corrupt, too short, in two splits; and classes without videos."""
    columns = "{:<14}{:>9}{:>9}{:>8}{:>8}  {}".format
    lines = [columns("split", "expected", "readable", "missing", "corrupt", "shorter than L = 8, 16, 32, and looped")]
    splits: dict[str, list[File]] = defaultdict(list)
    places: dict[str, dict[str, str]] = defaultdict(dict)  # by content: the splits it is in, and a path in each
    bare = sorted({row.label for row in rows} - {row.label for row in rows if not row.file.problem and row.path})
    rows = [row for row in rows if row.path]
    for row in rows:
        places[row.file.sha256].setdefault(row.split, row.path)
        words = row.split.split()
        for fold, word in enumerate(words, start=1):
            splits[f"{word}, fold {fold}" if len(words) > 1 else word].append(row.file)
    for split, files in splits.items():
        if not split.startswith("-"):
            count = Counter(file.problem.split(":")[0] for file in files)
            short = (str(sum(not file.problem and file.frames < length for file in files)) for length in LENGTHS)
            counts = (len(files), count[""], count["missing"], count["corrupt"] + count["unread"])
            lines.append(columns(split, *counts, ", ".join(short)))
    files = {row.path: row.file for row in rows}
    codecs = Counter(f"{file.codec} read by {file.decoder}" for file in files.values() if not file.problem)
    lines.append("codec: " + ", ".join(f"{codec} ({number})" for codec, number in codecs.most_common()))
    places.pop("", None)  # of what could not be read
    folds = {sha256: zip(*map(str.split, found), strict=True) for sha256, found in places.items()}
    shared = [places[sha256] for sha256, words in folds.items() if any(len({*fold} - {"-"}) > 1 for fold in words)]
    lines += _name_some("unreadable", [f"{path}: {file.problem}" for path, file in files.items() if file.problem])
    lines += _name_some("the same content in two splits", [", ".join(map(": ".join, e.items())) for e in shared])
    lines += _name_some("classes without a readable video", bare)
    return "\n".join(lines)


def _name_some(what: str, found: list[str]) -> list[str]:
    more = [f"  ... and {len(found) - MOST_NAMED} more, in the index"] if len(found) > MOST_NAMED else []
    return [f"{what}: {len(found)}", *(f"  {each}" for each in found[:MOST_NAMED]), *more]


def main(arguments: Sequence[str] | None = None) -> None:
    """Index the videos of a profile's data set, and say what is missing, corrupt, too short or there twice."""
    parser = argparse.ArgumentParser(prog="python -m workflow.index", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/ of real videos")
    profile = load_profile(parser.parse_args(arguments).profile)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if profile.scene is not None:
        raise SystemExit(f"params/{profile.name}.yaml is of generated videos, which need no index")
    try:
        index_videos(profile, runs=RUNS)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{error}") from error
    table = RUNS / profile.name / INDEX
    rows = read_index(table)
    if (found := len({row.target for row in rows})) != profile.data.num_classes:
        log.warning("%s has %d classes, but data.num_classes is %d", table, found, profile.data.num_classes)
    log.info("%s\nindex: %s", summarise(rows), table)


if __name__ == "__main__":
    main()
