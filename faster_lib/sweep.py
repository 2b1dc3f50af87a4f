"""All of Table 4 in one command: networks, features and cells as jobs, over processes, GPUs or the nodes of SLURM."""

import argparse
import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import pandas as pd
import submitit
import torch
from submitit.helpers import Checkpointable
from tqdm import tqdm

from faster_lib.models.faster import Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.report.tables import NAMES, check_ratios, check_whole_numbers, ratio_name
from faster_lib.store import Entry
from faster_lib.training.evaluation import PRETRAINING_SPLIT, Cell, aggregator_entry, list_runs, measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import backbone_entry, train_backbone

log = logging.getLogger(__name__)

_WARNING = signal.SIGUSR2  # that submitit has SLURM send some time before a job is stopped
_SLURM_JOBS = 16  # at once, unless --workers says otherwise
_MOST_TIMEOUTS = 1000  # after which a job on SLURM is not queued again
_NO_LIMIT_MINUTES = 60 * 24 * 365  # of a job on this machine


class Study(NamedTuple):
    """What a sweep makes: for each L the cells of Table 4's ratios 1:x, with each seed of stage 2."""

    profile: Profile
    schedules: Mapping[int, Mapping[int, Schedule]]  # for each L, that of each x
    seeds: Sequence[int]
    split: str = "test"
    runs: Path = RUNS

    @property
    def networks(self) -> list[str]:
        """The names of its clip networks, the slow one first."""
        return list(dict.fromkeys((self.profile.networks.expensive, self.profile.networks.cheap)))

    def is_trained(self, name: str, clip_frames: int) -> bool:
        """Whether a network is there, or comes with the repository."""
        entry = backbone_entry(self.profile, name, clip_frames, runs=self.runs)
        return entry.is_complete or entry.shipped() is not None

    def load_pair(self, clip_frames: int) -> FeaturePair:
        """Load the networks for one L; those that are missing are trained."""
        names = (self.profile.networks.expensive, self.profile.networks.cheap)
        loaded = (train_backbone(self.profile, name, clip_frames, runs=self.runs) for name in names)
        return FeaturePair(self.profile, *loaded, runs=self.runs)

    def entries(self, pair: FeaturePair) -> dict[tuple[Cell, int], Entry]:
        """Name the places of all cells and seeds for one L; averaging has one seed, since it learns nothing."""
        wanted = list_runs(_cells_of(self.schedules[pair.expensive.clip_frames]), self.seeds)
        return {(cell, seed): aggregator_entry(pair, *cell, seed, self.split) for cell, seed in wanted}

    def with_workers(self, most: int | None) -> "Study":
        """Give the same study with at most so many loading processes, on which no result depends."""
        loading = self.profile.loading
        loading = loading.model_copy(update={"workers": min(loading.workers, most or loading.workers)})
        return self._replace(profile=self.profile.model_copy(update={"loading": loading}))


class Part(NamedTuple):
    """What one job does: a function of this module and its arguments, the first of which is the study."""

    title: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]


class Failure(NamedTuple):
    """A part that was not made, and where its job wrote why."""

    title: str
    reason: str
    log: Path


class Job(Checkpointable):
    """Makes a part in a process of its own; where SLURM stops it, it is queued again and goes on from the store."""

    def __call__(self, work: Callable[..., None], arguments: tuple[Any, ...], threads: int | None) -> None:
        """Do the work, with so many threads of PyTorch, or with its own choice."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if threads:
            torch.set_num_threads(threads)
        queue_again, ignore = signal.getsignal(_WARNING), signal.getsignal(signal.SIGTERM)  # both submitit's
        is_warned = []

        def stop(number: int, frame: Any) -> None:
            if signal.getsignal(signal.SIGTERM) == ignore:  # no training that would keep its state first
                queue_again(number, frame)
            is_warned.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(_WARNING, stop)
        try:
            work(*arguments)
        except SystemExit:
            if not is_warned:
                raise
            queue_again(_WARNING, None)


class Pool:
    """Runs jobs, a number of them at a time: here, each with its share of the cores or a GPU of its own, or by SLURM.

    Args:
        folder: for what the jobs log; a new one is made in it.
        workers: jobs at a time; None for as many as there are GPUs, or else cores.
        partition: of SLURM, where each job asks for one GPU; None runs them here.
        hours: that a job on SLURM may take before it is queued again.
    """

    def __init__(self, folder: Path, *, workers: int | None = None, partition: str | None = None, hours: float = 24):
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self.folder, self.partition, self.hours = folder / time.strftime("%Y%m%d-%H%M%S"), partition, hours
        self.gpus = [] if partition else _gpus()
        self.workers = workers or (_SLURM_JOBS if partition else len(self.gpus) or os.cpu_count())
        if self.gpus and self.workers > len(self.gpus):
            raise ValueError(f"workers is {self.workers}, but there are {len(self.gpus)} GPUs, one for each")

    def share(self, jobs: int) -> int | None:
        """Give the cores of each of so many jobs here; None on GPUs and SLURM's nodes, where the profile says."""
        return None if self.gpus or self.partition else max(1, os.cpu_count() // max(1, min(jobs, self.workers)))

    def run(self, title: str, parts: Sequence[Part]) -> list[Failure]:
        """Run all parts and give those that failed, each logged when it did; the others go on."""
        waiting, running, failures = list(parts), {}, []
        with tqdm(total=len(parts), desc=title, unit="job") as bar:
            while waiting or running:
                for slot in set(range(self.workers)) - set(running):
                    if waiting:
                        part = waiting.pop(0)
                        running[slot] = part, self._submit(part, slot)
                time.sleep(0.2)
                for slot, (part, job) in [(slot, each) for slot, each in running.items() if each[1].done()]:
                    del running[slot]
                    bar.update()
                    if (failure := _failure(part, job)) is not None:
                        log.warning("%s failed: %s; its log: %s", *failure)
                        failures.append(failure)
        return failures

    def _submit(self, part: Part, slot: int) -> submitit.Job:
        if self.partition is None:
            executor = submitit.LocalExecutor(self.folder)
            gpus = {"gpus_per_node": 1, "visible_gpus": (self.gpus[slot],)} if self.gpus else {}
            executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES, **gpus)
        else:
            executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS)
            workers = part.arguments[0].profile.loading.workers
            limits = {"timeout_min": round(60 * self.hours), "gpus_per_node": 1, "cpus_per_task": workers + 1}
            executor.update_parameters(name="faster", slurm_partition=self.partition, **limits)
        return executor.submit(Job(), part.work, part.arguments, self.share(self.workers))


def _gpus() -> list[int]:
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [int(number) for number in visible.split(",")][:count] if visible and count else list(range(count))


def _failure(part: Part, job: submitit.Job) -> Failure | None:
    if isinstance(job, submitit.LocalJob) and not job.paths.result_pickle.exists():  # for which submitit would wait
        return Failure(part.title, "its process ended without a result, as if killed", job.paths.stderr)
    if job.exception() is None:
        return None
    lines = (job.stderr() or "it wrote nothing").strip().splitlines()
    return Failure(part.title, lines[-1], job.paths.stderr)


def sweep(study: Study, pool: Pool) -> tuple[pd.DataFrame, list[Failure]]:
    """Make what is missing of Table 4, and give it with what failed: networks, then features, then cells and seeds.

    The profile that the study's is pre-trained in comes first. Another call goes on with what failed; no job is begun
    for what is there.
    """
    if study.profile.pretraining is not None:
        before = load_profile(study.profile.pretraining.profile)
        _, failures = sweep(study._replace(profile=before, split=PRETRAINING_SPLIT), pool)
        if failures:  # from which this profile's networks would go on
            return pd.DataFrame(), failures
    wanted = [(name, L) for name in study.networks for L in study.schedules]
    title = study.profile.name
    parts = [
        Part(f"{title}: {name}, L = {L}", _train, (study, name, L))
        for name, L in wanted
        if not study.is_trained(name, L)
    ]
    failures = pool.run("networks", parts)
    whole = [L for L in study.schedules if all(study.is_trained(name, L) for name in study.networks)]
    pairs = {L: study.load_pair(L) for L in whole}
    failures += _measure_missing(study, pairs, pool)
    return _as_table(study, pairs), failures


def _measure_missing(study: Study, pairs: Mapping[int, FeaturePair], pool: Pool) -> list[Failure]:
    missing = {}  # for each L, the cells and seeds that are
    for L, pair in pairs.items():
        if left := [run for run, entry in study.entries(pair).items() if not entry.is_complete]:
            missing[L] = left
    lean, title = study.with_workers(pool.share(len(missing))), study.profile.name
    parts = {
        L: Part(f"{title}: features, L = {L}", _prepare, (lean, L, [cell for cell, _ in left if cell[0] == "avg_pool"]))
        for L, left in missing.items()
    }
    failures = pool.run("features and averages", list(parts.values()))
    failed = {failure.title for failure in failures}
    lean = study.with_workers(pool.share(pool.workers))
    cells = [
        Part(f"{title}: {cell[0]} on {cell[1]}, L = {L}, seed {seed}", _measure, (lean, L, cell, seed))
        for L, left in missing.items()
        for cell, seed in left
        if cell[0] != "avg_pool" and parts[L].title not in failed
    ]
    return failures + pool.run("cells", cells)


def _train(study: Study, name: str, clip_frames: int) -> None:
    train_backbone(study.profile, name, clip_frames, runs=study.runs)


def _prepare(study: Study, clip_frames: int, averages: Sequence[Cell]) -> None:
    pair = study.load_pair(clip_frames)
    pair.prepare("train", study.split)
    measure_all(pair, averages, seeds=[0], split=study.split)


def _measure(study: Study, clip_frames: int, cell: Cell, seed: int) -> None:
    measure_all(study.load_pair(clip_frames), [cell], seeds=[seed], split=study.split)


def _as_table(study: Study, pairs: Mapping[int, FeaturePair]) -> pd.DataFrame:
    """Give video@1 in percent for each L: mean, standard deviation and number of the seeds that are there."""
    columns = {}
    for L, pair in pairs.items():
        scores: dict[Cell, list[float]] = {}
        for (cell, _), entry in study.entries(pair).items():
            if entry.is_complete:
                scores.setdefault(cell, []).append(entry.record["measures"]["video@1"])
        names = {schedule: ratio_name(x) for x, schedule in study.schedules[L].items()}
        columns[f"L = {L}"] = {
            f"{NAMES[name]}, {names.get(schedule, 'All ' + schedule[0])}": _mean_and_spread(values)
            for (name, schedule), values in scores.items()
        }
    rows = sorted(
        dict.fromkeys(row for column in columns.values() for row in column), key=lambda row: row.split(",")[0]
    )
    return pd.DataFrame(columns, index=rows).fillna("")


def _cells_of(schedules: Mapping[int, Schedule]) -> list[Cell]:
    num_clips = len(next(iter(schedules.values())))
    mixes = [(name, schedule) for schedule in schedules.values() for name in ("avg_pool", "fast_gru")]
    return list(dict.fromkeys([*mixes, *(("avg_pool", Schedule(letter * num_clips)) for letter in "EC")]))


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def plan(profile: Profile, lengths: Sequence[int], ratios: Sequence[int]) -> dict[int, dict[int, Schedule]]:
    """Give, for each L, the schedules of those ratios 1:x that divide its N clips; of Table 4's where none is named.

    Raises: ValueError if L does not fit the profile, or a ratio fits no L.
    """
    lengths = check_whole_numbers("lengths", lengths, least=8)
    clips = {L: len(next(iter(check_ratios([], L, profile).values()))) for L in lengths}
    fitting = {L: [x for x in ratios if not N % (1 + x)] for L, N in clips.items()}
    if lost := set(ratios) - {x for each in fitting.values() for x in each}:
        raise ValueError(f"ratios is {list(ratios)}; 1:{min(lost)} divides the clips of no L in {list(lengths)}")
    return {L: check_ratios(each, L, profile) for L, each in fitting.items() if each or not ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure all of Table 4, side by side; what is there is not made again."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.sweep", description=main.__doc__)
    parser.add_argument("--profile", default="tiny", help="a file in params/")
    parser.add_argument("-L", type=int, nargs="+", default=[8, 16, 32], help="frames per clip")
    parser.add_argument("--ratios", type=int, nargs="+", default=[], help="x of 1:x; those of Table 4 unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of stage 2")
    parser.add_argument("--split", default="test", help="that is measured; val for Kinetics, whose test has no labels")
    parser.add_argument("--workers", type=int, help="jobs at a time; as many as GPUs or cores, or 16 on SLURM")
    parser.add_argument("--slurm-partition", help="where each job gets one GPU; without it jobs run on this machine")
    parser.add_argument("--hours", type=float, default=24, help="of a job on SLURM before it is queued again")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        profile = load_profile(given.profile)
        study = Study(
            profile,
            plan(profile, given.L, given.ratios),
            check_whole_numbers("seeds", given.seeds, least=0),
            given.split,
        )
        pool = Pool(RUNS / "sweep", workers=given.workers, partition=given.slurm_partition, hours=given.hours)
    except ValueError as error:
        parser.error(str(error))
    table, failures = sweep(study, pool)
    log.info("video@1 in percent, %s, profile %s\n%s", given.split, profile.name, table.to_string())
    for failure in failures:
        log.error("%s failed: %s; its log: %s", *failure)
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":  # under the module's own name, by which a job's process finds its work
    importlib.import_module("faster_lib.sweep").main()
