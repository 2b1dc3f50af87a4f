"""Choose learning rate and epochs of each aggregator on `val`: `python -m workflow.tune --profile study -L 8`.

Every aggregator, the control included, is trained with every pair of the profile's grid, by a seed that no table
reports, at some ratios. The profile's own pair stays unless another one is better by more than a point.
`params/tuning.csv` keeps a row for each pair. What is chosen is printed as it goes into the profile.
"""

import argparse
import csv
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from faster_lib.models.aggregators import AGGREGATORS
from faster_lib.models.faster import Schedule
from faster_lib.paths import PARAMS
from faster_lib.profile_sections import AggregatorTraining, Tuned, Tuning
from faster_lib.profiles import Profile, load_profile
from faster_lib.provenance import circumstances
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import train_backbone
from workflow.results import made_by, write_rows
from workflow.train import ended_by_signals

log = logging.getLogger(__name__)

TABLE = PARAMS / "tuning.csv"
LEARNING = [name for name in AGGREGATORS if name != "avg_pool"]  # averaging has nothing to tune
SEED = 100  # no table reports it
RATIOS = (1, 3, 7)
# Points. Over 512 videos the difference of two tries of one unit had a standard error of 0.2 to 0.5, seeds aside.
NEAR = 1.0


def try_grid(profile: Profile, L: int, aggregators: Sequence[str], ratios: Sequence[int]) -> list[dict[str, Any]]:
    """Measure every pair of the profile's grid on `val`: a row for each aggregator and pair.

    Raises: ValueError, before anything is trained, if the grid lacks the profile's own pair.
    """
    own: AggregatorTraining = profile.aggregator_training
    tuning: Tuning = own.tuning
    if own.learning_rate not in tuning.learning_rates or own.epochs not in tuning.epochs:
        grid = f"tuning has the rates {[*tuning.learning_rates]} and the epochs {[*tuning.epochs]}"
        raise ValueError(f"{grid}; they must hold the profile's own, {own.learning_rate} and {own.epochs}")
    networks = (profile.networks.expensive, profile.networks.cheap)
    pair = FeaturePair(profile, *(train_backbone(profile, name, L) for name in networks))
    schedules = [Schedule.ratio(pair.num_clips, x) for x in ratios]
    rows = []
    for epochs, rate in itertools.product(tuning.epochs, tuning.learning_rates):
        tried = {"learning_rate": rate, "epochs": epochs}
        settings = own.model_copy(update=tried | {"tuned": {}})
        pair.profile = profile.model_copy(update={"aggregator_training": settings})
        measured = measure_all(pair, itertools.product(aggregators, schedules), seeds=[SEED], split="val", anew=True)
        for name in aggregators:
            runs = [measured[name, schedule][0] for schedule in schedules]
            found = {"val_video1": round(mean(run.video1 for run in runs), 2)}
            found |= {"train_loss": round(mean(run.train_loss for run in runs), 4)}
            about = {"profile": profile.name, "L": L, "aggregator": name, "ratios": " ".join(map(str, ratios))}
            rows.append(about | {"seed": SEED, "videos": runs[0].census.used} | tried | found)
            log.info("%s, rate %g, %d epochs: val %.2f %%, loss %.3f", name, rate, epochs, *found.values())
    return rows


def choose(profile: Profile, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tuned]:
    """Give, by aggregator, the pair that is best on `val`, where the profile's own one is more than `NEAR` behind it.

    Of equal ones it is that of fewer epochs, then of the lower rate.
    """
    own: AggregatorTraining = profile.aggregator_training
    tried: dict[str, dict[tuple[int, float], float]] = defaultdict(dict)
    for row in rows:
        tried[row["aggregator"]][int(row["epochs"]), float(row["learning_rate"])] = float(row["val_video1"])
    chosen = {}
    for name, found in tried.items():
        best = max(sorted(found), key=found.get)
        if found[best] - found[own.epochs, own.learning_rate] > NEAR:
            chosen[name] = Tuned(learning_rate=best[1], epochs=best[0] if best[0] != own.epochs else None)
    return chosen


def read_tuning(profile: str | None = None) -> list[dict[str, str]]:
    """Read a profile's rows of `params/tuning.csv`, or all."""
    if not TABLE.is_file():
        return []
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if profile in (None, row["profile"])]


def keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows into `params/tuning.csv`, in place of those of the same profile."""
    kept = [row for row in read_tuning() if row["profile"] != rows[0]["profile"]]
    made = made_by(circumstances())
    write_rows(TABLE, [*kept, *({**row, "made": made} for row in rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose the learning rate and the epochs of each aggregator on val."""
    parser = argparse.ArgumentParser(prog="python -m workflow.tune", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a file in params/, such as study")
    parser.add_argument("-L", type=int, required=True, help="frames per clip, a multiple of 8")
    parser.add_argument("--aggregator", nargs="+", default=LEARNING, choices=LEARNING, metavar="X")
    parser.add_argument(
        "--ratio", nargs="+", type=int, default=RATIOS, metavar="X", help="cheap clips per expensive one"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    profile = load_profile(given.profile)
    with ended_by_signals():
        rows = try_grid(profile, given.L, given.aggregator, given.ratio)
    keep(rows)
    print("  tuned:")
    for name, chosen in choose(profile, rows).items():
        print(f"    {name}: {json.dumps(chosen.model_dump()).replace(chr(34), '')}")


if __name__ == "__main__":
    main()
