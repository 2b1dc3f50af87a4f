"""One training loop for both stages, on one CPU, one GPU or many processes, and how results are made together."""

import io
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, parse_flag_from_env
from torch import nn
from tqdm import tqdm

from faster_lib.profiles import Engine, Optimisation
from faster_lib.provenance import peak_mib
from faster_lib.store import Entry, write_whole

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # in the folder of what is being trained
FIRST_LOSSES = 5  # kept with a network, so that a second training can be compared with the first after a few steps
POINTS = 1000  # of each curve in TensorBoard, about
STOPPED = 128 + signal.SIGTERM  # the exit status of a process that ends by that signal
PATIENCE = timedelta(days=7)  # of ranks that wait for one which generates or writes


def find_ranks() -> PartialState:
    """Find out how many processes work together, which of them this is, and on which device."""
    is_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=is_cpu, timeout=PATIENCE)


def tell_all(value: Any) -> Any:
    """Give every rank the main one's value; all must call this."""
    return broadcast_object_list([value])[0] if find_ranks().num_processes > 1 else value


def complete_together(entry: Entry, make: Callable[[], dict[str, Any]]) -> None:
    """Have a result made by all ranks, unless it is there: `Entry.complete` for several processes.

    The main rank holds the entry's lock, and what its `make` gives becomes the record once all ranks have made theirs.

    Raises: what `make` raises, in its rank and at once: a rank that ends so breaks off what the others wait for.
    """
    ranks, is_made = find_ranks(), []

    def lead() -> dict[str, Any]:
        is_made.append(tell_all(True))
        measures = make()
        ranks.wait_for_everyone()  # so that no record is written after an error in another rank
        return measures

    if ranks.is_main_process:
        entry.complete(lead)
        if not is_made:
            tell_all(False)
    elif tell_all(None):
        make()
        ranks.wait_for_everyone()
    ranks.wait_for_everyone()


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


def training_facts(settings: Optimisation, engine: Engine) -> dict[str, Any]:
    """Give those settings of a stage on which its results depend, as plain JSON for a key."""
    return {**settings.model_dump(mode="json", exclude={"checkpoint_iterations"}), "engine": engine.model_dump()}


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


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Let batch norm look at the clips of all ranks, as one process with the whole batch does.

    Raises: ValueError on a CPU, where PyTorch has no such batch norm.
    """
    if next(network.parameters()).is_cpu and any(isinstance(part, nn.BatchNorm3d) for part in network.modules()):
        raise ValueError("several CPU processes cannot train batch norm together; use one process, or GPUs")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


@dataclass
class Task:
    """What one training does at each step.

    Args:
        folder: of the entry that is trained; the checkpoint lies in it.
        batches: from a step on, gives this rank's share of every step's batch, in as many parts as the engine's
            `accumulation`; it is told the first step, and which of how many parts of a batch are wanted.
        compute: the scores and the classes of one part, on the network's device; it must take a part of no samples.
        check: is told what this rank and the others could not read in a step, and raises if that is too much.
    """

    folder: Path
    settings: Optimisation
    engine: Engine
    steps: int
    batch_samples: int  # in a step, of all ranks
    seed: int
    batches: Callable[[int, Sequence[int], int], Iterable[Any]]
    compute: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
    check: Callable[[list[Any], dict[str, str]], None] = field(default=lambda skipped, so_far: None)
    kept_losses: int = 1  # how many of the last steps
    is_quiet: bool = False  # whether others show how far it is


def run_training(network: nn.Module, task: Task) -> dict[str, Any]:
    """Train a network in place, from its last checkpoint if there is one.

    Every step's batch is shared out among the ranks, and its gradient is that of the mean over the whole batch, so that
    the number of ranks changes results by no more than rounding. On SIGTERM the state is kept and the process ends.

    Returns: the `loss` (a running mean), the `first_losses`, the `last_losses`, `training_seconds`, and what was
        `skipped`.
    Raises: FloatingPointError if the loss is not finite; ValueError if a batch is too small to share out; SystemExit
        after SIGTERM.
    """
    return _Training(network, task).run()


class _Training:
    """The state of one training."""

    def __init__(self, network: nn.Module, task: Task):
        self.task, self.ranks = task, find_ranks()
        parts = self.ranks.num_processes * task.engine.accumulation
        if task.batch_samples < parts:
            raise ValueError(
                f"a batch of {task.batch_samples} cannot be shared out to {self.ranks.num_processes} processes in "
                f"{task.engine.accumulation} part(s) each; make the batch larger, or engine.accumulation smaller"
            )
        self.network = network.to(self.ranks.device).train()
        self.learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimiser, self.schedule = build_optimiser(
            self.learned, task.settings, task.steps, batch_samples=task.batch_samples
        )
        self.progress: dict[str, Any] = {"iteration": 0, "loss": None, "first_losses": [], "last_losses": []}
        self.progress |= {"training_seconds": 0.0, "skipped": {}}
        self.wrapped: nn.Module = self.network
        if self.ranks.num_processes > 1:
            self.network = synchronise_batch_norm(self.network)
            device_ids = [self.ranks.device] if self.ranks.device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(self.network, device_ids, broadcast_buffers=False)
        self.waited = 0.0  # seconds, for data, since the last point of the curves
        self.is_told_to_stop = self.stop = False  # this rank alone, and all of them

    def run(self) -> dict[str, Any]:
        task, progress, ranks = self.task, self.progress, self.ranks
        settings: Optimisation = task.settings
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._stopped_by_sigterm():
            torch.manual_seed(int(np.random.SeedSequence([task.seed, ranks.process_index]).generate_state(1)[0]))
            self._go_on()
            mine = [ranks.process_index + ranks.num_processes * m for m in range(task.engine.accumulation)]
            parts = ranks.num_processes * task.engine.accumulation
            batches = iter(task.batches(progress["iteration"], mine, parts))
            start = time.perf_counter() - progress["training_seconds"]
            quiet = (
                {"disable": True} if task.is_quiet or not ranks.is_main_process else {}
            )  # False would win over TQDM_DISABLE
            form = {"desc": f"train {task.folder.name.rpartition('-')[0]}", "unit": "batch", **quiet}
            with tqdm(initial=progress["iteration"], total=task.steps, **form) as bar, self._curves() as draw:
                while progress["iteration"] < task.steps:
                    found = self._step(batches)
                    progress["training_seconds"] = time.perf_counter() - start
                    draw(found)
                    bar.update()
                    bar.set_postfix(loss=f"{progress['loss'] or 0:.2f}", refresh=False)
                    if self.stop or progress["iteration"] % settings.checkpoint_iterations == 0:
                        self._save()
                    if self.stop:
                        log.warning("%s: SIGTERM; stopped after step %d", task.folder.name, progress["iteration"])
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
        usable = [m for m in range(len(parts)) if samples[:, m].any()]
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
        settings: Optimisation = self.task.settings
        precision = torch.autocast(
            self.ranks.device.type, torch.bfloat16, enabled=self.task.engine.mixed_precision == "bf16"
        )
        share, correct = 0.0, 0.0
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1 or self.wrapped is self.network
            with nullcontext() if is_last else self.wrapped.no_sync():
                with precision:
                    logits, targets = self.task.compute(self.wrapped, part)
                    reduction = "mean" if len(targets) else "sum"
                    losses = nn.functional.cross_entropy(logits.float(), targets, reduction=reduction)
                weight = len(part.targets) / total  # 1 on one rank
                (losses * (weight * self.ranks.num_processes)).backward()
            share += losses.item() * weight
            correct += (logits.argmax(-1) == targets).float().mean().item() * len(part.targets) if len(targets) else 0
        loss, correct = self._gather([share, correct], torch.float64).sum(0).tolist()
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
        return own if self.ranks.num_processes == 1 else gather(own.to(self.ranks.device)).cpu()

    def _go_on(self) -> None:
        """Take back the state of an interrupted training; no code in its file is run."""
        if (path := self.task.folder / CHECKPOINT).is_file():
            state = torch.load(path, "cpu", weights_only=True)
            for part in ("network", "optimiser", "schedule"):
                getattr(self, part).load_state_dict(state[part])
            self.progress |= state["progress"]
            if self.ranks.process_index < len(state["random"]):
                _set_random_state(state["random"][self.ranks.process_index], self.ranks.device)

    def _save(self) -> None:
        """Keep everything that the next step depends on; the state before is there until this one is whole."""
        random = gather_object([_random_state(self.ranks.device)])
        if self.ranks.is_main_process:
            state = {part: getattr(self, part).state_dict() for part in ("network", "optimiser", "schedule")}
            content = io.BytesIO()
            torch.save({**state, "progress": self.progress, "random": random}, content)
            self.task.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.task.folder / CHECKPOINT, content.getvalue())
            log.info("%s: step %d of %d kept", self.task.folder.name, self.progress["iteration"], self.task.steps)
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

    @contextmanager
    def _curves(self) -> Iterator[Callable[[dict[str, float]], None]]:
        """Give what writes TensorBoard's curves, a point now and then, to runs/<profile>/tensorboard/<entry>."""
        if not self.ranks.is_main_process:
            yield lambda found: None
            return
        from torch.utils.tensorboard import SummaryWriter  # here, since nothing else needs it

        every, since = -(-self.task.steps // POINTS), {"time": time.perf_counter(), "samples": 0.0}

        def draw(found: dict[str, float]) -> None:
            since["samples"] += found.pop("samples")
            step, seconds = self.progress["iteration"], time.perf_counter() - since["time"]
            if step % every == 0 or step == self.task.steps:
                found |= {"samples per second": since["samples"] / seconds, "data wait share": self.waited / seconds}
                found["learning rate"] = self.schedule.get_last_lr()[0]
                for name, value in {**found, "peak memory (MiB)": peak_mib(self.ranks.device.type)}.items():
                    writer.add_scalar(name, value, step)
                since.update(time=time.perf_counter(), samples=0.0)
                self.waited = 0.0

        with SummaryWriter(str(self.task.folder.parents[1] / "tensorboard" / self.task.folder.name)) as writer:
            yield draw


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Give the state of every generator that a step may draw from; the data have their own."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
