"""Work of many parts, side by side in processes, with a progress bar."""

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

# joblib replaces a process that has grown since its first task, as one does that first wrote videos and then trains.
REPLACED = "A worker stopped while some jobs were given to the executor"


def count_cores() -> int:
    """Give how many cores this process may use, by its affinity and its container's limits too."""
    return cpu_count()


def run_all(
    function: Callable[..., Any], parts: Iterable[tuple[Any, ...]], *, workers: int, title: str, unit: str, **bar: Any
) -> None:
    """Call a function with the arguments of each part, in any order; what it gives is dropped.

    Args:
        workers: the number of processes; 0 and 1 stand for this one.
        bar: what else the progress bar is told.
    Raises: what the function raises.
    """
    parts = list(parts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", REPLACED)
        jobs = (delayed(_call)(os.getpid(), function, part) for part in parts)
        done = Parallel(n_jobs=max(workers, 1), return_as="generator_unordered")(jobs)
        for _ in tqdm(done, desc=title, unit=unit, total=len(parts), **bar):
            pass


def _call(main: int, function: Callable[..., Any], part: tuple[Any, ...]) -> None:
    """Call the function, unless the process that asked for it is gone: a new one may be at the same part."""
    if main in (os.getpid(), os.getppid()):
        function(*part)
