"""Print what all notebooks found of the paper's statements, as the Markdown table of docs/results.md."""

import re
from pathlib import Path

import pandas as pd

from faster_lib.paths import FIGURES
from faster_lib.report.tables import read_table


def write_claims(folder: Path) -> str:
    """Join the tables `*_claims.csv` of a folder, notebook by notebook and L by L, and name the command of each."""
    paths = sorted(
        folder.glob("*_claims.csv"), key=lambda path: ([*map(int, re.findall(r"\d+", path.stem))], path.stem)
    )
    tables = [(path.stem[:2], *read_table(path.stem, folder=folder)) for path in paths]
    parts = [frame.reset_index().assign(notebook=n, profile=about["profile"]) for n, frame, about in tables]
    lines = ["| the paper says | notebook | profile | difference | verdict |", "| --- | --- | --- | --- | --- |"]
    for claim in pd.concat(parts).itertuples():
        margin = f" (margin {claim.margin:g})" if claim.margin else ""
        number = f"{claim.difference:+.1f} ± {claim.uncertainty:.1f}{margin}"
        where = f"{claim.notebook} | {claim.profile}"
        lines.append(f"| {claim.statement} ({claim.source}) | {where} | {number} | **{claim.verdict}** |")
    lines += ["", "Made by:", "", *(f"- `{about['command']}`" for _, _, about in tables)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(write_claims(FIGURES))
