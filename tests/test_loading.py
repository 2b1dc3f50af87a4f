"""Loading ahead in threads: order, how far ahead, errors, and the cores that it takes."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from faster_lib import workers
from faster_lib.data.datasets import RandomClips, VideoList
from faster_lib.workers import load_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_and_no_more_are_taken_than_two_a_worker_ahead(workers):
    taken, released = [], threading.Event()

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def load(number: int) -> tuple[int, bool]:
        if workers:
            assert released.wait(60)  # so that nothing is loaded before it is asked for
        return number**2, threading.current_thread() is threading.main_thread()

    loaded = load_ahead(load, items(), workers)
    assert taken == []
    released.set()
    assert next(loaded) == (0, workers == 0)
    assert len(taken) == 2 * workers + 1
    assert list(loaded) == [(number**2, workers == 0) for number in range(1, 20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_item_would(workers):
    loaded = load_ahead((6).__floordiv__, [1, 2, 0, 3], workers)
    assert [next(loaded), next(loaded)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(loaded)
    assert list(loaded) == []


def test_whoever_stops_asking_leaves_no_thread_and_what_waits_is_not_loaded():
    before, begun = set(threading.enumerate()), []
    is_at_second, may_go_on = threading.Event(), threading.Event()

    def load(number: int) -> int:
        begun.append(number)
        if number == 1:
            is_at_second.set()
            may_go_on.wait(60)
        return number

    loaded = load_ahead(load, range(100), 1)
    assert next(loaded) == 0
    assert is_at_second.wait(60)
    threading.Timer(0.2, may_go_on.set).start()
    loaded.close()  # item 1 is being loaded, item 2 waits
    assert begun == [0, 1]
    until = time.monotonic() + 60
    while others := [t for t in threading.enumerate() if t not in before and not isinstance(t, threading.Timer)]:
        assert time.monotonic() < until, others
        time.sleep(0.01)


def test_a_loading_thread_uses_one_core_and_leaves_all_to_the_others():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = list(load_ahead(lambda _: torch.get_num_threads(), range(4), 2))
        other = []
        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (seen, torch.get_num_threads(), other) == ([1] * 4, 3, [3])
    finally:
        torch.set_num_threads(before)


def test_a_decoder_that_hangs_is_left_behind_and_its_video_skipped_by_name(videos, make_data, monkeypatch, tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)  # whoever opens it waits for somebody who writes, which nobody does
    unhashed = replace(videos.videos[3], path=pipe, file=videos.videos[3].file._replace(sha256=""))
    listed = [unhashed if place == 3 else each for place, each in enumerate(videos.videos)]
    clips = RandomClips(VideoList(tuple(listed), videos.classes), make_data(), clip_frames=8, clips_per_video=1, seed=0)
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "_MOST_LOOKS", 20)
    draws = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4), (0, 5)], [(1, 3), (1, 0)]]
    try:
        batches = list(load_ahead(clips.load_batch, draws, 2))
    finally:
        with suppress(OSError):  # nobody reads
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    assert [[place for place, _ in batch.skipped] for batch in batches] == [[], [3], [], [3]]
    assert str(pipe) in (said := batches[1].skipped[0][1]) and "the decoder hangs" in said
    alone = clips.load_batch([(0, 2)])
    assert torch.equal(batches[1].clips, alone.clips) and torch.equal(batches[1].targets, alone.targets)
