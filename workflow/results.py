"""Keep what stage 2 measured with the repository: `python -m workflow.results runs/study/aggregators/*`.

`params/results.csv` has a row for each measured cell: its entry, which networks, schedule, seed and tuning it has, what
a video costs in them (counted), its accuracies, a bit for each test video, and when and on what it was made. Where the
key of a cell fits, `measure_all` takes the row and trains nothing.
"""

import argparse
import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from faster_lib import build_aggregator, load_profile, video_gmacs
from faster_lib.paths import RESULTS
from faster_lib.store import REMEDY, hash_of, write_whole
from faster_lib.training.stage1 import build_network, name_backbone
from workflow.ship import folds_of, trained_in

log = logging.getLogger(__name__)


def row_of(folder: Path) -> dict[str, Any]:
    """Read a complete entry as a row; raises ValueError if its record is damaged."""
    path = folder / "record.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("check") != hash_of({**record, "check": None}):
        raise ValueError(f"{path} is damaged; {REMEDY}")
    measures = {**record["measures"], "seconds": record["seconds"]}
    census, marks = measures.pop("census"), measures.pop("correct")
    measures["made"] = made_by(record)
    facts = facts_of(record, int(re.search(r"-L(\d+)-", folder.name)[1]))
    return {"entry": folder.name, **facts, **measures, **census, "correct": f"{int(marks, 2):x}"}


def facts_of(record: Mapping[str, Any], L: int) -> dict[str, Any]:
    """Say what was measured, in words; networks and cost are blank where the profile trains others by now."""
    depends, name = record["depends"], record["profile"]
    aggregator, schedule, training = depends["aggregator"], depends["schedule"], depends.get("training", {})
    fold, expensive = known_networks(name, L).get(tuple(depends["networks"]), (None, None))
    return {
        "profile": name,
        "fold": fold,
        "expensive": expensive,
        "aggregator": aggregator,
        "schedule": schedule,
        "L": L,
        "seed": depends.get("seed"),
        "learning_rate": training.get("learning_rate"),
        "epochs": training.get("epochs"),
        "mflops": expensive and count_mflops(name, expensive, aggregator, schedule, L),
    }


@cache
def known_networks(name: str, L: int) -> dict[tuple[str, str], tuple[int | None, str]]:
    """Give the fold and the expensive network of each pair that a profile can train for L, by the pair's keys."""
    found = {}
    for each in folds_of(load_profile(name)):
        for expensive in (each.networks.expensive, "r3d_50"):
            pair = (name_backbone(each, network, L) for network in (expensive, each.networks.cheap))
            found[tuple(network.entry.key for network in pair)] = each.data.fold, expensive
    return found


@cache
def count_mflops(name: str, expensive: str, aggregator: str, schedule: str, L: int) -> float:
    """Count a video's cost in a profile's networks, in 1e6 multiply-accumulates."""
    profile = load_profile(name)
    source, size_px = trained_in(profile), profile.data.crop_px
    networks = {"expensive": build_network(source, expensive), "cheap": build_network(source, profile.networks.cheap)}
    unit = build_aggregator(aggregator, networks["expensive"].channels, profile.networks.reduction)
    return round(1000 * video_gmacs(**networks, aggregator=unit, schedule=schedule, L=L, size_px=size_px), 2)


def made_by(about: Mapping[str, Any]) -> str:
    """Say by which commit, on what and when a result was made, out of its record or of `circumstances`."""
    return f"commit {about['commit']}, {about['device']}, {about['finished'][:10]}"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table whose columns are those of the first row."""
    table = csv.DictWriter(text := io.StringIO(), list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue().encode())


def write_results(folders: Iterable[Path], path: Path = RESULTS, *, keep: bool = False) -> int:
    """Write the rows of these entries, in the order of their names; give the number of rows of the file.

    They come in place of all rows before, or `keep` keeps those of other entries.
    """
    rows = {folder.name: row_of(folder) for folder in folders}
    if keep and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["entry"]: row for row in csv.DictReader(file)} | rows
    write_rows(path, [rows[name] for name in sorted(rows)])
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write params/results.csv from the folders of measured cells."""
    parser = argparse.ArgumentParser(prog="python -m workflow.results", description=main.__doc__)
    parser.add_argument("entries", nargs="+", type=Path, help="folders such as runs/study/aggregators/*")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", action="store_true", help="the rows of other cells too")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    complete = [folder for folder in given.entries if (folder / "record.json").is_file()]
    log.info("%d results in %s", write_results(complete, given.out, keep=given.keep), given.out)


if __name__ == "__main__":
    main()
