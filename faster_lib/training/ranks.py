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

    The main one holds the entry meanwhile, and what its `make` gives becomes the record, once all ranks have made
    theirs. All see the same files.

    Raises: what `make` raises, in its rank and at once: a rank that ends so breaks off what the others wait for.
    """
    ranks, is_made = find_ranks(), []

    def lead() -> dict[str, Any]:
        is_made.append(tell_all(True))
        measures = make()
        ranks.wait_for_everyone()  # so that no record is written after an error in another rank
        return measures

    if ranks.num_processes == 1:
        entry.complete(make)
    elif ranks.is_main_process:
        entry.complete(lead)
        if not is_made:
            tell_all(False)
    elif tell_all(None):
        make()
        ranks.wait_for_everyone()
    ranks.wait_for_everyone()


def tell_all(value: Any) -> Any:
    """Give every rank the main one's value; all must call this."""
    return broadcast_object_list([value])[0] if find_ranks().num_processes > 1 else value
