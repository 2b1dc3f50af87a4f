"""What is in runs/: each result, from which parameters, how far it is and how large; and a way to delete it."""

import argparse
import json
import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from faster_lib.paths import PARAMS, RUNS
from faster_lib.profiles import load_profile
from faster_lib.store import BEGUN, is_running
from faster_lib.training.feature_store import list_shards
from faster_lib.training.training_state import CHECKPOINT, CURVES, curves_of, read_progress

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<label>.+)-(?P<key>[0-9a-f]{16})")
_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.partial")
_VIDEO_SUFFIXES = (".mp4", ".avi")  # of generated videos
_SHORTEST_KEY = 4  # digits of a hash that may stand for the whole
_MOST_DIFFERENCES = 4  # that are listed of one entry
_NOT_FOLLOWED = ("fold", "videos")  # a profile serves all folds, and scenes leave the numbers of videos aside


class Found:
    """An entry of the store as it lies on the disk, finished or not."""

    def __init__(self, path: Path):
        self.path, self.kind = path, path.parent.name
        self.label, self.key = _NAME.fullmatch(path.name).groups()

    @property
    def is_complete(self) -> bool:
        """Whether its record is there."""
        return (self.path / "record.json").is_file()

    @cached_property
    def about(self) -> dict[str, Any]:
        """Its record, or what is known of an unfinished one: nothing, where it was begun only beside another."""
        path = self.path / ("record.json" if self.is_complete else BEGUN)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def depends(self) -> dict[str, Any]:
        """What it was made from, where that is known."""
        return self.about.get("depends", {})

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return _size_of(self.path)

    @property
    def is_held(self) -> bool:
        """Whether a running process is making it."""
        return _is_held(_lock_of(self.path))

    def is_meant_by(self, pattern: str) -> bool:
        """Whether a pattern is its name, its label, the beginning of its hash, or a glob of its name or kind/name."""
        names = (self.path.name, f"{self.kind}/{self.path.name}")
        is_key = len(pattern) >= _SHORTEST_KEY and self.key.startswith(pattern)
        return is_key or pattern == self.label or any(fnmatch(name, pattern) for name in names)

    @cached_property
    def profiles(self) -> list[str]:
        """The profiles in params/ that have its parameters today; none also where these are not known."""
        parts = [part for part in (self.depends, self.depends.get("test")) if part]
        stage = "aggregator_training" if self.kind == "aggregators" else "backbone_training"
        return [
            name for name, sections in _profiles() if parts and all(_agree(part, sections, stage) for part in parts)
        ]

    def how_far(self) -> str:
        """Say whether it is complete, and else how much of it is there."""
        if self.is_complete:
            return "complete, shipped" if self.about["measures"].get("shipped") else "complete"
        kinds = {"backbones": self._iterations, "aggregators": self._iterations, "features": self._shards}
        done = kinds.get(self.kind, self._videos)() or "begun"
        return f"{done}, running" if self.is_held else done

    def _iterations(self) -> str:
        checkpoint = self.path / CHECKPOINT
        if not checkpoint.is_file():
            return ""
        wanted = self.depends.get("training", {}).get("iterations")  # of stage 2 there are epochs
        done = read_progress(checkpoint)["iteration"]
        return f"{done} of {wanted} iterations" if wanted else f"{done} iterations"

    def _shards(self) -> str:
        done, wanted = sum(len(shard.videos) for shard in list_shards(self.path)), self.depends.get("videos")
        return (f"{done} of {wanted} videos" if isinstance(wanted, int) else f"{done} videos") if done else ""

    def _videos(self) -> str:
        done = sum(path.suffix in _VIDEO_SUFFIXES and path.name[0] != "." for path in self.path.rglob("*"))
        wanted = self.depends.get("videos")
        return (f"{done} of {wanted} videos" if isinstance(wanted, int) else f"{done} videos") if done else ""


@lru_cache
def _profiles() -> list[tuple[str, dict[str, Any]]]:
    names = sorted(path.stem for path in PARAMS.glob("*.yaml"))
    return [(name, load_profile(name).model_dump(mode="json")) for name in names]


def _agree(depends: dict[str, Any], sections: dict[str, Any], stage: str) -> bool:
    """Whether all that a result says of a profile's sections is what that profile says."""
    for name, section in (("data", "data"), ("scene", "scene"), ("networks", "networks"), ("training", stage)):
        if said := depends.get(name):
            have = sections[section] or {}
            if any(have.get(key) != value for key, value in said.items() if key not in _NOT_FOLLOWED):
                return False
    return depends.get("width") in (None, sections["networks"]["width"])


def find_entries(runs: Path = RUNS) -> list[Found]:
    """Find all entries of the store, by kind and name."""
    folders = [path for path in sorted(runs.glob("*/*")) if path.is_dir() and path.parent.name != CURVES]
    return [Found(path) for path in folders if _NAME.fullmatch(path.name)]


def as_table(entries: Sequence[Found]) -> pd.DataFrame:
    """Give one row an entry: what it is, from which parameters, how far, how large, and how it was made.

    `differs in` tells it from those of the same label and profile: the parameters in which they are not alike.
    """
    rows = []
    for entry in entries:
        alike = [e for e in entries if (e.kind, e.label, e.profiles) == (entry.kind, entry.label, entry.profiles)]
        row = {"kind": entry.kind, "label": entry.label, "hash": entry.key, "profile": ", ".join(entry.profiles)}
        row |= {"state": entry.how_far(), "size": _megabytes(entry.bytes)}
        keys = ("starts", "started", *(["finished", "seconds", "device"] if entry.is_complete else []))
        row |= {key: str(entry.about.get(key, "")) for key in keys}
        rows.append({**row, "differs in": _differences(entry, alike)})
    return pd.DataFrame(rows).fillna("")


def _differences(entry: Found, alike: Sequence[Found]) -> str:
    if not entry.depends:
        return "not known"
    own, others = _flatten(entry.depends), [_flatten(other.depends) for other in alike if other.depends]
    keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
    keys = [key for key in keys if not key.startswith("train.")]  # a cell's test says the same of the videos
    more = [f"and {len(keys) - _MOST_DIFFERENCES} more"] if len(keys) > _MOST_DIFFERENCES else []
    return ", ".join([*(f"{key}={_short(own[key])}" for key in keys[:_MOST_DIFFERENCES]), *more])


def _flatten(depends: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in depends.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", str(value))  # of a SHA-256 its first digits


def choose(entries: Sequence[Found], patterns: Iterable[str]) -> list[Found]:
    """Find the entries that patterns mean; `Found.is_meant_by` says how.

    Raises: ValueError for a pattern that means none.
    """
    chosen = {}
    for pattern in patterns:
        meant = [entry for entry in entries if entry.is_meant_by(pattern)]
        if not meant:
            raise ValueError(
                f"{pattern!r} is no entry; give a name, a label, the first {_SHORTEST_KEY} or more digits of a hash, "
                "or a glob such as 'features/*-L8-*'"
            )
        chosen |= {entry.path: entry for entry in meant}
    return list(chosen.values())


def delete(entries: Sequence[Found]) -> None:
    """Delete entries and their curves, all or none.

    A record goes first, so that what is left of an interruption is never a result.

    Raises: RuntimeError if a running process is making one of them.
    """
    with ExitStack() as held:
        for entry in entries:
            try:
                held.enter_context(FileLock(_lock_of(entry.path), timeout=0))
            except Timeout:
                raise RuntimeError(
                    f"{entry.path.name} is being made by a running process, so nothing was deleted; stop it first"
                ) from None
        for entry in entries:
            (entry.path / "record.json").unlink(missing_ok=True)
            shutil.rmtree(entry.path)
            shutil.rmtree(curves_of(entry.path), ignore_errors=True)
            _lock_of(entry.path).unlink(missing_ok=True)


def tidy(runs: Path = RUNS) -> list[Path]:
    """Remove, and list, the half files of processes that are gone and the locks that nobody needs or holds."""
    removed = []
    for path in runs.rglob(".*.partial"):
        match, place = _PARTIAL.fullmatch(path.name), path.relative_to(runs).parts
        owner = path.with_name(match["name"]) if len(place) < 3 else runs.joinpath(*place[:2])
        if not is_running(int(match["process"])) and not _is_held(_lock_of(owner)):
            removed.append(path)
    for path in runs.glob("*/*.lock"):
        owner = path.with_name(path.name.removesuffix(".lock"))
        if not _is_held(path) and (not owner.exists() or (owner / "record.json").is_file()):
            removed.append(path)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _is_held(lock: Path) -> bool:
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                pass
    except Timeout:
        return True
    return False


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _total(entries: Sequence[Found], runs: Path) -> str:
    unfinished = sum(not entry.is_complete for entry in entries)
    size = _megabytes(sum(entry.bytes for entry in entries))
    return f"{len(entries)} entries in {runs}, {unfinished} of them unfinished, {size}"


def main(arguments: Sequence[str] | None = None, *, runs: Path = RUNS) -> None:
    """Show what is in runs/, or in the folder that FASTER_RUNS names, and delete what is not wanted."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.status", description=main.__doc__)
    parser.add_argument(
        "--without-profile",
        action="store_true",
        help="only entries whose parameters no profile in params/ has: of a profile that has changed since, or varied "
        "by a notebook or a test",
    )
    parser.add_argument(
        "--delete",
        nargs="*",
        metavar="ENTRY",
        help="names, labels, hashes or globs of what is to go; with them, or alone, go the half files and the locks of "
        "processes that are gone",
    )
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    entries = find_entries(runs)
    if given.without_profile:
        entries = [entry for entry in entries if entry.depends and not entry.profiles]
    try:
        shown = entries if given.delete is None else choose(entries, given.delete)
    except ValueError as error:
        parser.error(str(error))
    if shown:
        log.info("%s", as_table(shown).to_string(index=False))
    log.info("%s", _total(shown, runs))
    if given.delete is None:
        return
    if shown and not given.yes and input("Delete all of these? [y/N] ").strip().lower() not in ("y", "yes"):
        log.info("Nothing was deleted.")
        return
    delete(shown)
    log.info("Deleted %d entries and %d leftover files.", len(shown), len(tidy(runs)))


if __name__ == "__main__":
    main()
