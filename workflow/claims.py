"""Print what all notebooks found of the paper's statements, and Table 4 at all lengths, as docs/results.md has them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from faster_lib.paths import FIGURES

MANY = 20  # verdicts, above which the table says which survive Holm's correction
HEAD = ("the paper says", "notebook", "profile", "difference", "over", "verdict")


def read_table(stem: str, *, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table, its first two columns as its index, and where it comes from, out of `<stem>.csv`."""
    text = (folder / f"{stem}.csv").read_text(encoding="utf-8")
    about = {key: json.loads(value) for key, value in re.findall(r"^# (.+?): (.+)$", text, re.MULTILINE)}
    frame = pd.read_csv(io.StringIO(text), skiprows=len(about))
    return frame.set_index(list(frame.columns[:2])), about


def write_claims(folder: Path) -> str:
    """Join the tables `*_claims.csv` of a folder, notebook by notebook and L by L, and name the command of each."""
    paths = sorted(
        folder.glob("*_claims.csv"), key=lambda path: ([*map(int, re.findall(r"\d+", path.stem))], path.stem)
    )
    tables = [(path.stem[:2], *read_table(path.stem, folder=folder)) for path in paths]
    parts = [frame.reset_index().assign(notebook=n, profile=about["profile"]) for n, frame, about in tables]
    claims = pd.concat(parts, ignore_index=True)
    is_decided = claims.p.notna()
    is_corrected = is_decided.sum() > MANY
    claims.loc[is_decided, "survives"] = survive_holm(claims.p[is_decided])
    head = [*HEAD, *(["after Holm's correction"] if is_corrected else [])]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for claim in claims.itertuples():
        margin = f" (margin {claim.margin:g})" if claim.margin else ""
        number = f"{claim.difference:+.1f} ± {claim.uncertainty:.1f}{margin}"
        cells = [f"{claim.statement} ({claim.source})", claim.notebook, claim.profile, number, claim.over]
        cells.append(f"**{claim.verdict}**")
        if is_corrected:
            is_verdict = claim.verdict in ("holds", "does not hold")
            cells.append(("stays" if claim.survives else "undecided") if is_verdict else "")
        lines.append(f"| {' | '.join(cells)} |")
    decided = ", ".join(f"{n} {verdict}" for verdict, n in claims.verdict.value_counts().items())
    lines += ["", f"In all {len(claims)}: {decided}.", "", "Made by:", ""]
    return "\n".join([*lines, *(f"- `{about['command']}`" for _, _, about in tables)])


def write_lengths(folder: Path, stem: str = "04_ratio_study_study_all") -> str:
    """Write Table 4 with all lengths as Markdown, a number and its ± in one cell."""
    frame, _ = read_table(stem, folder=folder)
    spreads = [column for column in frame if column.startswith("± ")]
    for column in spreads:
        number = f"measured {column.removeprefix('± ')} (%)"
        frame[number] = [f"{a:.1f} ± {b:.1f}" for a, b in zip(frame[number], frame[column], strict=True)]
    shown = frame.drop(columns=spreads).reset_index()
    rows = [list(shown), ["---"] * shown.shape[1], *shown.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def survive_holm(p: np.ndarray, level: float = 0.05) -> np.ndarray:
    """Say which tests stay at this level for all of them together.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    order, number = np.argsort(p), len(p)
    stays = np.empty(number, bool)
    stays[order] = np.maximum.accumulate(np.sort(p) * np.arange(number, 0, -1)) <= level
    return stays


if __name__ == "__main__":
    print(write_claims(FIGURES))
    print(write_lengths(FIGURES))
