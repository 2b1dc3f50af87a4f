"""Accuracy of whole videos: averaging and trained aggregators on the same features, kept as results of the store."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from faster_lib.data.datasets import Census
from faster_lib.data.index import load_videos
from faster_lib.models.faster import Faster
from faster_lib.profiles import Profile
from faster_lib.store import write_whole
from faster_lib.training.checkpoints import remove_checkpoints
from faster_lib.training.features import FeaturePair, Features
from faster_lib.training.ranks import find_ranks, in_turns, limited_threads
from faster_lib.training.results import (
    PRETRAINING_SPLIT,
    Cell,
    Measured,
    Run,
    aggregator_entry,
    learns,
    read_measured,
    shipped_results,
)
from faster_lib.training.stage2 import Head, Trained, build_faster, is_learned, train_heads
from faster_lib.workers import run_all


def accuracy_percent(logits: torch.Tensor, targets: torch.Tensor, *, top: int = 1) -> float:
    """Give the share of videos whose class is among the `top` highest scores, 0 to 100.

    Shape: logits (videos, num_classes), targets (videos,)
    """
    highest = logits.topk(min(top, logits.shape[-1]), dim=-1).indices
    return 100 * (highest == targets[:, None]).any(dim=-1).float().mean().item()


def measure_all(
    pair: FeaturePair, cells: Iterable[Cell], *, seeds: Sequence[int], split: str, anew: bool = False
) -> dict[Cell, list[Measured]]:
    """Measure (aggregator, schedule) cells, trained once for each seed; results already in runs/ are reused.

    So are those that come with the kit, whose keys fit, unless all are wanted `anew`.
    A schedule may have fewer clips than the profile's frames allow. Averaging learns nothing, so it is measured once,
    whatever the seeds. What is missing is made in one pass over the features, or in some side by side: a process of one
    thread for each of the profile's workers, or each of several ranks, so that a result depends on no such number.
    Where the profile has a pre-training, the same cells are trained there first, and each goes on from its own.
    """
    cells, ranks = list(dict.fromkeys(cells)), find_ranks()
    wanted = [(cell, seed) for cell in cells for seed in (seeds if learns(cell) else [0])]
    entries = {(cell, seed): aggregator_entry(pair, *cell, seed, split) for cell, seed in wanted}
    shipped = {} if anew else shipped_results()
    missing: list[Run] = [run for run, e in entries.items() if not e.is_complete and e.path.name not in shipped]
    if pair.pretrained is not None and (before := [run for run in missing if learns(run[0])]):
        cells_before, seeds_before = (list(dict.fromkeys(each)) for each in zip(*before, strict=True))
        measure_all(pair.pretrained, cells_before, seeds=seeds_before, split=PRETRAINING_SPLIT, anew=True)
    if any(learns(cell) for cell, _ in missing):
        pair.scales  # noqa: B018  computed here once, and sent along with all features
    for num_clips in sorted({len(schedule) for (_, schedule), _ in missing}):
        pair.open(split, num_clips)
    workers = pair.profile.loading.workers if ranks.num_processes == 1 and ranks.device.type == "cpu" else 1
    passes = max(workers, 1) * ranks.num_processes
    jobs = in_turns([(pair, part, split) for turn in range(passes) if (part := missing[turn::passes])])
    bar = {"title": f"stage 2, L={pair.clip_frames}", "unit": "pass", "leave": False}
    run_all(_complete, jobs, workers=workers, **bar, is_shown=ranks.is_main_process)
    results: dict[Cell, list[Measured]] = {cell: [] for cell in cells}
    for (cell, _), entry in entries.items():
        results[cell].append(read_measured(entry) if entry.is_complete else shipped[entry.path.name])
    return results


def _complete(pair: FeaturePair, runs: Sequence[Run], split: str) -> None:
    """Train and measure cells in one pass over the features, but those that another process has made meanwhile.

    Raises: FloatingPointError, once all others are recorded, if some were not finite.
    """
    entries = {run: aggregator_entry(pair, *run[0], run[1], split) for run in runs}
    with limited_threads(1), ExitStack() as held:
        making = {}
        for run in sorted(runs, key=lambda run: entries[run].path):  # lest two processes wait for each other
            if (made := held.enter_context(entries[run].making())) is not None:
                making[run] = made
        models = {run: Trained(build_faster(pair, *run[0]).eval()) for run in making if not learns(run[0])}
        heads = {run: _head(pair, run, entries[run].path) for run in making if learns(run[0])}
        for run, ended in zip(heads, train_heads(pair, list(heads.values())), strict=True):
            if isinstance(ended, Trained):
                models[run] = ended
                learned = {k: v.contiguous() for k, v in ended.model.state_dict().items() if is_learned(k)}
                write_whole(entries[run].path / "weights.safetensors", save(learned))
            else:
                making[run]["error"] = str(ended)
        scored = evaluate([trained.model for trained in models.values()], pair, split)
        for (run, trained), measured in zip(models.items(), scored, strict=True):
            making[run] |= {"measures": asdict(replace(measured, train_loss=trained.loss)), "seconds": trained.seconds}
    for run in models:
        remove_checkpoints(entries[run].path)  # only now: a record may not come to be written
    if errors := [f"{entries[run].label}: {made['error']}" for run, made in making.items() if "error" in made]:
        raise FloatingPointError("; ".join(errors))


def _head(pair: FeaturePair, run: Run, folder: Path) -> Head:
    (aggregator, schedule), seed = run
    if pair.pretrained is None:
        return Head(aggregator, schedule, seed, folder)
    kept = load(aggregator_entry(pair.pretrained, aggregator, schedule, seed, PRETRAINING_SPLIT).read())
    start = {k.removeprefix("aggregator."): v for k, v in kept.items() if k.startswith("aggregator.")}
    return Head(aggregator, schedule, seed, folder, start)


@torch.no_grad()
def evaluate(models: Sequence[Faster], pair: FeaturePair, split: str) -> list[Measured]:
    """Score every video of a split by each model, from features that are read once for all of one number of clips."""
    logits = {}
    for num_clips in sorted({len(model.schedule) for model in models}):
        alike = [model for model in models if len(model.schedule) == num_clips]
        logits |= zip(map(id, alike), _score(alike, pair.open(split, num_clips), pair.profile), strict=True)
    census = load_videos(pair.profile, split, runs=pair.runs).census
    return [_measure(logits[id(model)], pair.open(split, len(model.schedule)).targets, census) for model in models]


def _score(models: Sequence[Faster], features: Features, profile: Profile) -> list[torch.Tensor]:
    """Give each model's logits (videos, num_classes) for clips of one number."""
    parts = nn.ModuleList(part for model in models for name, part in model.named_children() if is_learned(name))
    parts.extend(network.classifier for model in models for network in (model.expensive, model.cheap))
    parts.to(find_ranks().device)
    schedules = sorted({model.schedule for model in models})
    clips, batches = torch.arange(features.num_clips), torch.arange(len(features.targets))
    batches = batches.split(profile.aggregator_training.batch_videos)
    asked = ((videos, torch.zeros_like(videos), clips.expand(len(videos), -1)) for videos in batches)  # the first view
    logits = [[] for _ in models]
    for maps in features.read_each(asked, schedules):
        for model, found in zip(models, logits, strict=True):
            found.append(model.from_features(maps[schedules.index(model.schedule)]).cpu())
    parts.cpu()
    return [torch.cat(found) for found in logits]


def _measure(logits: torch.Tensor, targets: torch.Tensor, census: Census) -> Measured:
    from sklearn.metrics import f1_score  # here, since it takes a second and stored results need it no more

    video1, video5 = (accuracy_percent(logits, targets, top=top) for top in (1, 5))
    said, classes = logits.argmax(-1), targets.unique().tolist()
    return Measured(
        video1=video1,
        video5=video5,
        video1_of_expected=video1 * census.used / census.expected,
        macro_f1=100 * f1_score(targets.numpy(), said.numpy(), labels=classes, average="macro", zero_division=0),
        commonest=100 * targets.bincount().max().item() / len(targets),
        correct="".join(str(int(mark)) for mark in said == targets),
        census=census,
    )
