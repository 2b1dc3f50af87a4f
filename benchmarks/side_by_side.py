"""What all benchmarks share: contenders timed in turn, and one table of what they gave."""

import csv
import ctypes
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from faster_lib.inference import keep_freed_memory
from faster_lib.provenance import circumstances

log = logging.getLogger(__name__)
KIT, LIMIT = "the kit", "matrix product"


class Speed(NamedTuple):
    """What one contender reached in the rounds of one contest."""

    part: str  # of the benchmarks: networks, aggregators, ...
    contest: str  # such as "R(2+1)D-50, L = 8, batch 1"; contenders are compared within it alone
    who: str
    unit: str  # more is better, but for seconds and MiB
    values: tuple[float, ...]  # one of each round; none where the unit says why it was not measured

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None


@contextmanager
def allocator_as_found() -> Iterator[None]:
    """Let memory come and go as in every process, and not as the kit sets it; afterwards as the kit does."""
    if keep_freed_memory():  # else it is as it was found
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)  # from glibc's malloc.h: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, as far up as glibc
        libc.mallopt(-1, 2**26)  # moves them by itself
    try:
        yield
    finally:
        keep_freed_memory()


@dataclass(frozen=True)
class Peer:
    """A call of what one would take in place of the kit."""

    call: Callable[[], object]

    def __call__(self) -> object:
        with allocator_as_found():
            return self.call()


def contend(
    part: str, contest: str, work: float, unit: str, contenders: Mapping[str, Callable[[], object]], *, rounds: int
) -> list[Speed]:
    """Time contenders in turn, round by round, after one call of each that does not count.

    Peers run with the allocator as found. What comes after a peer is called once more before it counts, since it finds
    the memory given back.

    Args:
        work: done by each call, in the unit's numerator, such as GMAC.
        contenders: may return what they did themselves; a float in place of `work`, anything else is ignored.
    """
    for name, call in contenders.items():
        start = time.perf_counter()
        call()
        log.info("%s, %s: %s, first call %.1f s", part, contest, name, time.perf_counter() - start)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    in_turn, after_peer = sorted(contenders.items(), key=lambda named: isinstance(named[1], Peer)), True
    for _ in range(rounds):
        for name, call in in_turn:
            is_peer = isinstance(call, Peer)
            if after_peer and not is_peer:
                call()
            after_peer = is_peer
            start = time.perf_counter()
            done = call()
            seconds = time.perf_counter() - start
            found[name].append((done if isinstance(done, float) else work) / seconds)
    return [Speed(part, contest, name, unit, tuple(values)) for name, values in found.items()]


def _processor() -> str:
    """Give the processor's name, where Linux or the platform tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_circumstances(file: TextIO) -> None:
    """Write on what the numbers that follow were measured, as comments of a CSV file."""
    about = circumstances()
    about["processor"] = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    file.writelines(f"# {key}: {json.dumps(about[key])}\n" for key in ("device", "processor", "commit", "versions"))


def write_table(path: Path, contests: Iterable[Sequence[Speed]]) -> None:
    """Write contest after contest as they end, each speed beside the kit's in the same contest, and log them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        write_circumstances(file)
        writer = csv.writer(file)
        writer.writerow(["part", "contest", "who", "median", "least", "most", "unit", "rounds", "kit / who"])
        for speeds in contests:
            kit = {s.contest: s.median for s in speeds if s.who == KIT}
            for s in speeds:
                ratio = kit.get(s.contest)
                found = (s.median, min(s.values), max(s.values)) if s.values else ()
                numbers = [f"{value:.5g}" for value in found] or [""] * 3
                share = f"{ratio / s.median:.3g}" if ratio and s.median else ""
                writer.writerow([s.part, s.contest, s.who, *numbers, s.unit, len(s.values), share])
                log.info(
                    "%-12s %-50s %-32s %10s %-9s kit / who %s", s.part, s.contest, s.who, numbers[0], s.unit, share
                )
            file.flush()
