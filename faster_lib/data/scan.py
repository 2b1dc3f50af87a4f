"""The index of a data set: what every listed video is, or why it cannot be read, found out once.

Each file is read whole, in a worker process that may abort or hang without harm; it is then marked as corrupt.
Training and evaluation go by the index, and never open a video that is missing or corrupt.
"""

import argparse
import csv
import hashlib
import io
import logging
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as LimitReached
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from faster_lib.data.datasets import VideoList
from faster_lib.data.layouts import SPLITS, folder_of, read_layout
from faster_lib.data.video import VideoError, probe_video
from faster_lib.paths import RUNS
from faster_lib.profiles import load_profile
from faster_lib.store import hash_of, naming, remove_partials, write_whole

log = logging.getLogger(__name__)

TIME_LIMIT_SECONDS = 60.0  # for a file, and
SECONDS_PER_MB = 5.0  # more for each megabyte: one core reads 100 frames of 340 x 256 in that time if it is slow
_LENGTHS = (8, 16, 32)  # of clips, for which the summary counts the videos that are shorter. Source: Table 2
_MOST_NAMED = 20  # of the unreadable and of the duplicate videos that the summary names


class Scanned(NamedTuple):
    """One row of an index; a file that has another size or time than its row is read again."""

    path: str  # from the root, with slashes; absolute where it lies elsewhere
    status: str  # readable, missing or corrupt
    reason: str = ""
    frames: int = 0
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    duration_seconds: float = 0.0
    codec: str = ""
    is_seekable: bool = False  # whether random access gives the frames that reading in order gives
    bytes: int = 0
    modified_ns: int = 0
    sha256: str = ""  # of the content, its first 16 digits; always the last column


def scan(
    videos: Iterable[Path], root: Path, *, workers: int, runs: Path = RUNS, time_limit: float = TIME_LIMIT_SECONDS
) -> dict[Path, Scanned]:
    """Index videos, side by side, in `runs/index/`; what is indexed and has not changed since is not read again.

    A row is written as soon as it is known, so that an interrupted scan goes on.

    Args:
        root: the data set's folder; there is one index for each.
        time_limit: seconds that a file may take, before what its size adds.
    """
    table = index_path(root, runs)
    names = {video: name_in(root, video) for video in videos}
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{table}.lock"):
        rows = _read_table(table)
        found = [_look_at(video, name) for video, name in names.items()]
        todo = [row for row in found if not _is_same_file(row, rows.get(row.path))]
        if todo:
            remove_partials(table.parent)
            _write_table(table, rows)  # whole, whatever an interruption left at its end
            for row in _read_files(todo, root, workers, time_limit):
                rows[row.path] = row
                with naming(table), table.open("a", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow(row)
            _write_table(table, rows)
    return {video: rows[name] for video, name in names.items()}


def index_path(root: Path, runs: Path = RUNS) -> Path:
    """Name the index of the videos below a folder."""
    return runs / "index" / f"{root.name}-{hash_of({'root': str(root.resolve())})}.csv"


def name_in(root: Path, video: Path) -> str:
    """Name a video as its index does."""
    return video.relative_to(root).as_posix() if video.is_relative_to(root) else str(video)


def _look_at(video: Path, name: str) -> Scanned:
    try:
        stat = video.stat()
    except OSError as error:
        return Scanned(name, "missing", f"no such file ({error.strerror})")
    return Scanned(name, "", bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


def _is_same_file(now: Scanned, row: Scanned | None) -> bool:
    return row is not None and (now.bytes, now.modified_ns) == (row.bytes, row.modified_ns)


def _read_files(todo: Sequence[Scanned], root: Path, workers: int, time_limit: float) -> Iterator[Scanned]:
    yield from (row for row in todo if row.status == "missing")
    there = [row for row in todo if row.status != "missing"]
    if not there:
        return
    with ProcessPool(max_workers=max(workers, 1), context=_clean_processes(), initializer=_hush) as pool:
        futures = {}
        for row in there:
            limit = time_limit + SECONDS_PER_MB * row.bytes / 1e6
            futures[pool.schedule(_read_file, args=[root / row.path, row], timeout=limit)] = row, limit
        try:
            for future in tqdm(as_completed(futures), desc=f"scan {root.name}", unit="video", total=len(futures)):
                yield _outcome(future, *futures.pop(future))
        except BaseException:
            pool.stop()
            raise


def _clean_processes() -> multiprocessing.context.BaseContext:
    """Give processes that do not begin as a fork of this one, since decord's open readers would not survive that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _hush() -> None:
    """Let the decoders of a worker process say nothing of their own: what is wrong with a file stands in its row."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _read_file(path: Path, row: Scanned) -> Scanned:
    """Read one file, in a worker process."""
    try:
        with path.open("rb") as file:
            row = row._replace(sha256=hashlib.file_digest(file, "sha256").hexdigest()[:16])
        return row._replace(status="readable", **probe_video(path)._asdict())
    except (VideoError, OSError, MemoryError) as error:
        return row._replace(status="corrupt", reason=f"{error}".removeprefix(f"{path}: ") or type(error).__name__)


def _outcome(future: Future, row: Scanned, limit: float) -> Scanned:
    try:
        return future.result()
    except LimitReached:
        reason = f"reading it took more than {limit:.0f} s"
    except ProcessExpired as error:
        reason = f"the decoder aborted (exit code {error.exitcode})"
    return row._replace(status="corrupt", reason=reason)


def _read_table(table: Path) -> dict[str, Scanned]:
    """Give the rows by path; half a line, as an interruption or a full disk leaves it, counts as none."""
    if not table.is_file():
        return {}
    rows, content = {}, table.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].decode()
    for line in csv.reader(io.StringIO(whole, newline="")):
        if len(line) == len(Scanned._fields) and line[0] != "path":
            values = zip(Scanned.__annotations__.values(), line, strict=True)
            rows[line[0]] = Scanned(*(text == "True" if kind is bool else kind(text) for kind, text in values))
    return rows


def _write_table(table: Path, rows: Mapping[str, Scanned]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([Scanned._fields, *(rows[name] for name in sorted(rows))])
    write_whole(table, text.getvalue().encode())


def summarise(splits: Mapping[str, VideoList], rows: Mapping[Path, Scanned]) -> str:
    """Say what an index holds: expected, missing, corrupt, too short, and what is in more than one split."""
    columns = "{:<8}{:>9}{:>9}{:>8}{:>8}  {}".format
    lines = [columns("split", "expected", "readable", "missing", "corrupt", "shorter than L = 8, 16, 32, and looped")]
    for split, videos in splits.items():
        count = Counter(rows[path].status for path in videos.paths)
        frames = [rows[path].frames for path in videos.paths if rows[path].status == "readable"]
        short = ", ".join(str(sum(number < length for number in frames)) for length in _LENGTHS)
        lines.append(columns(split, len(videos), *(count[key] for key in ("readable", "missing", "corrupt")), short))
    readable = [row for row in rows.values() if row.status == "readable"]
    for what, values in (
        ("codec", Counter(row.codec for row in readable)),
        ("size, px", Counter(f"{row.width_px}x{row.height_px}" for row in readable)),
        ("frames a second", Counter(f"{row.fps:g}" for row in readable)),
    ):
        lines.append(f"{what}: " + ", ".join(f"{value} ({number})" for value, number in values.most_common(5)))
    inexact = sum(not row.is_seekable for row in readable)
    lines.append(f"random access inexact, so read from the beginning: {inexact}")
    unreadable = [f"  {row.status}: {row.path}: {row.reason}" for row in rows.values() if row.status != "readable"]
    lines += [f"unreadable: {len(unreadable)}", *_some(unreadable)]
    twice = _shared_content(splits, rows)
    return "\n".join([*lines, f"the same content in two splits: {len(twice)}", *_some(twice)])


def _shared_content(splits: Mapping[str, VideoList], rows: Mapping[Path, Scanned]) -> list[str]:
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for split, videos in splits.items():
        for path in videos.paths:
            if rows[path].sha256:
                places[rows[path].sha256][split] = rows[path].path
    shared = (found for found in places.values() if len(found) > 1)
    return ["  " + ", ".join(f"{split}: {path}" for split, path in found.items()) for found in shared]


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _MOST_NAMED
    return [*lines[:_MOST_NAMED], *([f"  ... and {more} more, in the index"] if more > 0 else [])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Index the videos of a profile's data set, and say what is missing, corrupt, too short or there twice."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.data.scan", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/ of real videos")
    parser.add_argument("--split", nargs="+", help="default: those of train, val and test that there are")
    parser.add_argument("--workers", type=int, help="processes; default: loading.workers of the profile")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_SECONDS, help="seconds for a file")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    profile = load_profile(given.profile)
    if profile.data.root is None:
        raise SystemExit(f"params/{profile.name}.yaml is of generated videos, which need no scan")
    root, splits = folder_of(profile.data.root), {}
    for split in given.split or SPLITS:
        try:
            splits[split] = read_layout(profile.data, split)
        except (FileNotFoundError, ValueError) as error:
            if given.split or not root.is_dir():
                raise SystemExit(f"{error}") from error
            log.info("%s: not there (%s)", split, error)
    videos = [path for listed in splits.values() for path in listed.paths]
    rows = scan(videos, root, workers=given.workers or profile.loading.workers, time_limit=given.time_limit)
    if rows:
        log.info("%s\nindex: %s", summarise(splits, rows), index_path(root))


if __name__ == "__main__":
    main()
