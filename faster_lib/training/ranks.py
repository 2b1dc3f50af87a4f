"""Several processes that work together: which this is, results that all make, and waits that end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import nn

from faster_lib.store import Entry

PATIENCE = timedelta(minutes=10)  # of ranks in a collective: longer waits go over file locks


def find_ranks() -> PartialState:
    """Find out how many processes work together, which of them this is, and on which device."""
    is_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=is_cpu, timeout=PATIENCE)


def complete_together(entry: Entry, make: Callable[[], dict[str, Any]]) -> None:
    """Have a result made by all ranks, unless it is there: `Entry.complete` for several processes.

    The main rank holds the entry's lock, and what its `make` gives becomes the record once all ranks have made theirs.

    Raises: RuntimeError if the ranks want different results; what `make` raises, in its rank and at once: a rank that
        ends so breaks off what the others wait for.
    """
    ranks = find_ranks()
    if len(names := set(gather_object([entry.path.name]))) > 1:
        ranks.wait_for_everyone()  # so that each can say so before another one is gone
        raise RuntimeError(f"the ranks see different videos or settings: here {entry.path}, in all {sorted(names)}")

    def tell_all(value: str | None) -> str:
        return broadcast_object_list([value])[0] if ranks.num_processes > 1 else value

    def make_all() -> dict[str, Any]:
        measures = make()
        ranks.wait_for_everyone()  # so that no record is written after an error in another rank
        return measures

    if ranks.is_main_process:
        entry.complete(lambda: tell_all("make") and make_all(), while_waiting=lambda: tell_all("wait"))
        tell_all("made")
    while not ranks.is_main_process and (said := tell_all(None)) != "made":
        if said == "make":
            make_all()


def in_turns(jobs: Sequence[Any]) -> list[Any]:
    """Order jobs that are done under locks: each rank begins with others, then makes what another one left."""
    ranks = find_ranks()
    firsts = [(ranks.process_index + turn) % ranks.num_processes for turn in range(ranks.num_processes)]
    return [job for first in firsts for job in jobs[first :: ranks.num_processes]]


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Let batch norm look at the clips of all ranks; ValueError on a CPU, where PyTorch has no such batch norm."""
    if next(network.parameters()).is_cpu and any(isinstance(part, nn.BatchNorm3d) for part in network.modules()):
        raise ValueError("several CPU processes cannot train batch norm together; use one process, or GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


@contextmanager
def limited_threads(most: int) -> Iterator[int]:
    """Let PyTorch use at most so many threads, and at least one, and tell how many; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, most)))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def seeded(seed: int, build: Callable[..., Any], *arguments: Any) -> Any:
    """Build a module whose initial weights depend on the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments)
