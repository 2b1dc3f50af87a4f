"""On what a number was made: device, host, versions, commit and time."""

import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

from faster_lib.paths import IS_CLONE, ROOT

_DISTRIBUTIONS = ("torch", "torchvision", "decord2", "av", "numpy")


def circumstances() -> dict[str, Any]:
    """Say on what a number was made: device, versions, commit, time."""
    import torch  # here, since reading facts and profiles should not load torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), **{name: version(name) for name in _DISTRIBUTIONS}}
    return {"device": device, "versions": versions, "commit": _commit(), "finished": now()}


def host() -> dict[str, Any]:
    """Say what the host has, and how much memory this process has used since it began."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about = {"cpus": os.cpu_count(), "memory_mib": round(memory / 2**20)}
    return {"host": about, "processes": int(os.environ.get("WORLD_SIZE", 1)), "peak_mib": round(peak_mib())}


def peak_mib(device: str = "cpu") -> float:
    """Give the most memory that this process has used since it began, in MiB, on the CPU or on a CUDA device."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def now() -> str:
    """Give the time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _commit() -> str | None:
    if not IS_CLONE:
        return f"faster-kit {version('faster-kit')}"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None
