"""Accuracy of whole videos: averaging and trained aggregators on the same features, kept as results of the store."""

from collections.abc import Sequence

import torch
from tqdm import tqdm

from faster_lib.data.sources import what_videos_depend_on
from faster_lib.faster import Faster, Schedule
from faster_lib.features import FeaturePair
from faster_lib.store import Entry
from faster_lib.training import build_faster, train_aggregator

RECIPE_AGGREGATOR = 1  # raised whenever the same features and settings would give another result


def accuracy_percent(logits: torch.Tensor, targets: torch.Tensor, *, top: int = 1) -> float:
    """Give the share of videos whose class is among the `top` highest scores, 0 to 100.

    Shape: logits (videos, num_classes), targets (videos,)
    """
    highest = logits.topk(min(top, logits.shape[-1]), dim=-1).indices
    return 100 * (highest == targets[:, None]).any(dim=-1).float().mean().item()


def measure(
    pair: FeaturePair, aggregator: str, schedule: Schedule, *, seeds: Sequence[int], split: str
) -> list[dict[str, float]]:
    """Measure an aggregator over a schedule, trained once for each seed; what has been measured is found again.

    Averaging learns nothing, so that it is measured once, whatever the seeds.

    Returns: for each seed, `video@1` and `video@5` in percent, the number of `videos`, `seconds`, and `train_loss`.
    """
    learns = aggregator != "avg_pool"
    return [_measure_one(pair, aggregator, schedule, seed, split) for seed in (seeds if learns else [0])]


def measure_all(
    pair: FeaturePair, cells: Sequence[tuple[str, Schedule]], *, seeds: Sequence[int], split: str
) -> dict[tuple[str, Schedule], list[dict[str, float]]]:
    """Measure many (aggregator, schedule) cells, with a progress bar over those."""
    bar = tqdm(cells, desc=f"stage 2, L={pair.expensive.clip_frames}", unit="cell", leave=False)
    return {(name, schedule): measure(pair, name, schedule, seeds=seeds, split=split) for name, schedule in bar}


def aggregator_entry(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> Entry:
    """Name the place of one measured cell."""
    profile = pair.profile
    depends = {
        "recipe": RECIPE_AGGREGATOR,
        "networks": profile.networks.model_dump(mode="json"),
        "weights": [pair.expensive.weights_sha256, pair.cheap.weights_sha256],
        "aggregator": aggregator,
        "schedule": str(schedule),
        "training": profile.aggregator_training.model_dump(mode="json") if aggregator != "avg_pool" else None,
        "train": what_videos_depend_on(profile, "train") if aggregator != "avg_pool" else None,
        "view_seed": profile.backbone_training.seed,
        "seed": seed,
        "test": what_videos_depend_on(profile, split),
    }
    label = f"{aggregator}-L{pair.expensive.clip_frames}-{schedule.count('E')}E{schedule.count('C')}C-seed{seed}"
    return Entry("aggregators", label, depends, pair.runs)


def _measure_one(pair: FeaturePair, aggregator: str, schedule: Schedule, seed: int, split: str) -> dict[str, float]:
    entry = aggregator_entry(pair, aggregator, schedule, seed, split)
    if not entry.is_complete:
        with entry.making() as measures:
            if not entry.is_complete:
                if aggregator == "avg_pool":
                    model = build_faster(pair, aggregator, schedule).eval()
                else:
                    model, measures["train_loss"] = train_aggregator(pair, aggregator, schedule, seed)
                measures.update(evaluate(model, pair, split))
    return {**entry.record["measures"], "seconds": entry.record["seconds"]}


@torch.inference_mode()
def evaluate(model: Faster, pair: FeaturePair, split: str) -> dict[str, float]:
    """Score every video of a split from its stored features, and give `video@1`, `video@5` and how many there were."""
    features = pair.load(split)
    logits = []
    for batch in torch.arange(len(features.targets)).split(pair.profile.aggregator_training.batch_videos):
        maps = (part[batch, 0].float() for part in (features.expensive, features.cheap))
        logits.append(model.from_features(*maps))
    logits = torch.cat(logits)
    accuracies = {f"video@{top}": accuracy_percent(logits, features.targets, top=top) for top in (1, 5)}
    return {**accuracies, "videos": len(features.targets)}
