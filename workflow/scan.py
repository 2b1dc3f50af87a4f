"""Reading every listed file whole, in worker processes that may abort or hang without harm."""

import hashlib
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import partial
from importlib.metadata import version
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock
from pebble import ProcessExpired, ProcessPool

from faster_lib.data.index import as_csv, from_csv, parse_file
from faster_lib.data.video import DECODER, File, PyAVDecoder, VideoError, VideoReader, look_at, probe_video
from faster_lib.store import write_whole
from faster_lib.workers import progress
from workflow.lists import name_in

SCANNED_BY = f"{DECODER}, av {version('av')}"  # another version may give other verdicts on files
LIMIT_SECONDS = 60.0  # for the next frame of a file that is scanned
_ENDS = {  # of a worker, by the machine and not by what is in the file
    -signal.SIGALRM: "unread: no frame came in time",
    -signal.SIGKILL: "unread: the system ended its decoder, as it does where memory is short",
}


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
            try:
                stat = look_at(path)
            except VideoError:
                found[path] = File(problem="missing: no such file")
                continue
            modified_ns, found[path] = known.get(name_in(root, path), (0, File()))
            if (modified_ns, found[path].bytes) != (stat.st_mtime_ns, stat.st_size):
                todo[path] = stat
        if todo:  # the memory whole first, whatever an interruption left at its end
            write_whole(memory, b"".join(_row(name, time, file) for name, (time, file) in known.items()))
            sizes = {path: stat.st_size for path, stat in todo.items()}
            for path, found[path] in _read_files(sizes, workers, limit_seconds):
                if not found[path].problem.startswith("unread"):
                    _append(memory, _row(name_in(root, path), todo[path].st_mtime_ns, found[path]))
    return found


def _append(memory: Path, row: bytes) -> None:
    """Add a row to the memory; an error of the system, as of a full disk, names it."""
    try:
        with memory.open("ab") as rows:
            rows.write(row)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(memory)) from error


def _row(name: str, modified_ns: int, file: File) -> bytes:
    """Write a row of the memory, which ends in a checksum of what stands before."""
    row = (name, modified_ns, *file, SCANNED_BY)
    return as_csv((*row, zlib.crc32(as_csv(row))))


def _read_memory(memory: Path) -> dict[str, tuple[int, File]]:
    """Give the rows by path; those of other decoders, damaged ones, and half a line at the end count as none."""
    content = memory.read_bytes() if memory.is_file() else b""
    lines = from_csv(content[: content.rfind(b"\n") + 1])
    whole = [line[:-1] for line in lines if line and line[-1] == str(zlib.crc32(as_csv(line[:-1])))]
    return {name: (int(time), parse_file(about)) for name, time, *about, by in whole if by == SCANNED_BY}


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
        for future in progress(as_completed(futures), desc="index videos", unit="video", total=len(futures)):
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
        return choose_decoder(path, seen=watch, with_decord=with_decord)._replace(bytes=size, sha256=found.sha256)
    except VideoError as error:
        return found._replace(problem=f"corrupt: {str(error).removeprefix(f'{path}: ')}")
    except (OSError, MemoryError) as error:
        return found._replace(problem=f"unread: {str(error) or type(error).__name__}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def choose_decoder(path: Path, *, seen: Callable[[], Any] = lambda: None, with_decord: bool = True) -> File:
    """Read every frame of a video, say what it is, and find the decoder that reads it rightly in any order.

    Calls `seen` after each frame or few. decord need not be tried, which ends or hangs the process at some files.
    Raises: VideoError as `probe_video`.
    """
    times, sums, sizes = [], [], {}

    def note(decoder: PyAVDecoder, moment: int | None, frame: np.ndarray) -> None:
        nonlocal sizes
        sizes = decoder.sizes  # which it adds to, frame by frame
        times.append(moment)
        sums.append(zlib.crc32(frame))
        seen()

    file = probe_video(path, seen=note)
    is_plain = len(sizes) == 1 and _has_frames_as_packets(path, times)
    for name in ("decord", "pyav")[not with_decord :] if is_plain else ():
        if _reads_rightly(path, better := file._replace(decoder=name), sums, seen):
            return better
    return file


def _has_frames_as_packets(path: Path, times: Sequence) -> bool:
    """Whether each packet is one frame with its time; elsewhere decord gives other frames now and then out of order."""
    try:
        return [*PyAVDecoder(path, is_exact=True).times] == times
    except TypeError:  # packets without times
        return False


def _reads_rightly(path: Path, file: File, sums: Sequence[int], seen: Callable[[], Any]) -> bool:
    """Tell whether a decoder gives the frames of these sums: all in order, then about each key frame, up and down."""
    try:
        one, other, last = VideoReader(path, file), VideoReader(path, file), file.frames - 1
        near = sorted({min(max(key + d, 0), last) for key in [*one.key_frames, last // 2, last] for d in (-1, 0, 1)})
        orders = ((one, range(last + 1), one.at_once), (other, near, one.at_once), (one, near[::-1], 1))
        for reader, part in ((r, p[i : i + n]) for r, p, n in orders for i in range(0, len(p), n)):
            if [zlib.crc32(frame) for frame in reader.read(part).numpy()] != [sums[i] for i in part]:
                return False
            seen()
    except VideoError:
        return False
    return True
