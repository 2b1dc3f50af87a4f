"""Results kept under a key of everything they depend on, complete or not there at all.

An entry is a folder `runs/<profile>/<kind>/<label>-<key>`. Its `record.json` is written last: without it the entry is
unfinished, and whoever needs it goes on from the parts in it. Every file appears under its name only when it is whole.
"""

import hashlib
import itertools
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from faster_lib.paths import RUNS, WEIGHTS
from faster_lib.provenance import circumstances, host, now

log = logging.getLogger(__name__)

BEGUN = "begun.json"  # says, while an entry is made, from what, since when and by whom
HASHED = ("weights.safetensors", "index.csv")  # files whose hashes the record holds; shards have theirs in their names
MENDED = ("videos", "features")  # kinds of results whose files are known one by one, so that what is whole stays
REMEDY = "restore it from a copy, or remove the folder that it lies in: the next run makes the result anew"
WAIT_SECONDS = 30.0  # between two words of a process that waits


@dataclass(frozen=True)
class Entry:
    """One result and what it depends on. Naming it does no work."""

    profile: str  # its name, which stands in the path and in the record, not in the key
    kind: str  # videos, networks, features or aggregators
    label: str  # what a reader recognises it by
    depends: dict[str, Any]  # everything that decides the result, as plain JSON
    runs: Path = RUNS

    @property
    def key(self) -> str:
        """Hash of what the result depends on."""
        return hash_of(self.depends)

    @property
    def path(self) -> Path:
        """Folder of the result, whether or not it is there yet."""
        return self.runs / self.profile / self.kind / f"{self.label}-{self.key}"

    @property
    def is_complete(self) -> bool:
        """Whether the result is there with its record, which is written last."""
        return (self.path / "record.json").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """What was kept with the result: its measures, and how, where and when it was made; damage is a ValueError."""
        record = read_json(path := self.path / "record.json")
        if not record or record.get("check") not in (None, hash_of({**record, "check": None})):  # once there was none
            raise ValueError(f"{path} is damaged; {REMEDY}")
        return record

    def check(self) -> None:
        """Raise ValueError, with the remedy, if the record or a file whose hash it holds is not as it was written."""
        for name, sha256 in self.record.get("sha256", {}).items():
            if not has_hash(self.path / name, sha256):
                raise ValueError(f"{self.path / name} is damaged or gone; {REMEDY}")

    def read(self) -> bytes:
        """Read the weights, after a check."""
        if self.is_complete:
            self.check()
        return (self.path / "weights.safetensors").read_bytes()

    def complete(self, make: Callable[[], dict[str, Any]], while_waiting: Callable[[], Any] = lambda: None) -> None:
        """Have the result made by `make`, which gives its measures, unless it is there and whole: see `making`."""
        with self.making(while_waiting) as made:
            if made is not None:
                made["measures"] = make()

    @contextmanager
    def making(self, while_waiting: Callable[[], Any] = lambda: None) -> Iterator[dict[str, Any] | None]:
        """Hold the result while it is made, for a `with` block that notes its `measures`; give None if it is there.

        The entry is locked meanwhile: a second process that wants the same one waits, and finds it made. The record
        counts the starts and adds up their seconds, unless the block notes its own; of a process that was killed, up to
        the last file that it left. Without measures there is no record; an `error` is kept in `begun.json`.

        Raises: ValueError if a result is damaged and cannot be mended out of its parts.
        """
        if self.is_complete:
            try:
                self.check()
            except ValueError as error:
                if self.kind not in MENDED:
                    raise
                log.warning("%s; it is mended", error)
                (self.path / "record.json").unlink(missing_ok=True)
            else:
                yield None
                return
        self.path.mkdir(parents=True, exist_ok=True)
        lock, begun = self.path.with_name(self.path.name + ".lock"), self.path / BEGUN
        with hold(lock, lambda: read_json(begun).get("maker", "another process"), while_waiting):
            if self.is_complete:
                yield None
                return
            remove_partials(self.path)
            facts, start = self._begin(), time.perf_counter()
            yield (made := {})
            if "measures" in made:
                facts["seconds"] = round(facts["seconds"] + time.perf_counter() - start, 1)
                hashes = {path.name: read_hash(path) for path in map(self.path.joinpath, HASHED) if path.is_file()}
                record = {**facts, **made, **host(), **circumstances(), "sha256": hashes, "check": None}
                record["check"] = hash_of(record)
                write_whole(begun, json.dumps(record, indent=1).encode())
                os.replace(begun, self.path / "record.json")  # at once, lest a kill leaves both
            elif made:
                write_whole(begun, json.dumps(facts | made, indent=1).encode())

    def _begin(self) -> dict[str, Any]:
        path, begun = self.path / BEGUN, {"started": now(), "starts": 0, "seconds": 0.0}
        if path.is_file():
            try:
                begun = {key: read_json(path)[key] for key in begun}
                begun["seconds"] += max(part.stat().st_mtime for part in self.path.rglob("*")) - path.stat().st_mtime
            except (TypeError, KeyError):
                log.warning("%s is damaged; the starts before are not counted", path)
        begun |= {"profile": self.profile, "depends": self.depends, "starts": begun["starts"] + 1}
        maker = f"process {os.getpid()} on {platform.node()}"
        write_whole(path, json.dumps({**begun, "maker": maker}, indent=1).encode())
        return begun

    def shipped(self) -> tuple[bytes, dict[str, Any]] | None:
        """Find the weights that the kit ships for this entry and their manifest; ValueError if they do not fit it."""
        if (about := read_manifest().get(self.path.name)) is None:
            return None
        content = (WEIGHTS / f"{self.path.name}.safetensors").read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != about["sha256"]:
            fault = f"has the hash {found[:16]}..., but the manifest says {about['sha256'][:16]}...; fetch it again"
            raise ValueError(f"params/weights/{self.path.name}.safetensors {fault}, or make it by: make retrain")
        return content, about


def read_json(path: Path) -> dict[str, Any]:
    """Read what a file says; nothing where it is damaged, or not there."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # no text, no JSON, no dict
        return {}


def read_manifest(weights: Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """Give what is known of each shipped network: hash, command, profile, accuracy; by the name of its entry."""
    path = weights / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def hash_of(depends: Any) -> str:
    """Hash plain JSON content, whatever the order of its keys, to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def remembered(most: int | None) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Let a function read a file once in a process while its size and time of change stay; keep so many results."""

    def decorate(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        kept = lru_cache(most)(lambda path, *_as_long_as: read(path))
        return wraps(read)(lambda path: kept(path, (about := path.stat()).st_size, about.st_mtime_ns))

    return decorate


@remembered(None)
def read_hash(path: Path) -> str:
    """Give the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_hash(path: Path, sha256: str) -> bool:
    """Whether a file is there and its sha256 begins so."""
    return path.is_file() and read_hash(path).startswith(sha256)


def hold(lock: Path, whom: Callable[[], str], while_waiting: Callable[[], Any] = lambda: None) -> Any:
    """Take a lock, for a `with` block; say from time to time whom this process waits for, which its death frees too."""
    for patience in itertools.chain([0.0], itertools.repeat(WAIT_SECONDS)):
        try:
            return FileLock(lock).acquire(timeout=patience)
        except Timeout:
            log.info("%s: waiting for %s", lock.stem, whom())
            while_waiting()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that under its name it is whole or absent, even after a crash or on a full disk.

    Raises: OSError, naming the file, if it cannot be written; what was there before then stays.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the name too, so that a power cut does not take back a replaced file
        os.close(folder)
    except OSError as error:  # of a full disk it names none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove, below a folder too, what `write_whole` left half written in processes of this machine that are gone."""
    for path in folder.rglob(".*.partial"):
        writer = re.search(rf"\.{re.escape(platform.node())}\.(\d+)\.partial$", path.name)
        if writer and not psutil.pid_exists(int(writer[1])):
            path.unlink(missing_ok=True)
