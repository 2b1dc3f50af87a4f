"""Results kept under a hash of everything they depend on, complete or not there at all.

An entry is a folder `runs/<profile>/<kind>/<label>-<hash>`. Its `record.json` is written last: without one it is
unfinished, and whoever needs it goes on from the parts in it; `begun.json` says meanwhile from which parameters it is
being made.
Every file appears under its name only when it is whole.
"""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from faster_lib.paths import ROOT, RUNS, WEIGHTS

BEGUN = "begun.json"
_VERSIONS_OF = ("torch", "torchvision", "decord2", "av", "numpy")


@dataclass(frozen=True)
class Entry:
    """One result and what it depends on; `depends` must be plain JSON."""

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
        """Have the result made by `make`, which gives its measures, unless it is there; they complete it.

        The entry is held alone meanwhile: a second process that wants the same one waits, and finds it made. What
        processes that were killed left half written in its folder is removed first. Its record counts the starts and
        adds up their seconds; of a process that was killed, up to the last file it left.
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
            record = {**begun, "measures": measures, **_host(), **circumstances()}
            write_whole(self.path / "record.json", json.dumps(record, indent=1).encode())
            (self.path / BEGUN).unlink()

    def _begin(self) -> dict[str, Any]:
        """Note from which parameters the entry is made, since when, and for how long before this start."""
        path = self.path / BEGUN
        begun = {"depends": self.depends, "started": _now(), "starts": 1, "seconds": 0.0}
        if path.is_file():
            begun = json.loads(path.read_text(encoding="utf-8"))
            begun["starts"] += 1
            begun["seconds"] += max(part.stat().st_mtime for part in self.path.rglob("*")) - path.stat().st_mtime
        write_whole(path, json.dumps(begun, indent=1).encode())
        return begun

    def shipped(self) -> tuple[bytes, dict[str, Any]] | None:
        """Find the weights that the repository ships for this very entry, with what the manifest says of them.

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


def hash_of(depends: dict[str, Any]) -> str:
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
            _keep_names(path.parent)
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


def _keep_names(folder: Path) -> None:
    """Have the names in a folder on the disk too, so that a power cut does not take back a replaced file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove, below a folder too, what `write_whole` left half written in processes of this machine that are gone."""
    for path in folder.rglob(".*.partial"):
        writer = re.search(rf"\.{re.escape(platform.node())}\.(\d+)\.partial$", path.name)
        if writer and not is_running(int(writer[1])):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Say whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def circumstances() -> dict[str, Any]:
    """Say on what a number was measured: device, versions, commit, time."""
    import torch  # here, since reading facts and profiles should not load torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF if _has(name)}}
    return {"device": device, "versions": versions, "commit": _commit(), "finished": _now()}


def _host() -> dict[str, Any]:
    """Say what the host has and what this process took of it: a peak is since the process began."""
    import torch  # here, likewise

    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in MiB
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peaks = dict(zip(("process", "largest_child"), (round(each / unit) for each in used), strict=True))
    if torch.cuda.is_available():
        peaks["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    host = {"cpus": os.cpu_count(), "memory_mib": round(memory / 2**20)}
    return {"host": host, "processes": int(os.environ.get("WORLD_SIZE", 1)), "peak_mib": peaks}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _has(distribution: str) -> bool:
    try:
        version(distribution)
    except ModuleNotFoundError:
        return False
    return True


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
