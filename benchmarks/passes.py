"""Steps of stage 2 against a matrix product; many heads in one pass, against each by itself and what a pass must cost.

    python benchmarks/passes.py [OUT.csv] [--profile study] [-L 32] [--rounds 3]

A pass must read every batch once and do the arithmetic of every head. One thread of this process does all, for one
epoch, on features that are stored before the clock starts. Seconds are processor time, which other work lengthens where
two threads share a core.
"""

import argparse
import itertools
import logging
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas
import torch
from networks import matrix_product
from torch import nn

from faster_lib import Schedule, build_aggregator, load_profile
from faster_lib.flops import step_macs
from faster_lib.inference import fast_form
from faster_lib.training import stage2
from faster_lib.training.features import FeaturePair
from faster_lib.training.loop import build_optimiser
from faster_lib.training.ranks import limited_threads
from faster_lib.training.stage1 import train_backbone

UNITS, RATIOS, SEEDS = ("mean", "concat", "lstm", "gru", "fast_gru"), (1, 3, 7), (0, 1, 2)


def clock(work) -> float:
    """Give the processor seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def best_of(work, rounds: int = 12) -> float:
    """Give the least processor time of some rounds."""
    work()
    return min(clock(work) for _ in range(rounds))


def step_rates(num_clips: int, batch: int, channels: int, size: tuple[int, int, int]) -> list[dict]:
    """Give how fast a training step of each unit is, forward and backward, in GMAC/s and as a share of a product's."""
    multiply = matrix_product()
    product = multiply() / best_of(multiply, rounds=3)
    maps = torch.randn(num_clips, batch, *size, channels).movedim(-1, 2)
    rows = []
    for name in ("fast_gru", "gru", "lstm", "concat"):
        unit = build_aggregator(name, channels).train()
        fast, gmacs = fast_form(unit), 3 * step_macs(unit, size) * batch * (num_clips - 1) / 1e9

        def step(unit=unit, fast=fast) -> None:
            unit.zero_grad()
            fast.read(fast.run(maps)).square().mean().backward()

        seconds = best_of(step)
        row = {"unit": name, "clips": num_clips, "ms": 1000 * seconds, "GMAC/s": gmacs / seconds}
        row["share of a product"] = gmacs / seconds / product
        rows.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
        print(rows[-1], flush=True)
    return rows


def read_once(pair: FeaturePair, heads, steps: int) -> dict[tuple, tuple]:
    """Read what the heads see, once for each seed: the batches by seed, schedule and step."""
    batches = {}
    for seed in SEEDS:
        alike = [head for head in heads if head.seed == seed]
        reader = stage2._Reader(pair, alike)
        for step in range(steps):
            batches |= {(seed, head.schedule, step): reader.read(step, head.schedule) for head in alike}
    return batches


def arithmetic(pair: FeaturePair, heads, batches: dict, steps: int) -> None:
    """Do each head's steps on batches in memory by the plainest loop."""
    for head in heads:
        settings = stage2.settings_of(pair.profile, head.name)
        model, learned, task = stage2._begin(pair, head, stage2._Reader(pair, [head]))
        parameters = [*learned.train().parameters()]
        optimiser, schedule = build_optimiser(parameters, settings, task.steps, batch_samples=task.batch_samples)
        for step in range(steps):
            maps, targets = batches[head.seed, head.schedule, step]
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model.from_features(maps), targets).backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip_gradient_norm or math.inf)
            optimiser.step()
            schedule.step()


def main() -> None:
    """Print, and write if asked, the seconds of one pass, of its parts, and of each head by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="a CSV file")
    parser.add_argument("--profile", default="study", help="a file in params/")
    parser.add_argument("-L", type=int, default=32, help="frames per clip")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    profile = load_profile(given.profile)
    names = (profile.networks.expensive, profile.networks.cheap)
    one_epoch = profile.aggregator_training.model_copy(update={"epochs": 1, "tuned": {}})
    profile = profile.model_copy(update={"aggregator_training": one_epoch})
    pair = FeaturePair(profile, *(train_backbone(profile, name, given.L) for name in names))
    _ = pair.scales, pair.expensive.network, pair.cheap.network
    schedules = [Schedule.ratio(pair.num_clips, ratio) for ratio in RATIOS]
    steps, rows = math.ceil(len(pair.open("train").targets) / one_epoch.batch_videos), []

    def heads(folder: str) -> list[stage2.Head]:
        cells = itertools.product(UNITS, schedules, SEEDS)
        return [stage2.Head(*cell, Path(folder) / f"{number}-head") for number, cell in enumerate(cells)]

    with limited_threads(1):
        size = pair.expensive.network.feature_size((given.L, *[profile.data.crop_px] * 2))
        channels, batch = pair.expensive.network.channels, one_epoch.batch_videos
        rates = [row for num_clips in (8, 32) for row in step_rates(num_clips, batch, channels, size)]
        for _ in range(given.rounds):
            folders = [tempfile.mkdtemp() for _ in range(3)]
            batches, row = {}, {"heads": len(heads(folders[0])), "steps": steps}
            row["one read"] = clock(lambda: batches.update(read_once(pair, heads(folders[0]), steps)))  # noqa: B023
            row["arithmetic"] = clock(lambda: arithmetic(pair, heads(folders[0]), batches, steps))  # noqa: B023
            row["one pass"] = clock(lambda: stage2.train_heads(pair, heads(folders[1])))  # noqa: B023
            row["one by one"] = clock(lambda: [stage2.train_heads(pair, [head]) for head in heads(folders[2])])  # noqa: B023
            row["one pass / (one read + arithmetic)"] = row["one pass"] / (row["one read"] + row["arithmetic"])
            row["one by one / one pass"] = row["one by one"] / row["one pass"]
            rows.append({name: round(value, 3) for name, value in row.items()})
            print(rows[-1], flush=True)
            for folder in folders:
                shutil.rmtree(folder)
    if given.out:
        pandas.concat([pandas.DataFrame(rows), pandas.DataFrame(rates)]).to_csv(given.out, index=False)


if __name__ == "__main__":
    sys.exit(main())
