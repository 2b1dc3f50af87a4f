"""One training loop for both stages, on one CPU, one GPU or many processes."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from torch import nn

from faster_lib.profile_sections import Engine, Optimisation
from faster_lib.provenance import peak_mib
from faster_lib.training.checkpoints import read_checkpoint, write_checkpoint
from faster_lib.training.ranks import find_ranks, synchronise_batch_norm
from faster_lib.workers import progress

log = logging.getLogger(__name__)

CURVES = "curves.csv"  # in the folder of what is being trained
FIRST_LOSSES = 5  # kept with a network, so that a second training can be compared with the first after a few steps


def training_facts(settings: Optimisation, engine: Engine) -> dict[str, Any]:
    """Give those settings of a stage on which its results depend, as plain JSON for a key."""
    not_facts = {"checkpoint_iterations", "grown_from", "tuning", "tuned"}
    not_facts |= {"learned_layers"} if getattr(settings, "learned_layers", None) is None else set()
    return {**settings.model_dump(mode="json", exclude=not_facts), "engine": engine.model_dump()}


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: Optimisation, steps: int, *, batch_samples: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Build the optimiser and its schedule: linear warm-up, then a half cosine down to 0.

    Where the profile says for how large a batch its learning rate is meant, the rate grows and falls with the batch.
    Source: the cosine is FASTER's (Loshchilov and Hutter 2016).
    """
    rate = settings.learning_rate * batch_samples / (settings.learning_rate_samples or batch_samples)
    form: dict[str, Any] = {"lr": rate, "weight_decay": settings.weight_decay}
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(list(parameters), momentum=settings.momentum, **form)
    else:
        optimiser = torch.optim.AdamW(list(parameters), betas=(settings.momentum, 0.999), **form)
    warmup = max(1, round(settings.warmup_share * steps))

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        return (step + 1) / warmup if step < warmup else cosine

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


@dataclass
class Task:
    """What one training does at each step."""

    folder: Path  # of the entry that is trained; checkpoints and curves lie in it
    settings: Optimisation
    engine: Engine
    steps: int
    batch_samples: int  # in a step, of all ranks
    seed: int
    # Told the first step, and which of how many parts of a batch are wanted, it gives those of each step one by one.
    batches: Callable[[int, Sequence[int], int], Iterable[Any]]
    # Gives the scores and the classes of one part, which may be empty, on the network's device.
    compute: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
    # Is told what this rank and the others could not read in a step, and raises if that is too much.
    check: Callable[[list[Any], dict[str, str]], None] = field(default=lambda skipped, so_far: None)
    kept_losses: int = 1  # how many of the last steps
    is_shared: bool = True  # by all ranks, which show how far it is; else this one trains by itself, quietly


def run_training(network: nn.Module, task: Task) -> dict[str, Any]:
    """Train a network in place, from its last checkpoint if there is one.

    Every step's batch is shared out among the ranks, and its gradient is that of the mean over the whole batch, so that
    the number of ranks changes results by no more than rounding. On SIGTERM the state is kept and the process ends.

    Returns: the `loss` (a running mean), the `first_losses`, the `last_losses`, `training_seconds`, what was `skipped`.
    Raises: FloatingPointError if the loss, its gradient or a weight is not finite; ValueError if a batch is too small
        to share out, or no checkpoint is whole; SystemExit after SIGTERM.
    """
    (ended,) = run_trainings([(network, task)])
    if isinstance(ended, FloatingPointError):
        raise ended
    return ended


def run_trainings(trainings: Sequence[tuple[nn.Module, Task]]) -> list[dict[str, Any] | FloatingPointError]:
    """Train networks in place, all of them a step before any goes on, so that they can share what a step reads.

    Each has its own optimiser and random numbers: its weights do not depend on which others are trained beside it.

    Returns: of each what `run_training` gives, or its FloatingPointError; other errors are raised, as it raises them.
    """
    with _noting_sigterm() as came:
        states = [_Training(network, task) for network, task in trainings]
        while going := [state for state in states if state.ended is None]:
            step = min(state.progress["iteration"] for state in going)
            for state in going:
                if state.progress["iteration"] == step:
                    state.advance(came.is_set())
            if any(state.stop for state in going):
                for state in going:
                    if not isinstance(state.ended, FloatingPointError):
                        state.save()
                    log.warning("%s: SIGTERM; stopped after step %d", state.task.folder.name, step + 1)
                raise SystemExit(128 + signal.SIGTERM)
    return [state.ended for state in states]


@contextmanager
def _noting_sigterm() -> Iterator[threading.Event]:
    """Note SIGTERM, as a scheduler sends it before it takes a machine away; trainings then end after the next step."""
    is_main = threading.current_thread() is threading.main_thread()  # which alone may set a handler
    came = threading.Event()
    before = is_main and signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


class _Training:
    """The state of one training."""

    def __init__(self, network: nn.Module, task: Task):
        self.task, ranks = task, find_ranks()
        task.folder.mkdir(parents=True, exist_ok=True)
        self.rank, self.ranks = (ranks.process_index, ranks.num_processes) if task.is_shared else (0, 1)
        self.device, self.gpus = ranks.device, [ranks.device] if ranks.device.type == "cuda" else []
        if task.batch_samples < self.ranks * task.engine.accumulation:
            whole = f"a batch of {task.batch_samples} cannot be shared out to {self.ranks} processes in "
            each = f"{task.engine.accumulation} part(s) each; make the batch larger, or engine.accumulation smaller"
            raise ValueError(whole + each)
        self.network = self.wrapped = network.to(self.device).train()
        self.learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        built = build_optimiser(self.learned, task.settings, task.steps, batch_samples=task.batch_samples)
        self.optimiser, self.schedule = built
        self.progress: dict[str, Any] = {"iteration": 0, "loss": None, "first_losses": [], "last_losses": []}
        self.progress |= {"training_seconds": 0.0, "skipped": {}}
        if self.ranks > 1:
            self.network = synchronise_batch_norm(self.network)
            self.wrapped = nn.parallel.DistributedDataParallel(self.network, self.gpus or None, broadcast_buffers=False)
        self.waited, self.samples, self.drawn = 0.0, 0, time.perf_counter()  # for data, since the curves' last point
        self.stop = False  # all ranks, since one was told to
        self.ended: dict[str, Any] | FloatingPointError | None = None
        with torch.random.fork_rng(devices=self.gpus):
            torch.manual_seed(int(np.random.SeedSequence([task.seed, self.rank]).generate_state(1)[0]))
            self.random = self._random_state()
        self._begin(read_checkpoint(task.folder))

    def _begin(self, state: dict[str, Any] | None) -> None:
        """Take back the state of an interrupted training, if there is one."""
        task = self.task
        for part in ("network", "optimiser", "schedule") if state else ():
            getattr(self, part).load_state_dict(state[part])
        if state:
            self.progress |= state["progress"]
            self.random = dict(enumerate(state["random"])).get(self.rank, self.random)
        with suppress(OSError):
            if self.rank == 0:
                os.truncate(task.folder / CURVES, state["curves_bytes"] if state else 0)  # the rest comes again
        mine, first = range(self.rank, self.ranks * task.engine.accumulation, self.ranks), self.progress["iteration"]
        self.batches = iter(task.batches(first, mine, self.ranks * task.engine.accumulation))
        form = {"desc": f"train {task.folder.name.rpartition('-')[0]}", "is_shown": task.is_shared and self.rank == 0}
        self.bar = progress(initial=first, total=task.steps, unit="batch", **form)
        self._end_after_the_last()

    def advance(self, is_told_to_stop: bool) -> None:
        """Take one step, keep the state now and then, and end after the last step, or if something is not finite."""
        start, progress = time.perf_counter(), self.progress
        settings: Optimisation = self.task.settings
        try:
            with torch.random.fork_rng(devices=self.gpus):
                self._random_state(self.random)
                found = self._step(is_told_to_stop)
                self.random = self._random_state()
            progress["training_seconds"] += time.perf_counter() - start
            self._draw(found)
            self.bar.update()
            self.bar.set_postfix(loss=f"{progress['loss'] or 0:.2f}", refresh=False)
            if progress["iteration"] % settings.checkpoint_iterations == 0:
                self.save()
            self._end_after_the_last()
        except FloatingPointError as error:
            self.ended = error

    def _end_after_the_last(self) -> None:
        if self.progress["iteration"] >= self.task.steps:
            self.check_finite()
            self.bar.close()
            self.ended = {**self.progress, "training_seconds": round(self.progress["training_seconds"], 1)}

    def _step(self, is_told_to_stop: bool) -> dict[str, float]:
        """Take one step; every rank takes the same decisions from the same counts."""
        start = time.perf_counter()
        parts = [next(self.batches) for _ in range(self.task.engine.accumulation)]
        self.waited += time.perf_counter() - start
        skipped = [what for part in parts for what in getattr(part, "skipped", [])]
        counts = self._gather([len(part.targets) for part in parts] + [len(skipped), int(is_told_to_stop)])
        samples, self.stop = counts[:, :-2].sum(0), bool(counts[:, -1].any())
        if counts[:, -2].any():
            self.task.check(gather_object(skipped) if self.ranks > 1 else skipped, self.progress["skipped"])
        total, found = int(samples.sum()), {}
        if usable := [part for part, size in zip(parts, samples, strict=True) if size]:
            loss, correct = self._descend(usable, total)
            found = {"loss": loss, "accuracy": 100 * correct / total}
            self._note(loss)
        self.samples += total
        self.progress["iteration"] += 1
        self.schedule.step()
        return found

    def _descend(self, parts: Sequence[Any], total: int) -> tuple[float, float]:
        """Do one optimiser step on the parts of a batch; give its mean loss and the number of right samples."""
        self.optimiser.zero_grad(set_to_none=True)
        settings: Optimisation = self.task.settings
        is_bf16 = self.task.engine.mixed_precision == "bf16"
        share, correct = 0.0, 0.0
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1 or self.ranks == 1
            with nullcontext() if is_last else self.wrapped.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
                    logits, targets = self.task.compute(self.wrapped, part)
                    reduction = "mean" if len(targets) else "sum"
                    losses = nn.functional.cross_entropy(logits.float(), targets, reduction=reduction)
                weight = len(part.targets) / total  # 1 on one rank
                (losses * (weight * self.ranks)).backward()
            share += losses.item() * weight
            correct += (logits.argmax(-1) == targets).float().mean().item() * len(part.targets) if len(targets) else 0
        loss, correct = self._gather([share, correct], torch.float64).sum(0).tolist()
        norm = nn.utils.clip_grad_norm_(self.learned, settings.clip_gradient_norm or math.inf).item()
        for what, value in {"loss": loss, "norm of the gradient": norm}.items():
            if not math.isfinite(value):
                raise self._not_finite(f"the {what} is {value}")
        self.optimiser.step()
        return loss, correct

    def _note(self, loss: float) -> None:
        progress = self.progress
        progress["first_losses"] = [*progress["first_losses"], loss][:FIRST_LOSSES]
        progress["last_losses"] = [*progress["last_losses"], loss][-self.task.kept_losses :]
        progress["loss"] = loss if progress["loss"] is None else 0.95 * progress["loss"] + 0.05 * loss

    def _gather(self, numbers: list, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Give the numbers of all ranks: (ranks, len(numbers))."""
        own = torch.tensor([numbers], dtype=dtype)
        return own if self.ranks == 1 else gather(own.to(self.device)).cpu()

    def _random_state(self, known: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """Give, and first set, the state of every generator that a step may draw from; the data have their own."""
        generators = [torch, *([torch.cuda] if self.gpus else [])]
        for generator, state in zip(generators, known, strict=False):
            generator.set_rng_state(state)
        return [generator.get_rng_state() for generator in generators]

    def check_finite(self) -> None:
        kept = [*self.network.state_dict().values(), *(v for of in self.optimiser.state.values() for v in of.values())]
        if not all(value.isfinite().all() for value in kept if torch.is_tensor(value)):
            raise self._not_finite("a weight, or the optimiser's memory of one, is not finite")

    def _not_finite(self, what: str) -> FloatingPointError:
        return FloatingPointError(f"{what}; lower learning_rate, which is {self.task.settings.learning_rate}")

    def save(self) -> None:
        """Keep everything that the next step depends on; the state before stays, should this one be damaged later."""
        self.check_finite()
        random, folder = gather_object([self.random]) if self.ranks > 1 else [self.random], self.task.folder
        if self.rank == 0:
            state = {part: getattr(self, part).state_dict() for part in ("network", "optimiser", "schedule")}
            curves = (folder / CURVES).stat().st_size if (folder / CURVES).is_file() else 0
            state |= {"progress": self.progress, "random": random, "curves_bytes": curves}
            write_checkpoint(folder, state)
            log.info("%s: step %d of %d kept", folder.name, self.progress["iteration"], self.task.steps)
        self._gather([0])  # all wait for the file

    def _draw(self, found: dict[str, float]) -> None:
        """Add one of about 1000 points to the curves; an error of their file does not end the training."""
        step, seconds = self.progress["iteration"], time.perf_counter() - self.drawn
        if self.rank or (step % -(-self.task.steps // 1000) and step != self.task.steps):
            return
        point = {"step": step, "loss": math.nan, "accuracy": math.nan, **found}
        point |= {"learning rate": self.schedule.get_last_lr()[0], "samples per second": self.samples / seconds}
        point |= {"data wait share": self.waited / seconds, "peak memory (MiB)": peak_mib(self.device.type)}
        self.drawn, self.samples, self.waited = time.perf_counter(), 0, 0.0
        try:
            with (self.task.folder / CURVES).open("a") as file:
                file.write(("" if file.tell() else ",".join(point) + "\n") + ",".join(map(str, point.values())) + "\n")
        except OSError as error:
            log.warning("a point of the curves is lost: %s", error)
