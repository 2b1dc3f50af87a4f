"""Results kept under a key of everything they depend on, complete or not there at all.

An entry is a folder `runs/<profile>/<kind>/<label>-<key>`. Its `record.json` is written last: without it the entry is
unfinished, and whoever needs it goes on from the parts in it. Every file appears under its name only when it is whole.
"""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from faster_lib.paths import RUNS, WEIGHTS
from faster_lib.provenance import circumstances, host, now

BEGUN = "begun.json"  # says, while an entry is made, from what and since when


@dataclass(frozen=True)
class Entry:
    """One result and what it depends on. Naming it does no work.

    Args:
        profile: name of the profile; it stands in the path and in the record, not in the key.
        kind: videos, networks, features or aggregators.
        label: what a reader recognises it by.
        depends: everything that decides the result, as plain JSON.
    """

    profile: str
    kind: str
    label: str
    depends: dict[str, Any]
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
        """What was kept with the result: its measures, and how, where and when it was made."""
        return json.loads((self.path / "record.json").read_text(encoding="utf-8"))

    def complete(self, make: Callable[[], dict[str, Any]]) -> None:
        """Have the result made by `make`, which gives its measures, unless it is there.

        The entry is locked meanwhile: a second process that wants the same one waits, and finds it made. The record
        counts the starts and adds up their seconds; of a process that was killed, up to the last file that it left.
        """
        if self.is_complete:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(self.path.name + ".lock")):
            if self.is_complete:
                return
            remove_partials(self.path)
            begun, start = self._begin(), time.perf_counter()
            measures = make()
            begun["seconds"] = round(begun["seconds"] + time.perf_counter() - start, 1)
            record = {**begun, "measures": measures, **host(), **circumstances()}
            write_whole(self.path / "record.json", json.dumps(record, indent=1).encode())
            (self.path / BEGUN).unlink()

    def _begin(self) -> dict[str, Any]:
        path = self.path / BEGUN
        begun = {"profile": self.profile, "depends": self.depends, "started": now(), "starts": 1, "seconds": 0.0}
        if path.is_file():
            begun = json.loads(path.read_text(encoding="utf-8"))
            begun["starts"] += 1
            begun["seconds"] += max(part.stat().st_mtime for part in self.path.rglob("*")) - path.stat().st_mtime
        write_whole(path, json.dumps(begun, indent=1).encode())
        return begun

    def shipped(self) -> tuple[bytes, dict[str, Any]] | None:
        """Find the weights that the kit ships for this very entry, with what the manifest says of them.

        Raises: ValueError if the file is not the one that the manifest describes.
        """
        about = read_manifest().get(self.path.name)
        if about is None:
            return None
        content = (WEIGHTS / f"{self.path.name}.safetensors").read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != about["sha256"]:
            raise ValueError(
                f"params/weights/{self.path.name}.safetensors has the hash {found[:16]}..., but the manifest says "
                f"{about['sha256'][:16]}...; fetch the file again, or make it by: make retrain"
            )
        return content, about


def read_manifest(weights: Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """Give what is known of each shipped network: hash, command, profile, accuracy; by the name of its entry."""
    path = weights / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def hash_of(depends: Any) -> str:
    """Hash plain JSON content, whatever the order of its keys, to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that under its name it is whole or absent, even after a crash or on a full disk.

    Raises: OSError, naming the file, if it cannot be written; what was there before then stays.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name too, so that a power cut does not take back a replaced file
            finally:
                os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name the file that it is about, as those of a full disk do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_partials(folder: Path) -> None:
    """Remove, below a folder too, what `write_whole` left half written in processes of this machine that are gone."""
    for path in folder.rglob(".*.partial"):
        writer = re.search(rf"\.{re.escape(platform.node())}\.(\d+)\.partial$", path.name)
        if writer and not _is_running(int(writer[1])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
