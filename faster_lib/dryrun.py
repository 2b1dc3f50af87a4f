"""Whether a profile runs: every stage once on a few generated videos, then an estimate of what the whole needs."""

import argparse
import logging
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from faster_lib.data.imitation import IMITATIONS, imitate
from faster_lib.data.sampling import num_clips_covering
from faster_lib.data.sources import load_videos
from faster_lib.data.synthetic import CLASSES
from faster_lib.estimate import (
    TFLOPS,
    UTILISATION,
    Estimate,
    Videos,
    count_costs,
    count_videos,
    estimate,
    gpu_hours,
    measure_files,
)
from faster_lib.models.faster import Schedule
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import circumstances
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import backbone_entry, train_backbone

log = logging.getLogger(__name__)

_FEW = {"train": 2, "test": 1}  # generated videos, where the profile has no scene
_TELLING_SECONDS = 2.0  # of a stage; what ran for less was mostly starting up, and says nothing of the whole


class Spent(NamedTuple):
    """What a stage of a dry run took: its time, and the most memory that the process had had by its end.

    The time of stage 1 is that of its step and of the clips for it, building and saving left out.
    """

    seconds: float
    peak_bytes: int


class DryRun(NamedTuple):
    """What a dry run took in place of the profile and its videos, what its stages cost, and what came out."""

    small: Profile
    videos: Videos
    schedule: Schedule
    spent: dict[str, Spent]  # by the names that the estimate has
    losses: dict[str, float]  # of the first iteration of stage 1, by role
    result: dict[str, Any]  # of the evaluation


def cut_down(profile: Profile, clip_frames: int, folder: Path) -> Profile:
    """Give the profile that a dry run takes: the same networks and clips, few videos, one step of each stage."""
    data, scene, few = profile.data, profile.scene, _FEW["train"]
    if scene is None:
        layout = data.source if data.source in IMITATIONS else "folders"
        data = data.model_copy(update={"source": layout, "root": str(folder), "annotations": None})
    else:
        few = data.num_classes  # since a split of generated videos has the classes that it shows
        scene = scene.model_copy(update={"videos": dict.fromkeys(scene.videos, few)})
    stage_1, stage_2 = profile.backbone_training, profile.aggregator_training
    clips = 2 * stage_1.clips_per_video  # of two videos: batch norm needs more than one value a channel
    batch = {"batch_frames": clips * clip_frames, "most_batch_clips": clips}
    changed = {
        "backbone_training": stage_1.model_copy(update={**batch, "iterations": 1}),
        "aggregator_training": stage_2.model_copy(update={"batch_videos": few, "epochs": 1, "views": 1}),
        "loading": profile.loading.model_copy(update={"workers": 0}),
    }
    return profile.model_copy(update={"data": data, "scene": scene, "pretraining": None, **changed})


def list_cuts(profile: Profile, small: Profile) -> list[str]:
    """Say in which keys a dry run's profile differs, the folder of the videos left aside."""
    found = []
    for section, before in profile.model_dump().items():
        after = getattr(small, section)
        pairs = [(section, before, after)]
        if isinstance(before, dict) and after is not None:
            pairs = [(f"{section}.{key}", value, getattr(after, key)) for key, value in before.items() if key != "root"]
        found += [f"{key}: the profile says {a}, the dry run took {b}" for key, a, b in pairs if a != b]
    return found


def write_videos(small: Profile) -> None:
    """Write a few generated videos into the folder of a dry run, and lists that name as many classes as it has.

    The videos are as large as clips are scaled at most, so that none is scaled up.
    """
    data, root = small.data, Path(small.data.root)
    size = max(*data.train_short_side_px, data.test_short_side_px)
    form = {"frames": data.video_frames, "size_px": size + size % 2, "shots": (1, 1), "shortest_shot_frames": 1}
    imitate(load_profile("smoke").scene.model_copy(update={**form, "videos": _FEW}), data.source, root, workers=1)
    labels = [*CLASSES, *(f"class_{number}" for number in range(len(CLASSES), data.num_classes))][: data.num_classes]
    if data.source == "kinetics":  # whose classes are those that some row names
        rows = [f"{label.replace('_', ' ')},none,0,10,none" for label in labels]
        (root / "none.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]))
    elif data.source == "ucf101":
        path = root / "ucfTrainTestlist" / "classInd.txt"
        known = [line.split()[1] for line in path.read_text().splitlines()]
        names = [*known, *labels[len(known) :]][: data.num_classes]
        path.write_text("\n".join(f"{number} {name}" for number, name in enumerate(names, start=1)))
    elif data.source == "hmdb51":
        lists, wanted = (
            root / "testTrainMulti_7030_splits",
            {f"{label}_test_split{data.fold or 1}.txt" for label in labels},
        )
        for path in [*lists.iterdir(), *(lists / name for name in wanted)]:
            path.touch() if path.name in wanted else path.unlink()
    elif data.source == "path_label":
        (root / "classes.txt").write_text("\n".join(labels))
    else:
        for label in labels:
            (root / label).mkdir(exist_ok=True)


def dry_run(profile: Profile, clip_frames: int, *, runs: Path = RUNS) -> DryRun:
    """Run every stage once, by the code that the whole profile takes, in a folder that is gone afterwards.

    FAST-GRU is trained for the ratio 1:7, or the next one below that fits.
    """
    num_clips = num_clips_covering(profile.data.video_frames, clip_frames)
    schedule = Schedule.ratio(num_clips, max(x for x in range(8) if num_clips % (1 + x) == 0))
    (runs / "dry-run").mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=runs / "dry-run") as folder:
        small = cut_down(profile, clip_frames, Path(folder) / "layout")
        if small.scene is None:
            write_videos(small)
        train, test = (load_videos(small, split, runs=Path(folder)) for split in ("train", "test"))
        videos = measure_files(train, test, "the dry run")
        return DryRun(small, videos, schedule, *_run_stages(small, clip_frames, schedule, Path(folder)))


def _run_stages(small: Profile, clip_frames: int, schedule: Schedule, runs: Path) -> tuple[dict, dict, dict]:
    cell, spent, losses, trained = ("fast_gru", schedule), {}, {}, []
    for role, name in (("expensive", small.networks.expensive), ("cheap", small.networks.cheap)):
        with _watch(spent, f"stage 1, {role}"):
            trained.append(train_backbone(small, name, clip_frames, runs=runs, may_be_shipped=False))
        entry = backbone_entry(small, name, clip_frames, runs=runs)
        losses[role] = entry.record["measures"]["first_losses"][0]
        spent[f"stage 1, {role}"] = spent[f"stage 1, {role}"]._replace(seconds=trained[-1].seconds)
    pair = FeaturePair(small, *trained, runs=runs)
    for split, stage in (("train", "features of training"), ("test", "features of evaluation")):
        with _watch(spent, stage):
            pair.prepare(split)
    measure_all(pair, [("avg_pool", schedule)], seeds=[0], split="test")  # loads what takes longer than the evaluation
    with _watch(spent, "stage 2 and evaluation"):
        (result,) = measure_all(pair, [cell], seeds=[0], split="test")[cell]
    return spent, losses, result


@contextmanager
def _watch(spent: dict[str, Spent], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    spent[stage] = Spent(time.perf_counter() - start, peak)


def describe_run(profile: Profile, clip_frames: int, run: DryRun, done: Estimate) -> list[str]:
    """Tell what a dry run did, line by line."""
    layout = f"generated in the layout {run.small.data.source}" if run.small.scene is None else "of the profile's scene"
    lines = [
        f"DRY RUN of {profile.name}: L = {clip_frames}, FAST-GRU on {run.schedule}, {circumstances()['device']}",
        f"  videos: {run.videos.train} for training, {run.videos.evaluated} for the evaluation, {layout}",
        *(f"  {cut}" for cut in list_cuts(profile, run.small)),
    ]
    for stage, (seconds, peak) in run.spent.items():
        lines.append(f"  {stage}: {seconds:.1f} s, peak memory so far {peak / 1e9:.1f} GB; {done.macs[stage]}")
    losses = ", ".join(f"{role} {loss:.3f}" for role, loss in run.losses.items())
    lines.append(
        f"  first losses: {losses}; ln of {profile.data.num_classes} is {math.log(profile.data.num_classes):.3f}"
    )
    return [*lines, f"  after one step, video@1 {run.result['video@1']:.0f} %, videos: {run.result['videos']}"]


def describe_whole(
    profile: Profile, videos: Videos, whole: Estimate, done: Estimate, run: DryRun, *, tflops: float, utilisation: float
) -> list[str]:
    """Tell what the whole profile needs, with the arithmetic of every line."""
    lines = [
        f"THE WHOLE of {profile.name}: {videos.train:,} videos for training, {videos.evaluated:,} for the evaluation "
        f"(source: {videos.source})",
        f"  hours on a GPU = 2 × MACs / ({tflops}e12 × {utilisation}) / 3600: operations a second at its peak (unless "
        "given, a V100 SXM2's in single precision), and the share that is reached (assumed)",
        "  hours here = MACs / (MACs per second of that stage in the dry run) / 3600, decoding and start-up included, "
        f"where that stage ran for {_TELLING_SECONDS:.0f} s at least",
    ]
    for stage, work in whole.macs.items():
        hours = f"{_hours(gpu_hours(work.value, tflops=tflops, utilisation=utilisation))} on the GPU"
        if (seconds := run.spent[stage].seconds) >= _TELLING_SECONDS:
            hours += f", {_hours(seconds * work.value / max(done.macs[stage].value, 1) / 3600)} here"
        lines.append(f"  {stage}: {work} = {work.value:.3g} MACs: {hours}")
    total = sum(work.value for work in whole.macs.values())
    total_hours = _hours(gpu_hours(total, tflops=tflops, utilisation=utilisation))
    lines.append(f"  in all {total:.3g} MACs: {total_hours} on the GPU, with one training of FAST-GRU")
    for what, parts in (("disk", whole.disk), ("memory", whole.memory)):
        lines += [f"  {what}, {name}: {part} = {_size(part.value)}" for name, part in parts.items()]
    features = whole.disk["features of training"].value
    lines += [
        "  The hours are of one GPU; several share them out (docs/cluster.md). No GPU has run this kit yet.",
        f"  Stage 2 reads features from the disk, batch by batch; loading.features: on_the_fly stores none of "
        f"{_size(features)}, and computes them anew in each epoch of each training.",
    ]
    if profile.pretraining is not None:
        lines.append(f"  What the profile {profile.pretraining.profile} needs comes before and on top.")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _size(num_bytes: int) -> str:
    unit, name = next((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if num_bytes >= u or n == "MB")
    return f"{num_bytes / unit:,.2f} {name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every stage of a profile once on generated videos, and estimate what the whole profile needs."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.dryrun", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/, such as kinetics400")
    parser.add_argument("-L", type=int, required=True, help="frames per clip, a multiple of 8")
    parser.add_argument(
        "--tflops", type=float, default=TFLOPS, help="a GPU's peak; default: V100 SXM2, single precision"
    )
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="share of the peak that is reached")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    profile, gpu = load_profile(given.profile), {"tflops": given.tflops, "utilisation": given.utilisation}
    gpu_hours(0, **gpu)  # says at once what is wrong with them
    costs, run = count_costs(profile, given.L), dry_run(profile, given.L)
    try:
        videos = count_videos(profile)
    except FileNotFoundError as error:
        videos = run.videos._replace(source=f"the dry run's own, since the set's lists are not there: {error}")
    if profile.scene is not None:
        videos = videos._replace(mean_bytes=run.videos.mean_bytes)
    whole, done = (estimate(p, given.L, costs, v) for p, v in ((profile, videos), (run.small, run.videos)))
    for line in describe_run(profile, given.L, run, done) + describe_whole(profile, videos, whole, done, run, **gpu):
        log.info("%s", line)


if __name__ == "__main__":
    main()
