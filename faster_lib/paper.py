"""The numbers that the paper prints: every cell of Tables 2 to 8, as `params/paper_tables.txt` has them.

Nothing is computed or corrected: a number that our own count contradicts stays as it is printed.

The last words of a column's key are its unit:
    - accuracy: percent, 0 to 100.
    - gmacs, gmacs per clip: 1e9 multiply-accumulates of all clips together, or of one. The paper heads them "GFLOPs"
      and counts 1 FLOP for each; whether what Table 7 quotes of other methods does so too, it does not say.
    - clips, seconds: number of clips per video; run time summed over 100 videos (Table 5).
    - pre-training: "✓" or "-" (Tables 7 and 8).

Source: Zhu et al., "FASTER Recurrent Networks for Efficient Video Classification", AAAI 2020.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from faster_lib.paths import PARAMS

_NO_NUMBERS = {"✓": "✓", "-": "-", "N/A": None, "": None}
# The tables as the file has them, by number.
_PRINTED = dict(re.findall(r"^Table (\d)\n((?:.+\n)+)", (PARAMS / "paper_tables.txt").read_text("utf-8"), re.MULTILINE))


@dataclass(frozen=True)
class Reported:
    """One cell of a printed table, found by the keys of its row and column.

    `printed` is the cell as it stands on the page. `value` is its number, "✓" or "-", or None where there is none:
    "" in Table 4 (a ratio that needs more clips than there are), "N/A" in Table 7 (what the cited papers leave out).
    """

    value: float | str | None
    table: int
    row: str
    column: str
    printed: str


def _read(number: int, page: str) -> Iterator[Reported]:
    (_, *columns), *lines = (re.split(r" *\| *| x ", line.strip()) for line in page.strip().splitlines())
    for row, *cells in lines:
        for column, printed in zip(columns, cells, strict=True):
            value = _NO_NUMBERS[printed] if printed in _NO_NUMBERS else float(printed)
            yield Reported(value, number, row, column, printed)


REPORTED = tuple(cell for number, page in _PRINTED.items() for cell in _read(int(number), page))


def table(number: int) -> tuple[Reported, ...]:
    """Return every cell of a table, row by row in the printed order; KeyError if it is not one of 2 to 8."""
    if not (cells := tuple(cell for cell in REPORTED if cell.table == number)):
        raise KeyError(f"Table {number!r} is not recorded; choose one of {[int(each) for each in _PRINTED]}.")
    return cells


def reported(number: int, row: str, column: str) -> Reported:
    """Return one cell, for instance `reported(4, "1:3", "L=16 gmacs")`.

    Raises: KeyError if the table has no such row or column; the message lists those it has.
    """
    cells = {(cell.row, cell.column): cell for cell in table(number)}
    if (row, column) not in cells:
        rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
        raise KeyError(f"Table {number} has no row {row!r} with column {column!r}; rows: {rows}; columns: {columns}.")
    return cells[row, column]


def printed_gmacs(total: float, num_clips: int) -> float:
    """Round a counted total of so many clips as Table 4 does: per clip to one decimal, then times the clips.

    The paper does not state the rule. We infer it: every cost of Table 4 but 980.2 (All E, 16 frames) is a one-decimal
    number times the number of clips. Average pooling in Tables 5 and 6, and R3D-50 in Table 6, do not follow it.

    Raises: ValueError if num_clips is below 1 or total is negative.
    """
    if num_clips < 1 or not total >= 0:
        raise ValueError(f"Need num_clips >= 1 and total >= 0, got num_clips={num_clips!r} and total={total!r}.")
    return round(round(total / num_clips, 1) * num_clips, 1)


# Every printed cost that a count of Table 1's networks contradicts, as (table, row, column), and what is known of it.
# Source: our counts, to be seen in the notebooks of these tables.
_ALL_E = "980.2 / 16 has no one-decimal value, so the printed total breaks the table's own rounding"
_R2D_26 = "6.33 counted; Table 4's own cells need 6.3, and 12.7 at L = 32 is twice that"
DISCREPANCIES = {
    (2, "R2D-26 L=16", "gmacs per clip"): _R2D_26,
    (4, "All E", "L=16 gmacs"): _ALL_E,
    (6, "1:1 (FAST-GRU)", "R3D-50 gmacs"): "542.17 counted; the last digit",
    (6, "1:3 (FAST-GRU)", "R3D-50 gmacs"): "331.82 counted; the last digit",
    (7, "FASTER32", "gmacs per clip"): "67.77 counted, cut off instead of rounded",
}

# x of the patterns 1:x that Table 4 fills, by clip length L; 0 stands for "All E". Source: Table 4, cells with a value.
TABLE_4_RATIOS = {8: (0, 1, 3, 7, 15, 31), 16: (0, 1, 3, 7, 15), 32: (0, 1, 3, 7)}

# Frames processed per video, N x L. Source: "Setups for clip-level backbones" ("to be 256, i.e., N x L = 256").
VIDEO_FRAMES = 256
