"""List the results in runs/, or in the folder that `FASTER_RUNS` names: `make status`.

An entry is a folder `<profile>/<kind>/<label>-<hash>`. It is complete once it has a `record.json`. Before that it is
running while a process of this machine, or of one with the same folder, holds its lock; otherwise it was interrupted,
and whoever needs it next goes on. A damaged one has a record
that cannot be read. To delete a result, remove its folder.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

RUNS = Path(os.environ.get("FASTER_RUNS", Path(__file__).resolve().parent.parent / "runs"))


def find_entries(runs: Path) -> Iterator[Path]:
    """Find the folders of all results, by profile, kind and label."""
    for folder in sorted(runs.glob("*/*/*")):
        if folder.is_dir() and re.fullmatch(r".+-[0-9a-f]{16}", folder.name):
            yield folder


def state_of(entry: Path) -> str:
    """Say whether a result is complete, is being made, or was begun and interrupted."""
    if (entry / "record.json").is_file():
        return "complete"
    lock = entry.with_name(f"{entry.name}.lock")
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                pass
    except Timeout:
        return "running"
    return "begun"


def list_entries(runs: Path) -> Iterator[str]:
    """Give a line for each result and one for all: profile, kind, state, size, when it was finished, and its name."""
    sizes = []
    for entry in find_entries(runs):
        profile, kind, name = entry.relative_to(runs).parts
        state = state_of(entry)
        sizes.append(sum(path.lstat().st_size for path in entry.rglob("*") if not path.is_dir()) / 1e6)
        finished = ""
        if state == "complete":
            try:
                finished = json.loads((entry / "record.json").read_text(encoding="utf-8"))["finished"]
            except (OSError, ValueError, TypeError, KeyError):
                state = "damaged"
        yield f"{profile:<20} {kind:<12} {state:<9} {sizes[-1]:>10,.1f} MB  {finished:<20}  {name}"
    yield f"{len(sizes)} results in {runs}, {sum(sizes):,.1f} MB"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join(list_entries(RUNS)))
