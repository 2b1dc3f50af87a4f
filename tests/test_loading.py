"""Loading ahead in threads: order, how far ahead, errors, and the cores that it takes."""

import threading

import pytest
import torch

from faster_lib.data.datasets import load_ahead


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
    assert all(thread in before or isinstance(thread, threading.Timer) for thread in threading.enumerate())


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
