"""Keep what stage 2 measured with the repository: `python -m workflow.results runs/study/aggregators/*`.

`params/results.csv` has a row for each measured cell: its entry, its accuracies, a bit for each test video, and when
and on what it was made. Where the key of a cell fits, `measure_all` takes the row and trains nothing.
"""

import argparse
import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faster_lib.paths import RESULTS
from faster_lib.store import REMEDY, hash_of, write_whole

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
    return {"entry": folder.name, **measures, **census, "correct": f"{int(marks, 2):x}"}


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
