"""Loading ahead of what computes, in threads: what they load needs no copy, and nothing is forked."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from faster_lib.data.datasets import Batch, RandomClips, VideoClips, collate

Item, Loaded = TypeVar("Item"), TypeVar("Loaded")
_AHEAD = 2  # items a worker, as PyTorch's loader has it


def load_ahead(load: Callable[[Item], Loaded], items: Iterable[Item], workers: int) -> Iterator[Loaded]:
    """Load items in so many threads, ahead of whoever asks for them and in order; with 0, in the thread that asks.

    Decoding, scaling and copying leave Python's lock to others. An error comes where its item would.
    """
    if workers == 0:
        yield from map(load, items)
        return
    pool, loading = ThreadPoolExecutor(workers, "load", initializer=_use_one_core), deque()
    try:
        for item in items:
            loading.append(pool.submit(load, item))
            if len(loading) > _AHEAD * workers:
                yield loading.popleft().result()
        while loading:
            yield loading.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_core() -> None:
    """Let PyTorch split nothing that this thread does; torch.set_num_threads would hold for all threads."""
    torch.get_num_threads()  # sets what a new thread starts with
    threadpool_limits(1, user_api="openmp")


def decode(clips: VideoClips, videos: Iterable[int], workers: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Decode all clips of some videos, one after the other, ahead in so many threads; with 0, in this one.

    Shape: -> (views, N, 3, L, crop, crop) uint8, target
    """
    return load_ahead(clips.__getitem__, videos, workers)


def load_batches(clips: RandomClips, draws: Iterable[Sequence[tuple[int, int]]], workers: int) -> Iterator[Batch]:
    """Load batches of random clips, each drawn as (epoch, video) pairs, ahead in so many threads, pinned for a GPU."""

    def load(drawn: Sequence[tuple[int, int]]) -> Batch:
        batch = collate([clips[draw] for draw in drawn])
        return batch._replace(clips=batch.clips.pin_memory()) if torch.cuda.is_available() else batch

    return load_ahead(load, draws, workers)
