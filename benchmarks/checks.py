"""What benchmarks/gpu.py is made of: checks that give outcomes, where they run, and the table that keeps them."""

import contextlib
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from faster_lib.inference import fastest_type

TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far outputs and gradients may be from float64's, as shares: of the largest output, of the gradient's norm.
LIMITS = {"float32": (1e-4, 1e-3), "tf32": (1e-2, 5e-2), "bf16": (5e-2, 0.25), "fp16": (1e-2, 5e-2)}
ROUNDS = 9


@dataclass(frozen=True)
class Outcome:
    """What a check found; it passes if `value` is at most (or at least) `limit`, or finite where there is none."""

    value: float
    limit: float | None = None
    is_least: bool = False
    what: str = ""  # beside the line's own name
    figures: Mapping[str, object] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        sign = -1 if self.is_least else 1
        return math.isfinite(self.value) and (self.limit is None or sign * self.value <= sign * self.limit)


Check = tuple[str, Callable[[], Outcome | Sequence[Outcome]]]  # a line's name, and what makes the line, or some


class Lacking(Exception):
    """What a check needs, and this device does not have; the message says what would work."""


@dataclass(frozen=True)
class Scale:
    """Where all runs, and how large it is."""

    device: torch.device
    is_small: bool

    @property
    def width(self) -> float:
        return 1 / 64 if self.is_small else 1.0

    def clips(self, clip_frames: int, *sizes: int) -> torch.Tensor:
        """Draw clips of noise: (*sizes, 3, L, size, size) on the device."""
        clip_frames, size_px = (8, 32) if self.is_small else (clip_frames, 224)
        drawn = torch.randn(*sizes, 3, clip_frames, size_px, size_px, generator=torch.Generator().manual_seed(0))
        return drawn.to(self.device)

    def judged(self, limit: float) -> float | None:
        """Give a limit of time, which means nothing at small size."""
        return None if self.is_small else limit

    def has(self, kind: str) -> bool:
        """Whether the device multiplies this type; a CPU may emulate bf16."""
        if self.device.type != "cuda":
            return kind in ("float32", "bf16")
        return kind in ("float32", "fp16") or fastest_type(self.device) == torch.bfloat16

    @contextlib.contextmanager
    def computing(self, kind: str) -> Iterator[None]:
        """Compute by a type: float32 strictly, TF32, or half precision by autocast."""
        if not self.has(kind):
            needs = "a CUDA GPU" if kind == "fp16" else "a CUDA GPU of capability 8.0 or more"
            raise Lacking(f"{self.device} does not multiply {kind}, float32 works here; {kind} needs {needs}")
        half = TYPES[kind] if TYPES[kind] != torch.float32 else None
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = kind == "tf32"
        with torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None):
            yield

    def now(self) -> float:
        """Give the time, in seconds, at which the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_mib(self) -> float | None:
        """Give the most memory since the last time that this was asked for, on a GPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 1)

    def time(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Time calls in turn: of each the median of the rounds in milliseconds, and its interval."""
        repeats, found = {}, {name: [] for name in calls}
        for name, call in calls.items():
            for _ in range(2):  # the second one is warm
                start = self.now()
                call()
                repeats[name] = 1 if self.is_small else math.ceil(0.02 / (self.now() - start))
        for _ in range(3 if self.is_small else ROUNDS):
            for name, call in calls.items():
                start = self.now()
                for _ in range(repeats[name]):
                    call()
                found[name].append(1000 * (self.now() - start) / repeats[name])
        times, fifth = {}, len(next(iter(found.values()))) // 5
        for name, values in found.items():
            low, high = sorted(values)[fifth], sorted(values)[-1 - fifth]
            times[name] = [short(value) for value in (statistics.median(values), low, high)]
        return times

    def product_gmacs(self, kind: str) -> float:
        """Give the GMAC/s of a large matrix product in a type."""
        side = 128 if self.is_small else 8192 if self.device.type == "cuda" else 2048
        a, b = torch.randn(2, side, side, device=self.device).to(TYPES[kind])
        with self.computing(kind):
            return short(side**3 / 1e6 / self.time({"": lambda: a @ b})[""][0])


def short(value: float) -> float:
    """Give four digits of a number."""
    return float(f"{value:.4g}")


class Table:
    """The lines so far, on disk as JSON and as Markdown."""

    def __init__(self, folder: Path, about: Mapping[str, object]):
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown, self.about, self.lines = folder / "gpu.json", folder / "gpu.md", about, []
        head = "".join(f"- {name}: {value}\n" for name, value in about.items())
        self.markdown.write_text(f"{head}\n| section | line | status | value | limit | figures |\n|{' --- |' * 6}\n")

    def add(self, section: str, line: str, status: str, value: float = math.nan, limit: str = "", **figures) -> None:
        """Add a line to both files, and print it; a value that is not finite is written as a word."""
        value = short(value) if math.isfinite(value) else "" if math.isnan(value) and "why" in figures else str(value)
        row = {"section": section, "line": line, "status": status, "value": value, "limit": limit}
        self.lines.append(row | {"figures": figures})
        whole = self.json.with_suffix(".part")
        whole.write_text(json.dumps({"about": self.about, "lines": self.lines}, indent=1))
        os.replace(whole, self.json)
        listed = "; ".join(f"{name} {found}" for name, found in figures.items())
        cells = [str(cell).replace("|", "/") for cell in (*row.values(), listed)]
        with self.markdown.open("a") as file:
            file.write(f"| {' | '.join(cells)} |\n")
        print(" | ".join(cells), flush=True)

    def try_out(self, section: str, check: Check) -> None:
        """Make a check's lines; its failure is a line too."""
        (name, call), start = check, time.perf_counter()
        try:
            outcomes = call()
            for found in [outcomes] if isinstance(outcomes, Outcome) else outcomes:
                limit = (
                    "" if found.limit is None else f"{'at least' if found.is_least else 'at most'} {found.limit:.4g}"
                )
                figures = {**found.figures, "seconds": short(time.perf_counter() - start)}
                line, status = f"{name}: {found.what}".removesuffix(": "), "pass" if found.passes else "fail"
                self.add(section, line, status, found.value, limit, **figures)
        except Lacking as error:
            self.add(section, name, "not run", why=str(error))
        except Exception as error:  # whatever it is, the other lines go on
            self.add(section, name, "fail", why=explain(error))
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def explain(error: Exception) -> str:
    """Say in one line what went wrong, and what would work."""
    said, remedy = (str(error).strip().splitlines() or [""])[0][:300], ""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in said:
        remedy = "; fewer clips at once, checkpoints or a device with more memory would work"
    elif "not implemented" in said or "not supported" in said:
        remedy = "; float32 would work"
    return f"{type(error).__name__}: {said}{remedy}"
