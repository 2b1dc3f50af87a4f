"""What works beside the main thread: threads that load ahead, processes that share parts, decoders that hang."""

import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits
from tqdm import tqdm

count_cores = cpu_count  # that this process may use, by its affinity and its container's limits too
_AHEAD = 2  # items a worker, as PyTorch's loader has it
_LOOK_SECONDS, _MOST_LOOKS = 5.0, 60  # so often in a row nothing has come: the decoder hangs, not the machine
_reading: dict[int, list] = {}  # by thread: the file that it reads, and the looks since something came
_given_up: set[Path] = set()  # files at which a decoder hung in this process
# joblib replaces a process that has grown since its first task, as one does that first wrote videos and then trains.
_REPLACED = "A worker stopped while some jobs were given to the executor"


def load_ahead(load: Callable[[Any], Any], given: Iterable[Any], workers: int) -> Iterator[Any]:
    """Load in so many threads, ahead, in order, or with 0 in the one that asks; errors come in their items' places.

    A thread whose decoder hangs is left behind: others load what was begun, and to them that file is an error.
    """
    if workers == 0:
        return (yield from map(load, given))
    loading, is_over, pool = deque(), threading.Event(), ThreadPool(workers, _use_one_core)

    def begin(each: Any) -> tuple[Any, AsyncResult]:
        return each, pool.apply_async(lambda: is_over.is_set() or load(each))

    def take() -> Any:
        nonlocal loading, pool
        while not loading[0][1].ready():
            loading[0][1].wait(_LOOK_SECONDS)
            if _give_up_hanging():
                pool.terminate()
                pool = ThreadPool(workers, _use_one_core)
                loading = deque([begin(each) for each, _ in loading])
        return loading.popleft()[1].get()

    try:
        for each in given:
            loading.append(begin(each))
            if len(loading) > _AHEAD * workers:
                yield take()
        while loading:
            yield take()
    finally:
        is_over.set()
        until = time.monotonic() + _LOOK_SECONDS  # a decoder that is torn down while it works may crash
        for _, result in loading:
            result.wait(max(0, until - time.monotonic()))
        pool.terminate()


def _use_one_core() -> None:
    """Let PyTorch split nothing that this thread does; torch.set_num_threads would hold for all threads."""
    torch.get_num_threads()  # sets what a new thread starts with
    threadpool_limits(1, user_api="openmp")


def progress(*given: Any, is_shown: bool = True, **form: Any) -> tqdm:
    """Make a progress bar; in a notebook it goes with the output, since Jupyter shows the other stream in red."""
    hidden = {} if is_shown else {"disable": True}  # not False, which would overrule TQDM_DISABLE
    return tqdm(*given, file=sys.stdout if "ipykernel" in sys.modules else None, **hidden, **form)


def run_all(function: Callable, parts: Iterable[tuple], *, workers: int, title: str, unit: str, **bar: Any) -> None:
    """Call a function with the arguments of each part, in any order, in so many processes; 0 and 1 are this one."""
    jobs = [delayed(_call)(os.getpid(), function, part) for part in parts]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _REPLACED)
        done = Parallel(n_jobs=max(workers, 1), return_as="generator_unordered")(jobs)
        deque(progress(done, desc=title, unit=unit, total=len(jobs), **bar), maxlen=0)


def _call(main: int, function: Callable[..., Any], part: tuple[Any, ...]) -> None:
    """Call the function, unless the process that asked for it is gone: a new one may be at the same part."""
    if main in (os.getpid(), os.getppid()):
        function(*part)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say that this thread reads a file, for a `with` block; TimeoutError at one at which a decoder hung before."""
    if path in _given_up:
        raise TimeoutError(f"the decoder hangs: nothing came for {_MOST_LOOKS * _LOOK_SECONDS:g} s")
    _reading[threading.get_ident()] = [path, 0]
    try:
        yield
    finally:
        _reading.pop(threading.get_ident(), None)


def reads_on() -> None:
    """Say that something has come of what this thread reads."""
    if (own := _reading.get(threading.get_ident())) is not None:
        own[1] = 0


def _give_up_hanging() -> bool:
    """Look for decoders that hang; refuse their files from now on, and tell whether there are any."""
    before = len(_given_up)
    for each in [*_reading.values()]:
        each[1] += 1
        _given_up.update(each[:1] if each[1] > _MOST_LOOKS else ())
    return len(_given_up) > before
