"""One training loop for both stages, on one CPU, one GPU or many processes."""

import hashlib
import io
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
from tqdm import tqdm

from faster_lib.profile_sections import Engine, Optimisation
from faster_lib.provenance import peak_mib
from faster_lib.store import write_whole
from faster_lib.training.ranks import find_ranks, shown, synchronise_batch_norm

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # in the folder of what is being trained
BEFORE = "checkpoint.before.pt"  # the one before
CURVES = "curves.csv"  # there too
FIRST_LOSSES = 5  # kept with a network, so that a second training can be compared with the first after a few steps
POINTS = 1000  # of the curves, about


def training_facts(settings: Optimisation, engine: Engine) -> dict[str, Any]:
    """Give those settings of a stage on which its results depend, as plain JSON for a key."""
    not_facts = {"checkpoint_iterations", "grown_iterations", "grown_learning_rate"}
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
    training = _Training(network, task)
    with training.stopped_by_sigterm(), torch.random.fork_rng(devices=training.gpus):
        torch.manual_seed(int(np.random.SeedSequence([task.seed, training.rank]).generate_state(1)[0]))
        training.go_on()
        training.run()
        training.check_finite()
    return {**training.progress, "training_seconds": round(training.progress["training_seconds"], 1)}


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
        self.optimiser, self.schedule = build_optimiser(
            self.learned, task.settings, task.steps, batch_samples=task.batch_samples
        )
        self.progress: dict[str, Any] = {"iteration": 0, "loss": None, "first_losses": [], "last_losses": []}
        self.progress |= {"training_seconds": 0.0, "skipped": {}}
        if self.ranks > 1:
            self.network = synchronise_batch_norm(self.network)
            self.wrapped = nn.parallel.DistributedDataParallel(self.network, self.gpus or None, broadcast_buffers=False)
        self.waited, self.samples, self.drawn = 0.0, 0, time.perf_counter()  # for data, since the curves' last point
        self.is_told_to_stop = self.stop = False  # this rank alone, and all of them

    def run(self) -> None:
        task, progress, accumulation = self.task, self.progress, self.task.engine.accumulation
        settings: Optimisation = task.settings
        mine = [self.rank + self.ranks * part for part in range(accumulation)]
        batches = iter(task.batches(progress["iteration"], mine, self.ranks * accumulation))
        start = time.perf_counter() - progress["training_seconds"]
        form = {"unit": "batch", **shown(task.is_shared and self.rank == 0)}
        title = f"train {task.folder.name.rpartition('-')[0]}"
        with tqdm(initial=progress["iteration"], total=task.steps, desc=title, **form) as bar:
            while progress["iteration"] < task.steps:
                found = self._step(batches)
                progress["training_seconds"] = time.perf_counter() - start
                self._draw(found)
                bar.update()
                bar.set_postfix(loss=f"{progress['loss'] or 0:.2f}", refresh=False)
                if self.stop or progress["iteration"] % settings.checkpoint_iterations == 0:
                    self._save()
                if self.stop:
                    log.warning("%s: SIGTERM; stopped after step %d", task.folder.name, progress["iteration"])
                    raise SystemExit(128 + signal.SIGTERM)

    def _step(self, batches: Iterator[Any]) -> dict[str, float]:
        """Take one step; every rank takes the same decisions from the same counts."""
        start = time.perf_counter()
        parts = [next(batches) for _ in range(self.task.engine.accumulation)]
        self.waited += time.perf_counter() - start
        skipped = [what for part in parts for what in getattr(part, "skipped", [])]
        counts = self._gather([len(part.targets) for part in parts] + [len(skipped), int(self.is_told_to_stop)])
        samples, self.stop = counts[:, :-2].sum(0), bool(counts[:, -1].any())
        if counts[:, -2].any():
            self.task.check(self._gather_objects(skipped), self.progress["skipped"])
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

    def _gather_objects(self, values: list) -> list:
        return values if self.ranks == 1 else gather_object(values)

    def go_on(self) -> None:
        """Take back the state of an interrupted training; no code in its file is run."""
        if (state := read_checkpoint(self.task.folder)) is not None:
            for part in ("network", "optimiser", "schedule"):
                getattr(self, part).load_state_dict(state[part])
            self.progress |= state["progress"]
            if self.rank < len(state["random"]):
                self._random_state(state["random"][self.rank])
        with suppress(OSError):
            if self.rank == 0:
                os.truncate(self.task.folder / CURVES, state["curves_bytes"] if state else 0)  # the rest comes again

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

    def _save(self) -> None:
        """Keep everything that the next step depends on; the state before stays, should this one be damaged later."""
        self.check_finite()
        random, folder = self._gather_objects([self._random_state()]), self.task.folder
        if self.rank == 0:
            state = {part: getattr(self, part).state_dict() for part in ("network", "optimiser", "schedule")}
            curves = (folder / CURVES).stat().st_size if (folder / CURVES).is_file() else 0
            state |= {"progress": self.progress, "random": random, "curves_bytes": curves}
            torch.save(state, content := io.BytesIO())
            if (folder / CHECKPOINT).is_file():
                os.replace(folder / CHECKPOINT, folder / BEFORE)
            write_whole(folder / CHECKPOINT, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
            log.info("%s: step %d of %d kept", folder.name, self.progress["iteration"], self.task.steps)
        self._gather([0])  # all wait for the file

    @contextmanager
    def stopped_by_sigterm(self) -> Iterator[None]:
        """Let SIGTERM, as a scheduler sends it before it takes a machine away, end the training after the next step."""
        is_main = threading.current_thread() is threading.main_thread()  # which alone may set a handler
        before = is_main and signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_told_to_stop", True))
        try:
            yield
        finally:
            if is_main:
                signal.signal(signal.SIGTERM, before)

    def _draw(self, found: dict[str, float]) -> None:
        """Add a point to the curves now and then; an error of their file does not end the training."""
        step, seconds = self.progress["iteration"], time.perf_counter() - self.drawn
        if self.rank or (step % -(-self.task.steps // POINTS) and step != self.task.steps):
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


def find_checkpoints(folder: Path) -> list[Path]:
    """List what an interrupted training can go on from, the newest first."""
    return [path for path in (folder / CHECKPOINT, folder / BEFORE) if path.is_file()]


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest state of a training that is whole; each ends with its sha256; ValueError if all are damaged."""
    for number, path in enumerate(found := find_checkpoints(folder)):
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() == content[-32:]:
            if number:
                log.warning("%s is damaged; the training goes on from %s", found[0], path)
                found[0].unlink(missing_ok=True)  # lest it becomes the older one
            return torch.load(io.BytesIO(content), "cpu", weights_only=True)
    if found:
        raise ValueError(f"{found[0]} and any before it are damaged; to train from the beginning, remove {folder}")


def remove_checkpoints(folder: Path) -> None:
    """Remove what an interrupted training would have gone on from."""
    for path in find_checkpoints(folder):
        path.unlink(missing_ok=True)
