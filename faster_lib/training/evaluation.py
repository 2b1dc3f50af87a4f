"""Accuracy of whole videos: averaging and trained aggregators on the same features, kept as results of the store."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save

from faster_lib.data.sources import what_videos_depend_on
from faster_lib.jobs import run_all
from faster_lib.models.faster import Faster, Schedule
from faster_lib.store import Entry, write_whole
from faster_lib.training.feature_maps import LiveFeatures, one_thread
from faster_lib.training.feature_store import Request, StoredFeatures
from faster_lib.training.features import FeaturePair
from faster_lib.training.optimisation import what_training_depends_on
from faster_lib.training.ranks import complete_together, find_ranks
from faster_lib.training.stage2 import FROZEN, build_faster, choose_maps, train_aggregator
from faster_lib.training.training_state import CHECKPOINT

RECIPE_AGGREGATOR = 5  # raised whenever the same features and settings would give another result
PRETRAINING_SPLIT = "val"  # what a pre-trained aggregator is measured on, since Kinetics' test has no labels
Cell = tuple[str, Schedule]  # an aggregator's name and which network sees which clip


def accuracy_percent(logits: torch.Tensor, targets: torch.Tensor, *, top: int = 1) -> float:
    """Give the share of videos whose class is among the `top` highest scores, 0 to 100.

    Shape: logits (videos, num_classes), targets (videos,)
    """
    highest = logits.topk(min(top, logits.shape[-1]), dim=-1).indices
    return 100 * (highest == targets[:, None]).any(dim=-1).float().mean().item()


def measure_all(
    pair: FeaturePair, cells: Iterable[Cell], *, seeds: Sequence[int], split: str
) -> dict[Cell, list[dict[str, Any]]]:
    """Measure (aggregator, schedule) cells, trained once for each seed; what has been measured is found again.

    A schedule may have fewer clips than the profile's frames allow. Averaging learns nothing, so that it is measured
    once, whatever the seeds. What is missing is made side by side, in one process for each of the profile's workers,
    each with one thread: so a result depends on neither the number of workers nor that of threads. Where the profile
    has a pre-training, the same cells are trained there first, and each goes on from its own.

    Returns: for each cell and seed, `video@1`, `video@5` and `macro_f1` in percent of the videos that can be read,
        `video@1 of expected` in percent of all that the lists name, beside them `commonest`, what video@1 would be if
        the commonest class were always said; `correct` (a 1 or 0 for each video), the numbers of videos `expected`,
        `used`, `missing` and `corrupt`, `seconds`, and `train_loss`.
    """
    cells = list(dict.fromkeys(cells))
    before = [cell for cell in cells if _learns(cell)]
    if pair.pretrained is not None and before:
        measure_all(pair.pretrained, before, seeds=seeds, split=PRETRAINING_SPLIT)
    runs = list_runs(cells, seeds)
    missing = [run for run in runs if not aggregator_entry(pair, *run[0], run[1], split).is_complete]
    if any(_learns(cell) for cell, _ in missing):
        pair.prepare("train")
        pair.scales  # noqa: B018  computed here once, and sent along
    if missing:
        pair.prepare(split, clips=sorted({len(schedule) for (_, schedule), _ in missing}))
    jobs = [(pair, *cell, seed, split) for cell, seed in missing]
    workers = pair.profile.loading.workers if find_ranks().num_processes == 1 else 1
    title = f"stage 2, L={pair.expensive.clip_frames}"
    run_all(_complete, jobs, workers=workers, title=title, unit="run", leave=False)
    results: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for cell, seed in runs:
        record = aggregator_entry(pair, *cell, seed, split).record
        results[cell].append({**record["measures"], "seconds": record["seconds"]})
    return results


def list_runs(cells: Iterable[Cell], seeds: Sequence[int]) -> list[tuple[Cell, int]]:
    """Give each cell with each seed; averaging has one seed, since it learns nothing."""
    return [(cell, seed) for cell in cells for seed in (seeds if _learns(cell) else [0])]


def load_faster(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> Faster:
    """Give a measured cell's trained model, both networks included, in eval mode: it takes clips."""
    entry = aggregator_entry(pair, aggregator, schedule, seed, split)
    if not entry.is_complete:
        measure_all(pair, [(aggregator, schedule)], seeds=[seed], split=split)
    model = build_faster(pair, aggregator, schedule)
    if _learns((aggregator, schedule)):
        learned = load_file(entry.path / "weights.safetensors")
        missing, unexpected = model.load_state_dict(learned, strict=False)
        if unexpected or any(name.split(".")[0] not in FROZEN for name in missing):
            raise RuntimeError(f"{entry.path} does not fit the model: missing {missing}, unexpected {unexpected}")
    return model.eval()


def aggregator_entry(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> Entry:
    """Name the place of one measured cell."""
    profile = pair.profile
    learns = _learns((aggregator, schedule))
    depends = {
        "recipe": RECIPE_AGGREGATOR,
        "networks": profile.networks.model_dump(mode="json", exclude={"expensive_weights", "cheap_weights"}),
        "weights": [pair.expensive.weights_sha256, pair.cheap.weights_sha256],
        "aggregator": aggregator,
        "schedule": str(schedule),
        **(what_training_depends_on(profile, profile.aggregator_training) if learns else {}),
        "train": what_videos_depend_on(profile, "train", runs=pair.runs) if learns else None,
        "view_seed": profile.backbone_training.seed,
        "seed": seed,
        "test": what_videos_depend_on(profile, split, runs=pair.runs),
        **profile.loading.numerics,
    }
    if learns and pair.pretrained is not None:
        depends["pretrained"] = _pretrained_entry(pair, aggregator, schedule, seed).key
    label = f"{aggregator}-L{pair.expensive.clip_frames}-{schedule.count('E')}E{schedule.count('C')}C-seed{seed}"
    return Entry("aggregators", label, depends, pair.runs)


def _pretrained_entry(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int) -> Entry:
    return aggregator_entry(pair.pretrained, aggregator, schedule, seed, PRETRAINING_SPLIT)


def _learns(cell: Cell) -> bool:
    return cell[0] != "avg_pool"


def _complete(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> None:
    entry = aggregator_entry(pair, aggregator, schedule, seed, split)

    def make() -> dict[str, Any]:
        if not _learns((aggregator, schedule)):
            return evaluate(build_faster(pair, aggregator, schedule).eval(), pair, split)
        start = None
        if pair.pretrained is not None:
            kept = load_file(_pretrained_entry(pair, aggregator, schedule, seed).path / "weights.safetensors")
            start = {k.removeprefix("aggregator."): v for k, v in kept.items() if k.startswith("aggregator.")}
        model, loss = train_aggregator(pair, aggregator, schedule, seed, folder=entry.path, start=start)
        learned = {k: v.contiguous() for k, v in model.state_dict().items() if k.split(".")[0] not in FROZEN}
        if find_ranks().is_main_process:
            write_whole(entry.path / "weights.safetensors", save(learned))
        return {"train_loss": loss, **evaluate(model, pair, split)}

    with one_thread():
        complete_together(entry, make)
    (entry.path / CHECKPOINT).unlink(missing_ok=True)  # only now: a record may not come to be written


@torch.inference_mode()
def evaluate(model: Faster, pair: FeaturePair, split: str) -> dict[str, Any]:
    """Score every video of a split from its features; `measure_all` says what comes back."""
    from sklearn.metrics import f1_score  # here, since it takes a second and stored results need it no more

    features = pair.open(split, len(model.schedule))
    logits = _score(model, features, pair.profile.aggregator_training.batch_videos)
    accuracies = {f"video@{top}": accuracy_percent(logits, features.targets, top=top) for top in (1, 5)}
    said, targets = logits.argmax(-1), features.targets
    classes = range(logits.shape[-1])
    f1 = 100 * f1_score(targets.numpy(), said.numpy(), labels=classes, average="macro", zero_division=0)
    commonest = 100 * targets.bincount().max().item() / len(targets)
    marks = "".join(str(int(mark)) for mark in said == targets)
    census = pair.census(split)
    of_expected = accuracies["video@1"] * census["used"] / census["expected"]
    found = {**accuracies, "video@1 of expected": of_expected, "macro_f1": f1, "commonest": commonest, **census}
    return {**found, "videos": len(targets), "correct": marks}


def _score(model: Faster, features: StoredFeatures | LiveFeatures, batch_videos: int) -> torch.Tensor:
    """Give the scores of all videos, in order: (videos, num_classes). Each rank computes every so many-th batch."""
    ranks, found = find_ranks(), []
    if ranks.device.type != "cpu":
        model = copy.deepcopy(model).to(ranks.device)  # the networks in it are others' too
    requests = list(enumerate(_all_clips(features, batch_videos)))[ranks.process_index :: ranks.num_processes]
    for (number, _), maps in zip(requests, features.read_each(request for _, request in requests), strict=True):
        chosen = choose_maps(model.schedule, *(part.to(ranks.device) for part in maps))
        found.append((number, model.from_features(chosen).cpu()))
    return torch.cat([logits for _, logits in sorted(gather_object(found), key=lambda scored: scored[0])])


def _all_clips(features: StoredFeatures | LiveFeatures, batch_videos: int) -> Iterator[Request]:
    """Ask for all clips of the first view of all videos."""
    for videos in torch.arange(len(features.targets)).split(batch_videos):
        yield videos, torch.zeros_like(videos), torch.arange(features.num_clips).expand(len(videos), -1)


@torch.inference_mode()
def clip_accuracy_percent(pair: FeaturePair, split: str) -> dict[str, float]:
    """Give the share of single clips that each network classifies right by itself, over all N clips of all videos.

    Returns: for E and C, 0 to 100.
    """
    features = pair.open(split)
    targets = features.targets.repeat_interleave(pair.num_clips)
    logits: dict[str, list[torch.Tensor]] = {"E": [], "C": []}
    for both in features.read_each(_all_clips(features, 1)):
        for kept, backbone, maps in zip(logits.values(), (pair.expensive, pair.cheap), both, strict=True):
            kept.append(backbone.network.classify(maps[0].cpu()))
    return {key: accuracy_percent(torch.cat(scores), targets) for key, scores in logits.items()}


@torch.inference_mode()
def watch(model: Faster, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take in one video clip by clip, as it comes, and keep all that is said meanwhile, as probabilities.

    Shape: clips (N, 3, L, H, W) normalised -> of each clip alone by the network that sees it (N, num_classes), of the
        video so far (N, num_classes)
    """
    alone, so_far, state = [], [], None
    for t, clip in enumerate(clips.split(1)):
        state, logits = model.step(clip, state)
        so_far.append(logits)
        alone.append((model.expensive if model.schedule.is_expensive[t] else model.cheap)(clip))
    return torch.cat(alone).softmax(dim=-1), torch.cat(so_far).softmax(dim=-1)
