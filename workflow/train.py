"""The command line of training: one clip network, the features of a split, or some aggregators in one pass."""

import argparse
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from faster_lib.models.faster import Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import load_profile
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.ranks import find_ranks
from faster_lib.training.stage1 import train_backbone

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # after SIGTERM or SIGINT: enough for a step and a checkpoint, less than launchers give


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one clip network, compute a split's features, or train aggregators; results in runs/ are reused.

    Under `accelerate launch` all processes do it together.
    """
    given = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    with ended_by_signals():
        _run(given)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """See that SIGTERM and SIGINT end this process, whatever it waits for, and that a second one ends it at once.

    Python tells its handlers of a signal only between two steps of its own; of a byte in a socket it tells at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    came = []

    def watch() -> None:
        with ours:
            if first := ours.recv(1):  # nothing, at the end of the block
                came.append(first)
                ours.settimeout(GRACE_SECONDS)
                with suppress(TimeoutError):
                    ours.recv(1)
                os._exit(128 + first[0])

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        yield
    finally:
        if not came:
            signal.set_wakeup_fd(before)
            theirs.close()


def _run(given: argparse.Namespace) -> None:
    runs = given.anew.resolve() if given.anew else RUNS
    profile = load_profile(given.profile)
    profile = profile if given.fold is None else profile.in_fold(given.fold)
    if given.stage == "backbone":
        train_backbone(profile, given.backbone, given.L, runs=runs, may_be_shipped=given.anew is None)
        return
    names = (profile.networks.expensive, profile.networks.cheap)
    pair = FeaturePair(profile, *(train_backbone(profile, name, given.L, runs=runs) for name in names), runs=runs)
    if given.stage == "features":
        pair.open(given.split)
        return
    N = pair.num_clips
    schedules = [Schedule("C" * N) if x == "C" else Schedule.ratio(N, int(x)) for x in given.ratio]
    cells = list(itertools.product(given.aggregator, schedules))
    measured = measure_all(pair, cells, seeds=given.seed, split=given.split, anew=True)
    if find_ranks().is_main_process:
        for cell, found in measured.items():
            log.info("%s, %s on %s: video@1 %s %%", *cell, given.split, ", ".join(f"{run.video1:.2f}" for run in found))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python workflow/train.py", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/, such as study")
    parser.add_argument("--stage", choices=["backbone", "features", "aggregator"], default="backbone")
    parser.add_argument("-L", type=int, required=True, help="frames per clip, a multiple of 8")
    parser.add_argument("--fold", type=int, help="of a set with three splits: 1, 2 or 3")
    threads = "of PyTorch, at most: loading threads have a core each; the last digits of the weights depend on it"
    parser.add_argument("--threads", type=int, help=threads)
    folder = "use this folder in place of runs/, and no shipped network but one to start from"
    parser.add_argument("--anew", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument("--backbone", help="stage backbone: a name of build_backbone, such as r2d_26")
    some = {"nargs": "+", "metavar": "X"}
    names = "stage aggregator: names of build_aggregator; all that are asked for train in one pass over the features"
    parser.add_argument("--aggregator", default=["fast_gru"], help=names, **some)
    ratios = "stage aggregator: cheap clips per expensive one, or C where all are cheap"
    parser.add_argument("--ratio", default=["1"], help=ratios, **some)
    parser.add_argument("--seed", type=int, default=[0], help="stage aggregator: seeds of the training", **some)
    parser.add_argument("--split", default="test", help="stages features and aggregator: whose videos are used")
    given = parser.parse_args(arguments)
    if bad := [ratio for ratio in given.ratio if not (ratio == "C" or ratio.isdecimal())]:
        parser.error(f"--ratio is {bad[0]!r}; it must be a whole number, or C")
    if given.stage == "backbone" and given.backbone is None:
        parser.error("--stage backbone needs --backbone, such as r2d_26")
    return given


if __name__ == "__main__":
    main()
