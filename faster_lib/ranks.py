"""The processes that work on one result together, as `accelerate launch` starts them; or this one alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from faster_lib.store import Entry

PATIENCE = timedelta(days=7)  # of ranks that wait for one which generates, scans or writes


def find_ranks() -> Accelerator:
    """Find out how many processes work together, which of them this is, and on which device."""
    options = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    return Accelerator(mixed_precision="no", kwargs_handlers=options)


def complete_together(entry: Entry, make: Callable[[], dict[str, Any]]) -> None:
    """Have a result made by all ranks, unless it is there: `Entry.complete` for several processes.

    The main one holds the entry meanwhile, and what its `make` gives becomes the record. All see the same files.
    """
    ranks = find_ranks()
    if ranks.num_processes == 1:
        entry.complete(make)
    elif ranks.is_main_process:
        is_made = []

        def lead() -> dict[str, Any]:
            is_made.append(broadcast_object_list([True]))
            return make()

        entry.complete(lead)
        if not is_made:
            broadcast_object_list([False])
    elif broadcast_object_list([None])[0]:
        make()
    ranks.wait_for_everyone()
