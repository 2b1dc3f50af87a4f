"""Training and extraction against the plainest PyTorch loop, on the same networks and videos, in one run.

    python benchmarks/training.py OUT.csv [--iterations 20] [--rounds 3]

Speeds are clips per second, memory MiB of a process. The rounds alternate, so that what else the machine does meets all
of them alike.
"""

import argparse
import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas
import torch
from data_path import DATA, write_files
from networks import PLAIN, matrix_product, plain_fast_gru
from side_by_side import KIT, LIMIT, Peer, Speed, allocator_as_found, contend, write_table
from torch import nn
from torch.utils.data import DataLoader, Dataset

from faster_lib.data.datasets import RandomClips, draw_epochs
from faster_lib.data.index import load_videos
from faster_lib.flops import count_macs, step_macs
from faster_lib.inference import fast_form
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profiles import load_profile
from faster_lib.training.features import FeaturePair, compute_features, freeze
from faster_lib.training.loop import CURVES
from faster_lib.training.ranks import limited_threads
from faster_lib.training.stage1 import count_batch_videos, train_backbone
from faster_lib.workers import count_cores, load_ahead

L = 16
NETWORKS = ("r2plus1d_50", "r2d_26")
log = logging.getLogger(__name__)


class PlainClips(Dataset):
    """What a tutorial would write: open, read a random clip, resize and cut it, as floats."""

    def __init__(self, videos, data, num_clips: int | None = None):
        self.videos, self.data, self.num_clips = videos, data, num_clips

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        import decord  # here: loaded before torch, it ends the process at the first training step

        video = self.videos.videos[index]
        reader = decord.VideoReader(str(video.path), num_threads=1)
        if self.num_clips is None:
            starts = [int(torch.randint(len(reader) - L, (1,)))]
        else:
            starts = [round(t * (len(reader) - L) / (self.num_clips - 1)) for t in range(self.num_clips)]
        clips = [self.prepare(reader.get_batch(range(start, start + L)).asnumpy()) for start in starts]
        return torch.stack(clips), video.target

    def prepare(self, frames):
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        side = self.data.test_short_side_px
        x = nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        cut = (side - self.data.crop_px) // 2
        x = x[:, :, cut : cut + self.data.crop_px, cut : cut + self.data.crop_px]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return ((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).transpose(0, 1)


def plain_training(profile, videos, name: str, iterations: int, workers: int) -> float:
    """Train by the plainest loop; give clips per second."""
    batch = count_batch_videos(profile.backbone_training, L)
    loader = DataLoader(PlainClips(videos, profile.data), batch, shuffle=True, num_workers=workers, drop_last=True)
    network = build_backbone(name, profile.data.num_classes, profile.networks.width).train()
    optimiser = torch.optim.AdamW(network.parameters())
    start, done = time.perf_counter(), 0
    while done < iterations:
        for clips, targets in loader:
            loss = nn.functional.cross_entropy(network(clips.flatten(0, 1)), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done += 1
            if done == iterations:
                break
    return batch * iterations / (time.perf_counter() - start)


def our_training(profile, name: str, iterations: int, runs: Path):
    """Train by the kit from nothing; give it, clips per second, and the share of the time that it waited for data."""
    settings = profile.backbone_training.model_copy(update={"iterations": iterations, "seed": time.time_ns() % 2**31})
    changed = profile.model_copy(update={"backbone_training": settings})
    trained = train_backbone(changed, name, L, runs=runs, may_be_shipped=False)
    waits = pandas.read_csv(trained.entry.path / CURVES)["data wait share"].mean()
    return trained, count_batch_videos(settings, L) * iterations / trained.seconds, waits


@torch.inference_mode()
def plain_extraction(profile, videos, networks, workers: int, num_clips: int) -> float:
    """Compute feature maps by the plainest loop, a video after the other, for each network by itself."""
    start, done = time.perf_counter(), 0
    for network in networks:
        loader = DataLoader(PlainClips(videos, profile.data, num_clips), 1, num_workers=workers)
        kept = [network.features(clips[0]).half() for clips, _ in loader]
        done += sum(len(maps) for maps in kept)
    return done / (time.perf_counter() - start)


def our_extraction(profile, networks, runs: Path, videos: int) -> float:
    """Compute the same feature maps by the kit, which has none of these networks yet."""
    pair = FeaturePair(profile, *networks, runs=runs)
    start = time.perf_counter()
    pair.open("test")
    return 2 * videos * pair.num_clips / (time.perf_counter() - start)


def launch(profile, runs: Path, *arguments: str) -> None:
    """Run the training command with a profile of no file, in a process of one thread."""
    program = (
        "from faster_lib.profiles import Profile\nfrom workflow import train as training\n"
        f"profile = Profile.model_validate_json({profile.model_dump_json()!r})\n"
        "training.load_profile = lambda name: profile\ntraining.main()\n"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "FASTER_RUNS": str(runs)}
    command = [sys.executable, "-c", program, "--profile", "any", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment)


def peaks(train: int, folder: Path) -> dict[str, float]:
    """Train, extract and aggregate a small profile of so many training videos; give each stage's peak memory in MiB."""
    smoke = load_profile("smoke")
    scene = smoke.scene.model_copy(update={"videos": {"train": train, "test": train // 2}})
    runs = folder / f"of_{train}"
    runs.mkdir()
    launch(smoke.model_copy(update={"scene": scene}), runs, "--stage", "aggregator", "-L", "8")
    found: dict[str, float] = {}
    for path in runs.glob("*/*/*/record.json"):
        record = json.loads(path.read_text())
        found[path.parts[-3]] = max(found.get(path.parts[-3], 0.0), record["peak_mib"])
    return found


def measure(profile, folder: Path, iterations: int, rounds: int) -> dict[str, list[float]]:
    """Alternate everything for some rounds; give all figures by name."""
    found: dict[str, list[float]] = {}
    videos, test = (load_videos(profile, split, runs=folder) for split in ("stage1", "test"))
    for _ in range(rounds):
        networks = []
        for name in NETWORKS:
            trained, ours, waited = our_training(profile, name, iterations, folder)
            networks.append(trained)
            found.setdefault(f"train {name}, the kit", []).append(ours)
            found.setdefault(f"train {name}, share of waiting for data", []).append(waited)
            for workers in (0, 2):
                with allocator_as_found():
                    speed = plain_training(profile, videos, name, iterations, workers)
                found.setdefault(f"train {name}, plain loop, {workers} workers", []).append(speed)
        found.setdefault("extract both, the kit", []).append(our_extraction(profile, networks, folder, len(test)))
        for workers in (0, 2):
            plain = [each.network for each in networks]
            clips = FeaturePair(profile, *networks).num_clips
            with allocator_as_found():
                speed = plain_extraction(profile, test, plain, workers, clips)
            found.setdefault(f"extract both, plain loop, {workers} workers", []).append(speed)
    for train in (64, 640):
        for kind, peak in peaks(train, folder).items():
            found[f"peak memory (MiB), {kind}, {train} training videos"] = [peak]
    return found


def stage_1_step(name: str, clip_frames: int, batch: int) -> list[Speed]:
    """Time both passes of a step on clips that are there, laid out as the engine lays them out, and plainly."""
    plain = build_backbone(name, 400).train()
    kit = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    clips, targets = torch.randn(batch, 3, clip_frames, 224, 224), torch.arange(batch)
    gmacs = 3 * batch * count_macs(plain, clips[:1]) / 1e9
    ours = clips.contiguous(memory_format=torch.channels_last_3d)

    def step(network: nn.Module, x: torch.Tensor) -> None:
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), targets).backward()

    calls = {KIT: lambda: step(kit, ours), PLAIN: Peer(lambda: step(plain, clips)), LIMIT: matrix_product()}
    contest = f"step of stage 1, {name}, {batch} clip{'s' * (batch != 1)} of {clip_frames} x 224 px"
    return contend("training", contest, gmacs, "GMAC/s", calls, rounds=3)


def waiting(folder: Path, name: str, clip_frames: int, batch: int, steps: int) -> Speed:
    """Train on random clips of 224 px out of H.264 files, loaded by one thread; give the share of the time waited.

    The first batch, for which everything waits, does not count.
    """
    clips = RandomClips(write_files(folder), DATA, clip_frames=clip_frames, clips_per_video=1, seed=0)
    draws = draw_epochs(len(clips.videos), batch_videos=batch, first=0, iterations=steps + 1, seed=0)
    batches = load_ahead(clips.load_batch, draws, 1)
    network = build_backbone(name, 400).train().to(memory_format=torch.channels_last_3d)
    next(batches)
    waited, start = 0.0, time.perf_counter()
    with limited_threads(count_cores() - 1):
        for _ in range(steps):
            asked = time.perf_counter()
            loaded = next(batches)
            waited += time.perf_counter() - asked
            network.zero_grad(set_to_none=True)
            scores = network(normalise(loaded.clips.flatten(0, 1)))
            nn.functional.cross_entropy(scores, loaded.targets).backward()
    share = waited / (time.perf_counter() - start)
    contest = f"stage 1 from files, {name}, {batch} clips of {clip_frames} x 224 px: share of waiting for data"
    return Speed("training", contest, KIT, "of the time", (share,))


def stage_2_step(channels: int, size: tuple[int, int, int], num_clips: int, batch: int) -> list[Speed]:
    """Time both passes of FAST-GRU and a classifier on stored maps, by the kit and as the equations are written."""
    networks = [build_backbone(name, 16, channels / 2048) for name in NETWORKS]
    schedule = Schedule.ratio(num_clips, 1)
    model = Faster(*networks, fast_form(build_aggregator("fast_gru", channels)), schedule, 16)
    maps, targets = torch.randn(2, batch, num_clips, channels, *size), torch.arange(batch) % 16
    chosen = [maps["EC".index(letter)][:, t] for t, letter in enumerate(schedule)]
    gmacs = 3 * batch * (num_clips - 1) * step_macs(model.aggregator, size) / 1e9

    def plain() -> torch.Tensor:
        features = torch.stack([maps[0 if t % 2 == 0 else 1][:, t] for t in range(num_clips)], 1)
        return model.classifier(plain_fast_gru(model.aggregator, features).mean((-3, -2, -1)))

    def step(scores) -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(scores(), targets).backward()

    calls = {KIT: lambda: step(lambda: model.from_features(chosen)), "plain convolutions": Peer(lambda: step(plain))}
    contest = f"step of stage 2, FAST-GRU, {channels} channels, N = {num_clips}, {batch} videos"
    return contend("training", contest, gmacs, "GMAC/s", calls | {LIMIT: matrix_product()}, rounds=5)


@torch.no_grad()
def extraction(num_clips: int) -> list[Speed]:
    """Time the feature maps of one decoded video at the paper's size by both networks: compiled, not, and plainly."""
    plain = [build_backbone(name, 400).eval() for name in NETWORKS]
    views = torch.randint(256, (1, num_clips, 3, 8, 224, 224), dtype=torch.uint8)
    profile, frozen = load_profile("kinetics400"), {}
    for who, is_compiled in ((KIT, True), ("the kit, loading.compiled: false", False)):
        loading = profile.loading.model_copy(update={"compiled": is_compiled})
        frozen[who] = [freeze(network, profile.model_copy(update={"loading": loading})) for network in plain]
    calls = {who: lambda networks=networks: compute_features(networks, views, "no") for who, networks in frozen.items()}
    calls[PLAIN] = Peer(lambda: [network.features(normalise(views[0])) for network in plain])
    gmacs = num_clips * sum(count_macs(network, torch.randn(1, 3, 8, 224, 224)) for network in plain) / 1e9
    contest = f"extraction of {num_clips} clips of 8 x 224 px by both networks"
    return contend("training", contest, gmacs, "GMAC/s", calls | {LIMIT: matrix_product()}, rounds=3)


def as_speeds(found: dict[str, list[float]]) -> list[Speed]:
    """Turn figures by name into rows; those of a contest are named "contest, who"."""
    speeds = []
    for name, values in found.items():
        contest, _, who = name.partition(", ")
        unit = next((u for word, u in (("share", "of the time"), ("memory", "MiB")) if word in name), "clips/s")
        is_alone = unit != "clips/s"
        row = (name, KIT) if is_alone else (contest, who)
        speeds.append(Speed("training", *row, unit, tuple(values)))
    return speeds


def contests(iterations: int, rounds: int, *, steps_only: bool) -> Iterator[list[Speed]]:
    """Run all, one after the other."""
    yield extraction(num_clips=8)
    for form in (("r2plus1d_50", 8, 2), ("r2plus1d_50", 32, 1), ("r2d_26", 8, 8), ("r2d_26", 32, 2)):
        yield stage_1_step(*form)
    with tempfile.TemporaryDirectory() as folder:
        yield [waiting(Path(folder), *form) for form in (("r2plus1d_50", 8, 2, 8), ("r2d_26", 8, 8, 16))]
    for form in ((256, (2, 2, 2), 16, 32), (256, (1, 2, 2), 32, 32), (2048, (4, 7, 7), 8, 1)):
        yield stage_2_step(*form)
    if not steps_only:
        profile = load_profile("tiny")
        videos = {**profile.scene.videos, "stage1": 256, "test": 256}
        profile = profile.model_copy(update={"scene": profile.scene.model_copy(update={"videos": videos})})
        with tempfile.TemporaryDirectory() as folder:
            yield as_speeds(measure(profile, Path(folder), iterations, rounds))


def main() -> None:
    """Measure, log the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps-only", action="store_true", help="leave out what reads videos")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_table(given.out, contests(given.iterations, given.rounds, steps_only=given.steps_only))


if __name__ == "__main__":
    main()
