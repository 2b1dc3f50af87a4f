"""One training loop for both stages: on one CPU, one GPU or many processes, by Hugging Face Accelerate."""

import logging
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from faster_lib.profiles import Engine, Optimisation
from faster_lib.training.batch_norm import synchronise_batch_norm
from faster_lib.training.optimisation import build_optimiser
from faster_lib.training.ranks import find_ranks
from faster_lib.training.training_state import load_state, save_state

log = logging.getLogger(__name__)

FIRST_LOSSES = 5  # kept with a network, so that a second training can be compared with the first after a few steps
POINTS = 1000  # of each curve in TensorBoard, about
STOPPED = 128 + signal.SIGTERM  # the exit status of a process that ends by that signal


@dataclass
class Task:
    """What one training does at each step.

    Args:
        batches: from a step on, gives this rank's share of every step's batch, in as many parts as the engine's
            `accumulation`; it is told the first step, and which of how many parts of a batch are wanted.
        compute: the scores and the classes of one part, on the network's device; it must take a part of no samples.
        check: is told what this rank and the others could not read in a step, and raises if that is too much.
    """

    label: str
    settings: Optimisation
    engine: Engine
    steps: int
    batch_samples: int  # in a step, of all ranks
    seed: int
    batches: Callable[[int, Sequence[int], int], Iterable[Any]]
    compute: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
    checkpoint: Path
    curves: Path | None = None
    check: Callable[[list[Any], dict[str, str]], None] = field(default=lambda skipped, so_far: None)
    kept_losses: int = 1  # how many of the last steps
    is_quiet: bool = False  # whether others show how far it is


def fit(network: nn.Module, task: Task) -> dict[str, Any]:
    """Train a network in place, from its last checkpoint if there is one.

    Every step's batch is shared out among the ranks, and its gradient is that of the mean over the whole batch, so that
    the number of ranks changes results by no more than rounding. On SIGTERM the state is kept and the process ends.

    Returns: the `loss` (a running mean), the `first_losses`, the `last_losses`, `training_seconds`, and what was
        `skipped`.
    Raises: FloatingPointError if the loss is not finite; ValueError if a batch is too small to share out; SystemExit
        after SIGTERM.
    """
    return _Fit(network, task).run()


class _Fit:
    """The state of one training."""

    def __init__(self, network: nn.Module, task: Task):
        self.task, self.ranks = task, find_ranks()
        self.parts = self.ranks.num_processes * task.engine.accumulation
        if task.batch_samples < self.parts:
            raise ValueError(
                f"a batch of {task.batch_samples} cannot be shared out to {self.ranks.num_processes} processes in "
                f"{task.engine.accumulation} part(s) each; make the batch larger, or engine.accumulation smaller"
            )
        self.network = network.to(self.ranks.device).train()
        self.is_synchronised = task.engine.sync_batch_norm and self.ranks.num_processes > 1
        if self.is_synchronised:
            self.network = synchronise_batch_norm(self.network)
        self.learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimiser, self.schedule = build_optimiser(
            self.learned, task.settings, task.steps, batch_samples=task.batch_samples
        )
        self.progress: dict[str, Any] = {"iteration": 0, "loss": None, "first_losses": [], "last_losses": []}
        self.progress |= {"training_seconds": 0.0, "skipped": {}}
        self.wrapped = self.ranks.prepare_model(self.network) if self.ranks.num_processes > 1 else self.network
        self.waited = 0.0  # seconds, for data, since the last point of the curves
        self.is_told_to_stop = self.stop = False  # this rank alone, and all of them

    def run(self) -> dict[str, Any]:
        task, progress = self.task, self.progress
        settings: Optimisation = task.settings
        devices = [self.ranks.device] if self.ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._stopped_by_sigterm():
            torch.manual_seed(int(np.random.SeedSequence([task.seed, self.ranks.process_index]).generate_state(1)[0]))
            self._go_on()
            mine = [self.ranks.process_index + self.ranks.num_processes * m for m in range(task.engine.accumulation)]
            batches = iter(task.batches(progress["iteration"], mine, self.parts))
            start = time.perf_counter() - progress["training_seconds"]
            with self._bar() as bar, self._curves() as draw:
                while progress["iteration"] < task.steps:
                    found = self._step(batches)
                    progress["training_seconds"] = time.perf_counter() - start
                    draw(found)
                    bar.update()
                    bar.set_postfix(loss=f"{progress['loss'] or 0:.2f}", refresh=False)
                    if self.stop or progress["iteration"] % settings.checkpoint_iterations == 0:
                        self._save()
                    if self.stop:
                        log.warning("%s: SIGTERM; stopped after step %d", task.label, progress["iteration"])
                        raise SystemExit(STOPPED)
        return {**progress, "training_seconds": round(progress["training_seconds"], 1)}

    def _step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Take one step; every rank takes the same decisions from the same counts."""
        start = time.perf_counter()
        parts = [next(batches) for _ in range(self.task.engine.accumulation)]
        self.waited += time.perf_counter() - start
        skipped = [what for part in parts for what in getattr(part, "skipped", [])]
        counts = self._gather([len(part.targets) for part in parts] + [len(skipped), int(self.is_told_to_stop)])
        self.stop = bool(counts[:, -1].any())
        if counts[:, -2].any():
            self.task.check(gather_object(skipped), self.progress["skipped"])
        samples = counts[:, :-2]
        # Where batch norm looks at one rank's clips alone, it can do nothing with none.
        usable = [m for m in range(len(parts)) if samples[:, m].any() and (self.is_synchronised or samples[:, m].all())]
        total = int(samples[:, usable].sum())
        self.progress["iteration"] += 1
        found = {"samples": total}
        if usable:
            loss, correct = self._descend([parts[m] for m in usable], total)
            found |= {"loss": loss, "accuracy": 100 * correct / total}
            self._note(loss)
        self.schedule.step()
        return found

    def _descend(self, parts: Sequence[Any], total: int) -> tuple[float, float]:
        """Do one optimiser step on the parts of a batch; give its mean loss and the number of right samples."""
        self.optimiser.zero_grad(set_to_none=True)
        share, correct = 0.0, 0
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.ranks.no_sync(self.wrapped):
                with self._autocast():
                    logits, targets = self.task.compute(self.wrapped, part)
                    losses = nn.functional.cross_entropy(
                        logits.float(), targets, reduction="sum" if not len(targets) else "mean"
                    )
                weight = len(part.targets) / total  # 1 on one rank
                (losses * (weight * self.ranks.num_processes)).backward()
            share += losses.item() * weight
            correct += (logits.argmax(-1) == targets).float().mean().item() * len(part.targets) if len(targets) else 0
        loss, correct = self._gather([share, correct], torch.float64).sum(0).tolist()
        settings: Optimisation = self.task.settings
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}; lower learning_rate, which is {settings.learning_rate}")
        if settings.clip_gradient_norm:
            nn.utils.clip_grad_norm_(self.learned, settings.clip_gradient_norm)
        self.optimiser.step()
        return loss, correct

    def _note(self, loss: float) -> None:
        progress = self.progress
        if len(progress["first_losses"]) < FIRST_LOSSES:
            progress["first_losses"].append(loss)
        progress["last_losses"].append(loss)
        del progress["last_losses"][: -self.task.kept_losses]
        progress["loss"] = loss if progress["loss"] is None else 0.95 * progress["loss"] + 0.05 * loss

    def _gather(self, numbers: list, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Give the numbers of all ranks: (ranks, len(numbers))."""
        own = torch.tensor([numbers], dtype=dtype)
        if self.ranks.num_processes == 1:
            return own
        return self.ranks.gather(own.to(self.ranks.device)).cpu()

    def _autocast(self) -> torch.autocast:
        precision = self.task.engine.mixed_precision
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=precision == "bf16")

    def _go_on(self) -> None:
        if self.task.checkpoint.is_file():
            state = load_state(self.task.checkpoint, self.network, self.optimiser, self.schedule)
            self.progress |= state["progress"]
            if self.ranks.process_index < len(state["random"]):
                _set_random_state(state["random"][self.ranks.process_index], self.ranks.device)

    def _save(self) -> None:
        """Keep everything that the next step depends on; the state before is there until this one is whole."""
        states = gather_object([_random_state(self.ranks.device)])
        if self.ranks.is_main_process:
            content = {"progress": self.progress, "random": states}
            save_state(self.task.checkpoint, self.network, self.optimiser, self.schedule, content)
            log.info("%s: step %d of %d kept", self.task.label, self.progress["iteration"], self.task.steps)
        self.ranks.wait_for_everyone()

    @contextmanager
    def _stopped_by_sigterm(self) -> Iterator[None]:
        """Let SIGTERM, as a scheduler sends it before it takes a machine away, end the training after the next step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_told_to_stop", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _bar(self) -> tqdm:
        is_shown = self.ranks.is_main_process and not self.task.is_quiet
        quiet = {} if is_shown else {"disable": True}
        title, first = f"train {self.task.label}", self.progress["iteration"]
        return tqdm(desc=title, unit="batch", initial=first, total=self.task.steps, **quiet)

    @contextmanager
    def _curves(self) -> Iterator[Callable[[dict[str, float]], None]]:
        """Give what writes TensorBoard's curves: from time to time, the last step's numbers and what it ran at."""
        if self.task.curves is None or not self.ranks.is_main_process:
            yield lambda found: None
            return
        from torch.utils.tensorboard import SummaryWriter  # here, since nothing else needs it

        every, since = -(-self.task.steps // POINTS), {"time": time.perf_counter(), "samples": 0}

        def draw(found: dict[str, float]) -> None:
            since["samples"] += found.pop("samples")
            if self.progress["iteration"] % every and self.progress["iteration"] < self.task.steps:
                return
            seconds = time.perf_counter() - since["time"]
            found |= {"samples per second": since["samples"] / seconds, "data wait share": self.waited / seconds}
            found |= {"learning rate": self.schedule.get_last_lr()[0], "peak memory (MB)": _peak_mb(self.ranks.device)}
            for name, value in found.items():
                writer.add_scalar(name, value, self.progress["iteration"])
            since.update(time=time.perf_counter(), samples=0)
            self.waited = 0.0

        with SummaryWriter(str(self.task.curves)) as writer:
            yield draw


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _random_state(device: torch.device) -> dict[str, list[int]]:
    """Give the state of every generator that a step may draw from, as plain JSON; the data have their own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: state.tolist() for name, state in states.items()}


def _set_random_state(states: dict[str, list[int]], device: torch.device) -> None:
    torch.set_rng_state(torch.tensor(states["cpu"], dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
