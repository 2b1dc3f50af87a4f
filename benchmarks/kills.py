"""Kill the whole pipeline at random moments, start it again each time, and compare the end with an undisturbed run.

    .venv/bin/python -m benchmarks.kills --kills 50 --damages 60 --seed 0 --profile smoke FOLDER

After the kills, files of finished and of interrupted runs are damaged, one at a time. The next start must mend it to
the same bits, or end with an error that names it.

Every start is a fork of this process, which has imported everything and run nothing, so that it costs no import, and
leads a process group of its own. SIGKILL goes to the whole group, worker processes included, or, in one of four or five
cases, to the main process alone, as from a system that is out of memory: then its workers may outlive it for a while.
"""

import argparse
import csv
import itertools
import json
import logging
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import sklearn.metrics  # noqa: F401  here, since every start needs it
import torch

from faster_lib.data.datasets import VideoList
from faster_lib.data.index import load_videos
from faster_lib.models.faster import Schedule
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import write_whole
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import train_backbone
from workflow.index import index_videos

log = logging.getLogger(__name__)

L = 8
CELLS = [("avg_pool", Schedule.ratio(8, 3)), *(("fast_gru", Schedule.ratio(8, ratio)) for ratio in (1, 3, 7))]
SEEDS = (0, 1, 2)
MADE = "made"  # the profile whose generated videos are the real ones of the profile that is trained
STAGES = {  # where below runs/ lies what each makes
    "generation": f"{MADE}/videos",
    "scan": "*/index*.csv",
    "stage_1": "*/networks",
    "extraction": "*/features",
    "stage_2": "*/aggregators",
}
DAMAGED = {  # what is damaged, by where it lies below runs/; the last three while stage 1 is interrupted
    "weights of a network": "*/networks/*/weights.safetensors",
    "weights of an aggregator": "*/aggregators/*/weights.safetensors",
    "record of a network": "*/networks/*/record.json",
    "record of an aggregator": "*/aggregators/*/record.json",
    "record of features": "*/features/*/record.json",
    "record of videos": "*/videos/*/record.json",
    "shard": "*/features/*/shard_*",
    "index of generated videos": "*/videos/*/index.csv",
    "generated video": "*/videos/*/*.mp4",
    "curves": "*/*/*/curves.csv",
    "begun.json": "*/networks/*/begun.json",
    "checkpoint": "*/networks/*/checkpoint.pt",
    "older checkpoint": "*/networks/*/checkpoint.before.pt",
}
HOW = ("a flipped bit", "cut", "zeros", "empty")
ALONE = 0.25  # the share of kills that hit the main process alone
LATEST_SECONDS = 1800.0  # for a start to end in, when nothing kills it
Moments = dict[str, list[float]]  # of each stage of an undisturbed run: when its files changed, from its beginning


def cut_down(profile: Profile, workers: int) -> Profile:
    """Give the profile that is killed: few videos, frequent checkpoints, small shards."""
    changed = {
        "scene": {"videos": {"train": 32, "test": 16}},
        "backbone_training": {"split": "train", "iterations": 24, "checkpoint_iterations": 2},
        "loading": {"workers": workers, "shard_videos": 4},
    }
    parts = {name: getattr(profile, name).model_copy(update=values) for name, values in changed.items()}
    return profile.model_copy(update=parts)


def run_pipeline(profile: Profile, runs: Path, enter: Callable[[str], None]) -> None:
    """Run all five stages, each of which goes on from what is there, and write the table of measures."""
    torch.set_num_threads(1)
    enter("generation")
    generated = profile.model_copy(update={"name": MADE})
    splits = {split: load_videos(generated, split, runs=runs) for split in ("train", "test")}
    enter("scan")
    root = runs / MADE / "videos"
    annotate(splits, root)
    data = profile.data.model_copy(update={"source": "annotated", "root": str(root)})
    profile = profile.model_copy(update={"data": data, "scene": None})
    index_videos(profile, runs=runs)
    enter("stage_1")
    names = (profile.networks.expensive, profile.networks.cheap)
    networks = [train_backbone(profile, name, L, runs=runs, may_be_shipped=False) for name in names]
    enter("extraction")
    pair = FeaturePair(profile, *networks, runs=runs)
    for split in ("train", "test"):
        pair.open(split)
    enter("stage_2")
    table = measure_all(pair, CELLS, seeds=SEEDS, split="test")
    lines = [
        {"aggregator": name, "schedule": str(schedule), **_without_times(asdict(run))}
        for (name, schedule), found in table.items()
        for run in found
    ]
    (runs / "table.json").write_text(json.dumps(lines, indent=1))


def annotate(splits: Mapping[str, VideoList], root: Path) -> None:
    """Write `annotations.csv`, by which generated videos are indexed as real ones."""
    lines = ["path,label,split"]
    for split, found in splits.items():
        lines += [f"{v.path.relative_to(root)},{found.classes[v.target]},{split}" for v in found.videos]
    write_whole(root / "annotations.csv", "\n".join(lines).encode())


class Start(NamedTuple):
    """One start of the pipeline in a process group of its own."""

    pid: int
    place: mmap.mmap  # one byte, shared: the number of the stage, or 255

    @property
    def stage(self) -> str | None:
        """Which stage it is in; None before the first."""
        return None if self.place[0] == 255 else list(STAGES)[self.place[0]]


def start(profile: Profile, runs: Path, output: Path) -> Start:
    """Fork a process that runs the pipeline."""
    place = mmap.mmap(-1, 1)
    place[0] = 255
    if pid := os.fork():
        return Start(pid, place)
    status = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        run_pipeline(profile, runs, lambda stage: place.__setitem__(0, list(STAGES).index(stage)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Kill(NamedTuple):
    """Where a start was killed, and how."""

    stage: str
    is_alone: bool
    seconds: float  # from the beginning of the stage


def watch(
    running: Start, runs: Path, draw: Callable[[str], tuple[int, float] | None], *, is_alone: bool = False
) -> tuple[Kill | None, Moments]:
    """Wait until a start ends by itself, or kill it when its time has come.

    Args:
        is_alone: whether to kill the main process alone.
        draw: says for a stage after how many changes of its files, and how many seconds after that, to kill; or None.
    Returns: the kill, None if it ended by itself, and when the files changed.
    """
    moments: Moments = defaultdict(list)
    began = stage = due = after = None
    seen: dict[Path, Any] = {}
    latest = time.monotonic() + LATEST_SECONDS
    while (ended := os.waitpid(running.pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > latest:
            end_group(running.pid)
            raise TimeoutError(f"a start did not end within {LATEST_SECONDS:.0f} s; it is in {stage}")
        if (now := running.stage) != stage:
            stage, began, due, after = now, time.monotonic(), None, draw(now)
            seen = look_at(runs, stage)
        elif stage is not None:
            before, seen = seen, look_at(runs, stage)
            changes = sum(before.get(path) != what for path, what in seen.items())
            moments[stage] += [time.monotonic() - began] * changes
        if after is not None and due is None and len(moments[stage]) >= after[0]:
            due = time.monotonic() + after[1]
        if due is not None and time.monotonic() >= due:
            (os.kill if is_alone else os.killpg)(running.pid, signal.SIGKILL)
            os.waitpid(running.pid, 0)
            if not is_alone:
                end_group(running.pid)
            return Kill(stage, is_alone, time.monotonic() - began), moments
        time.sleep(0.01)
    end_group(running.pid)
    if ended[1]:
        said = (runs.parent / "output.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"a start ended with the status {os.waitstatus_to_exitcode(ended[1])}; it printed:\n{said}")
    return None, moments


def look_at(runs: Path, stage: str | None) -> dict[Path, Any]:
    """Give time and size of every file of a stage, but for locks."""
    found = {}
    for path in (path for top in runs.glob(STAGES.get(stage, "none")) for path in (top, *top.rglob("*"))):
        if path.suffix != ".lock":
            try:
                stat = path.stat()
            except FileNotFoundError:  # renamed meanwhile
                continue
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return {path: what for path, what in found.items() if not path.is_dir()}


def end_group(pid: int) -> None:
    """Kill what is left of a process group, wait until it is gone, and remove what joblib left in its name."""
    with suppress(ProcessLookupError):
        for _ in range(1000):
            os.killpg(pid, signal.SIGKILL)
            time.sleep(0.01)
    for semaphore in Path("/dev/shm").glob(f"sem.loky-{pid}-*"):
        semaphore.unlink(missing_ok=True)


def finished(runs: Path) -> dict[str, Any]:
    """Say what is complete: by name the time and size of files, the rows of the index, iterations of checkpoints.

    Videos and shards are complete each by itself, all else with the record of its entry.
    Raises: what reading a checkpoint or a record that is not whole raises.
    """
    found: dict[str, Any] = {}
    for path in sorted(runs.glob("*/*/*/**/*")):
        if path.is_dir() or path.suffix in (".partial", ".lock") or path.name == "verified.json":
            continue
        entry = runs.joinpath(*path.relative_to(runs).parts[:3])
        is_part = path.suffix == ".mp4" or path.name.startswith("shard_")
        if path.name.startswith("checkpoint"):
            name, state = f"{entry.name}: iteration", torch.load(path, weights_only=True)
            found[name] = max(found.get(name, 0), state["progress"]["iteration"])
        elif is_part or (entry / "record.json").is_file():
            found[str(path.relative_to(runs))] = (path.stat().st_mtime_ns, path.stat().st_size)
        if path.name == "record.json":
            json.loads(path.read_text())
            if entry.parent.name == "networks":
                found[f"{entry.name}: iteration"] = float("inf")
    for table in runs.glob("*/index.scan.csv"):
        whole = table.read_bytes().rpartition(b"\n")[0].decode().splitlines()
        found |= {f"index: {line.split(',')[0]}": line for line in whole}
    return found


def list_lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what was complete and is gone, was made again, or has gone back."""
    return [
        name
        for name, what in before.items()
        if (after.get(name, 0) < what if name.endswith(": iteration") else after.get(name) != what)
    ]


def list_differences(reference: Path, runs: Path, *, is_whole: bool) -> dict[str, list[str]]:
    """Compare two folders of results by content, times aside; give by stage the files that are not the same.

    Args:
        is_whole: whether all files must be there and no other; else those that are there are compared, but for
            checkpoints and what a scan remembers.
    """
    wanted, found = _contents(reference), _contents(runs)
    names = set(wanted) ^ set(found) if is_whole else set()
    both = {name for name in set(wanted) & set(found) if wanted[name] != found[name]}
    names |= both if is_whole else {name for name in both if not name.endswith("index.scan.csv")}
    by_stage = defaultdict(list)
    for name in sorted(names):
        path = PurePath(name)
        is_of = (stage for stage, top in STAGES.items() if any(p.match(top) for p in (path, *path.parents)))
        by_stage[next(is_of, "stage_2")].append(name)
    return by_stage


def _contents(runs: Path) -> dict[str, Any]:
    found = {}
    for path in runs.rglob("*"):
        if path.is_dir() or path.suffix == ".lock" or path.name in ("curves.csv", "verified.json"):
            continue
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # a process that outlived the main one has just finished it
            continue
        if path.name == "record.json":
            record = json.loads(content)
            content = [record["depends"], _without_times(record["measures"])]
        elif path.name == "index.scan.csv":  # the last row of each file; a time, and a checksum over it, aside
            content = {line[0]: line[2:-1] for line in csv.reader(content.decode().splitlines())}
        found[str(path.relative_to(runs))] = content
    return found


def _without_times(measures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in measures.items() if "seconds" not in key}


def damage(path: Path, how: str) -> None:
    """Damage a file at a random place; it is another one afterwards."""
    before = path.read_bytes()
    place = random.randrange(len(before))
    after = {
        "a flipped bit": before[:place] + bytes([before[place] ^ 1 << random.randrange(8)]) + before[place + 1 :],
        "cut": before[:place],
        "zeros": before[: place // 2] + bytes(len(before) - place // 2),
        "empty": b"",
    }[how]
    assert after != before
    path.write_bytes(after)


class Trial:
    """Rounds of the pipeline that are killed until every stage has had its kills."""

    def __init__(self, profile: Profile, folder: Path, kills: int, stages: Sequence[str]):
        self.profile, self.folder, self.runs = profile, folder, folder / "runs"
        self.reference, self.kills = folder / "undisturbed", []
        self.left = {stage: kills // len(stages) + (n < kills % len(stages)) for n, stage in enumerate(stages)}
        self.quota, self.faults = dict(self.left), defaultdict(list)
        self.half_written, self.moments = Counter(), {}

    def start(self) -> Start:
        """Start the pipeline, where the results of all rounds lie while they are made."""
        return start(self.profile, self.runs, self.folder / "output.txt")

    def run_undisturbed(self) -> None:
        """Make what every round must end in, and see when its files change."""
        began = time.monotonic()
        _, self.moments = watch(self.start(), self.runs, lambda stage: None)
        self.runs.rename(self.reference)
        changes = ", ".join(f"{stage} {len(times)} in {times[-1]:.1f} s" for stage, times in self.moments.items())
        log.info("undisturbed: %.0f s; changes of files: %s", time.monotonic() - began, changes)

    def draw(self, stage: str | None) -> tuple[int, float] | None:
        """Draw the moment of a kill: after so many changes of the stage's files, somewhere before the next."""
        if not self.left.get(stage):
            return None
        times = [0.0, *self.moments[stage]]
        number = random.randrange(max(2, len(times) // self.quota[stage]) + 1)
        number = min(number, len(times) - 2)
        return number, random.uniform(0, max(times[number + 1] - times[number], 0.02))

    def run_round(self, number: int) -> None:
        """Kill and start until it ends by itself, then compare everything.

        What comes before the first stage with kills is taken over from the undisturbed run.
        """
        for stage in itertools.takewhile(lambda stage: stage not in self.quota, STAGES):
            for top in self.reference.glob(STAGES[stage]):
                target = self.runs / top.relative_to(self.reference)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if top.is_dir() else shutil.copy2)(top, target)
        known: dict[str, Any] = {}
        lingering = None  # the start whose main process alone was killed before
        while True:
            running = self.start()
            # Not twice in turn: workers of two starts that both live on may make the same files one after the other.
            is_alone = lingering is None and random.random() < ALONE
            found, _ = watch(running, self.runs, self.draw, is_alone=is_alone)
            if lingering is not None:
                end_group(lingering)
            lingering = running.pid if is_alone and found else None
            if found is None:
                break
            self.left[found.stage] -= 1
            self.kills.append(found)
            self.half_written[found.stage] += any(self.runs.rglob(".*.partial"))
            known = self._check(found.stage, known)
            how = "main process alone" if found.is_alone else "whole group"
            log.info("kill %d: %s, %.1f s after its beginning, %s", len(self.kills), found.stage, found.seconds, how)
        self._check("stage_2", known)
        for stage, names in list_differences(self.reference, self.runs, is_whole=True).items():
            self.faults[stage] += [f"round {number}, at the end: {name}" for name in names]
        self.runs.rename(self.folder / f"round_{number}")

    def interrupt(self) -> None:
        """Make a run that was killed in stage 1 after two checkpoints of a network."""
        for top in (self.reference / MADE, *self.reference.glob("*/index*.csv")):
            target = self.runs / top.relative_to(self.reference)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if top.is_dir() else shutil.copy2)(top, target)
        while len(list(self.runs.glob("*/networks/*/checkpoint*.pt"))) < 2:
            running = self.start()
            while len(list(self.runs.glob("*/networks/*/checkpoint*.pt"))) < 2:
                assert os.waitpid(running.pid, os.WNOHANG) == (0, 0), "it ended before"
                time.sleep(0.01)
            os.killpg(running.pid, signal.SIGKILL)
            os.waitpid(running.pid, 0)
            end_group(running.pid)
        self.runs.rename(self.folder / "interrupted")

    def run_damages(self, count: int) -> list[dict[str, str]]:
        """Damage a file of each kind in turn and start; say of each whether it was mended or refused, or is a fault."""
        rows, output = [], self.folder / "output.txt"
        for number in range(count):
            kind, how = list(DAMAGED)[number % len(DAMAGED)], random.choice(HOW)
            base = self.reference if list(self.reference.glob(DAMAGED[kind])) else self.folder / "interrupted"
            if not base.is_dir():
                self.interrupt()
            shutil.copytree(base, self.runs)
            path = random.choice(sorted(self.runs.glob(DAMAGED[kind])))
            damage(path, how)
            output.unlink(missing_ok=True)
            try:
                watch(self.start(), self.runs, lambda stage: None)
                wrong = list_differences(self.reference, self.runs, is_whole=True)
                outcome = f"fault: {dict(wrong)}" if wrong else "mended"
            except RuntimeError:
                said = output.read_text(errors="replace").splitlines()[-1]
                outcome = "refused" if str(path) in said and "remove" in said else f"fault: {said}"
            rows.append({"file": kind, "damage": how, "outcome": outcome})
            log.info("damage %d: %s, %s: %s", number + 1, kind, how, outcome)
            shutil.rmtree(self.runs)
        return rows

    def _check(self, stage: str, known: dict[str, Any]) -> dict[str, Any]:
        """Note what a kill, or the start before it, has lost; give what is complete now."""
        now = finished(self.runs)
        self.faults[stage] += [f"kill {len(self.kills)}: lost or made again: {name}" for name in list_lost(known, now)]
        for names in list_differences(self.reference, self.runs, is_whole=False).values():
            wrong = [name for name in names if ".partial" not in name and "/checkpoint" not in name]
            self.faults[stage] += [f"kill {len(self.kills)}: differs: {name}" for name in wrong]
        return now

    def table(self) -> list[dict[str, Any]]:
        """Tell, stage by stage, how often it was killed and whether all came out the same."""
        return [
            {
                "stage": stage,
                "kills": sum(kill.stage == stage for kill in self.kills),
                "main process alone": sum(kill.stage == stage and kill.is_alone for kill in self.kills),
                "in the midst of a write": self.half_written[stage],
                "faults": len(self.faults[stage]),
                "identical": "no" if self.faults[stage] else "yes",
            }
            for stage in STAGES
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill the pipeline at random moments, and say whether anything was lost."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="for the results of all runs; must be empty or not there")
    parser.add_argument("--kills", type=int, default=50, help="over all stages")
    parser.add_argument("--damages", type=int, default=0, help="files that are damaged, one at a time")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="in which to kill")
    parser.add_argument("--profile", default="smoke", help="a file in params/ of generated videos")
    parser.add_argument("--workers", type=int, default=2, help="processes, as loading.workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = given.folder.resolve()
    if folder.is_dir() and any(folder.iterdir()):
        parser.error(f"{given.folder} is not empty; name a folder that is, or is not there yet")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="kills-")  # a short path, since sockets lie there: Unix takes 108 characters
    os.environ |= {"TMPDIR": str(scratch), "JOBLIB_TEMP_FOLDER": str(scratch)}  # killed processes leave things there
    random.seed(given.seed)
    began, number = time.monotonic(), 0
    trial = Trial(cut_down(load_profile(given.profile), given.workers), folder, given.kills, given.stages)
    trial.run_undisturbed()
    while any(trial.left.values()):
        number += 1
        trial.run_round(number)
    damages = trial.run_damages(given.damages)
    shutil.rmtree(scratch, ignore_errors=True)
    rows = trial.table()
    for name, table in (("kills", rows), ("damages", damages)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0] if table else [])
            writer.writeheader()
            writer.writerows(table)
    log.info("%d kills in %d rounds, %.0f s", len(trial.kills), number, time.monotonic() - began)
    for row in rows:
        log.info("%s", ", ".join(f"{key}: {value}" for key, value in row.items()))
    for fault in (fault for found in trial.faults.values() for fault in found):
        log.error("%s", fault)
    return int(any(trial.faults.values()) or any(row["outcome"].startswith("fault") for row in damages))


if __name__ == "__main__":
    sys.exit(main())
