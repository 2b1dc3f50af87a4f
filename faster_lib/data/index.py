"""The index of a set of videos, `runs/<profile>/index.csv`: what its lists name, what each file is or why it is unused.

Everything else reads only that file, and never opens a video that is missing or corrupt. Here every file is read whole,
in a worker process that may abort or hang without harm. Generated videos have such a file in their folder.
"""

import csv
import hashlib
import io
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import lru_cache, partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from faster_lib.data.datasets import Census, Video, VideoList
from faster_lib.data.lists import Indexed, folder_of, list_videos, name_in
from faster_lib.data.probe import probe_video
from faster_lib.data.synthetic import CLASSES, RECIPE, Planned, plan_videos, write_planned
from faster_lib.data.video import DECODERS, SCANNED_BY, File, VideoError, find_stat
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile
from faster_lib.store import Entry, hash_of, naming, remove_partials, write_whole

log = logging.getLogger(__name__)
_warn_once = lru_cache(log.warning)

INDEX = "index.csv"
LIMIT_SECONDS = 60.0  # for the next frame of a file that is scanned
_ENDS = {  # of a worker, by the machine and not by what is in the file
    -signal.SIGALRM: "unread: no frame came in time",
    -signal.SIGKILL: "unread: the system ended its decoder, as it does where memory is short",
}


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
    rows = read_index(table)
    classes = dict(sorted((row.target, row.label) for row in rows))
    if len(classes) != profile.data.num_classes:
        raise ValueError(f"{table} has {len(classes)} classes, but data.num_classes is {profile.data.num_classes}")
    words = [row.split.split()[profile.data.fold - 1] if profile.data.fold and row.path else row.split for row in rows]
    if split not in words:
        raise ValueError(f"{table} has no split {split!r}; it has {', '.join(sorted({*words} - {'', '-'}))}")
    chosen = [row for row, word in zip(rows, words, strict=True) if word == split]
    kept = [row for row in chosen if not row.file.problem]
    if others := {row.file.decoder for row in kept} - {*DECODERS}:
        raise ValueError(f"{table} names the decoder {others.pop()!r}; run: make index PROFILE={profile.name}")
    missing = sum(row.file.problem.startswith("missing") for row in chosen)
    videos = tuple(Video(root / path, target, file) for path, _, target, _, file in kept)
    found = VideoList(videos, tuple(classes.values()), missing, len(chosen) - len(kept) - missing)
    _check_share(found.census, profile.data.most_unreadable_share, f"split {split!r} in {table}", is_training)
    return found


def videos_key(profile: Profile, split: str, *, runs: Path = RUNS) -> str:
    """Name what the videos of a split are, by what decides it: the scene, or the index; no video is made or read."""
    if profile.scene is None:
        depends = {"index": _content(_existing_index(profile, runs))[0]}
    else:
        depends = _plan_entry(profile, split, runs)[0].depends
    return hash_of({**depends, "split": split, "fold": profile.data.fold})


def clips_key_facts(profile: Profile) -> dict[str, Any]:
    """Give those values of the data section that decide how clips are cut from videos, as plain JSON."""
    keys = {"video_frames", "train_short_side_px", "test_short_side_px", "crop_px", "flip"}
    return profile.data.model_dump(mode="json", include=keys)


def read_index(table: Path) -> list[Indexed]:
    """Read an index as it was written."""
    return list(_content(table)[1])


def _content(table: Path) -> tuple[str, tuple[Indexed, ...]]:
    return _read_once(table, table.stat().st_size, table.stat().st_mtime_ns)


@lru_cache(2)  # a study asks for it in each of its cells
def _read_once(table: Path, size: int, modified_ns: int) -> tuple[str, tuple[Indexed, ...]]:
    content = table.read_bytes()
    _, *lines = _from_csv(content)
    rows = (Indexed(line[0], line[1], int(line[2]), line[3], _parse(line[4:])) for line in lines)
    return hashlib.sha256(content).hexdigest(), tuple(rows)


def _parse(texts: Sequence[str]) -> File:
    return File(*(kind(text) for kind, text in zip(File.__annotations__.values(), texts, strict=True)))


def _as_csv(*rows: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # names of files may be any bytes


def _from_csv(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline="")))


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
        file = File(scene.frames, float(scene.fps), scene.size_px, scene.size_px, "h264", "decord", len(content))
        file = file._replace(sha256=hashlib.sha256(content).hexdigest())
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


def index_videos(profile: Profile, *, runs: Path = RUNS) -> list[Indexed]:
    """List and read a profile's real videos, and write `runs/<profile>/index.csv`; files known already are not read."""
    listed, labels = list_videos(profile.data)
    folder, root = runs / profile.name, folder_of(profile.data.root)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    paths = dict.fromkeys(root / row.path for row in listed)
    files = scan(paths, root, folder / "index.scan.csv", workers=profile.loading.workers)
    rows = [row._replace(file=files[root / row.path]) for row in listed]
    write_index(folder / INDEX, rows, labels)
    return rows


def scan(
    paths: Iterable[Path], root: Path, memory: Path, *, workers: int, limit_seconds: float = LIMIT_SECONDS
) -> dict[Path, File]:
    """Read files side by side, those that `memory` does not know with their size, time of change, and decoders.

    A row of it is written as soon as it is known, so that an interrupted scan goes on; what the machine failed at is
    tried again. A file is given up where no frame comes for `limit_seconds`.
    """
    with FileLock(f"{memory}.lock"):
        known, found, todo = _read_memory(memory), {}, {}
        for path in paths:
            if (stat := find_stat(path)) is None:
                found[path] = File(problem="missing: no such file")
                continue
            modified_ns, found[path] = known.get(name_in(root, path), (0, File()))
            if (modified_ns, found[path].bytes) != (stat.st_mtime_ns, stat.st_size):
                todo[path] = stat
        if todo:  # the memory whole first, whatever an interruption left at its end
            write_whole(memory, _as_csv(*((name, time, *file, SCANNED_BY) for name, (time, file) in known.items())))
            sizes = {path: stat.st_size for path, stat in todo.items()}
            for path, found[path] in _read_files(sizes, workers, limit_seconds):
                row = (name_in(root, path), todo[path].st_mtime_ns, *found[path], SCANNED_BY)
                if not found[path].problem.startswith("unread"):
                    with naming(memory), memory.open("ab") as rows:
                        rows.write(_as_csv(row))
    return found


def _read_memory(memory: Path) -> dict[str, tuple[int, File]]:
    """Give the rows by path; those of other decoders, and half a line as an interruption leaves it, count as none."""
    content = memory.read_bytes() if memory.is_file() else b""
    lines = _from_csv(content[: content.rfind(b"\n") + 1])
    return {line[0]: (int(line[1]), _parse(line[2:-1])) for line in lines if line[-1] == SCANNED_BY}


class _Server(ForkServerContext):
    """Starts workers that do not import the caller's script, which may be no more than calls at its top level."""

    class Process(ForkServerProcess):
        def start(self) -> None:
            main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


def _read_files(
    sizes: dict[Path, int], workers: int, limit_seconds: float, with_decord: bool = True
) -> Iterator[tuple[Path, File]]:
    context = _Server()  # decord's open readers would not survive a fork of this process
    context.set_forkserver_preload([__name__])
    pool, futures, again = ProcessPool(max_workers=max(workers, 1), context=context, initializer=_hush), {}, {}
    try:
        for path, size in sizes.items():
            futures[pool.schedule(_read_file, args=[path, size, limit_seconds, with_decord])] = path
        for future in tqdm(as_completed(futures), desc="index videos", unit="video", total=len(futures)):
            path = futures.pop(future)
            try:
                yield path, future.result()
            except ProcessExpired as error:
                if with_decord:
                    again[path] = sizes[path]
                else:
                    aborted = f"corrupt: the decoder aborted (exit code {error.exitcode})"
                    yield path, File(bytes=sizes[path], problem=_ENDS.get(error.exitcode, aborted))
    finally:
        pool.stop()
        pool.join()
    if again:
        yield from _read_files(again, workers, limit_seconds, with_decord=False)


def _hush() -> None:
    """Let the decoders of a worker process say nothing of their own: what is wrong with a file stands in its row."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _read_file(path: Path, size: int, limit_seconds: float, with_decord: bool) -> File:
    """Read one file, in a worker process that ends where no frame comes in time."""
    found, watch = File(bytes=size), partial(signal.setitimer, signal.ITIMER_REAL, limit_seconds)
    try:
        with path.open("rb") as file:
            found = found._replace(sha256=hashlib.file_digest(file, "sha256").hexdigest())
        watch()
        return probe_video(path, seen=watch, with_decord=with_decord)._replace(bytes=size, sha256=found.sha256)
    except VideoError as error:
        return found._replace(problem=f"corrupt: {str(error).removeprefix(f'{path}: ')}")
    except (OSError, MemoryError) as error:
        return found._replace(problem=f"unread: {str(error) or type(error).__name__}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
