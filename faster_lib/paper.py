"""The numbers that the paper prints: every cell of Tables 2 to 8, and one of Fig. 3 that its text states.

Nothing here is computed or corrected. A number that our own count contradicts stays as it is printed.

Units:
    percent: accuracy, 0 to 100.
    gmacs, gmacs_per_clip: headed "GFLOPs" in the paper, whose convention is 1 FLOP = 1 multiply-accumulate, so
        1 gmac = 1e9 multiply-accumulates: of all clips together, or of one clip. The entries of Table 7 for other
        methods are quoted by the paper from elsewhere; it does not say whether they follow that convention.
    clips, seconds: number of clips per video; run time summed over 100 videos (Table 5).
    flag: "✓" or "-", the pre-training columns of Tables 7 and 8.

Source: Zhu et al., "FASTER Recurrent Networks for Efficient Video Classification", AAAI 2020.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# How the last words of a column key decide its unit.
_UNITS = {"accuracy": "percent", "gmacs": "gmacs", "gmacs per clip": "gmacs_per_clip"}
_UNITS |= {"clips": "clips", "seconds": "seconds", "pre-training": "flag"}
_NO_NUMBERS = {"✓": "✓", "-": "-", "N/A": None, "": None}

# The tables line by line. Source: FASTER (AAAI 2020), the table of that number. The first line and the first cell of
# every other line are our keys; all other cells are spelled as printed. " x ", the paper's multiplication sign,
# separates two columns, as "|" does.
_PRINTED = {
    2: """
        Model, input     | accuracy | gmacs per clip x clips
        R2D-26 L=8       | 63.3     | 3.2 x 32
        R2D-26 L=16      | 65.5     | 6.0 x 16
        R2D-26 L=32      | 66.7     | 12.7 x 8
        R(2+1)D-50 L=8   | 70.1     | 30.0 x 32
        R(2+1)D-50 L=16  | 72.3     | 60.0 x 16
        R(2+1)D-50 L=32  | 74.5     | 119.9 x 8
    """,
    3: """
        Model     | N=2 accuracy | N=4 accuracy | N=8 accuracy | N=16 accuracy | N=32 accuracy
        Avg. pool | 60.7         | 63.9         | 64.2         | 64.0          | 63.8
        Concat    | 61.6         | 65.9         | 66.3         | 62.3          | 58.2
        LSTM      | 61.3         | 66.2         | 66.3         | 66.3          | 64.7
        GRU       | 61.1         | 65.6         | 66.5         | 66.1          | 65.8
        FAST-GRU  | 61.1         | 65.6         | 67.2         | 67.4          | 67.2
    """,
    4: """
        #E :#C | L=8 accuracy | L=8 gmacs | L=16 accuracy | L=16 gmacs | L=32 accuracy | L=32 gmacs
        All E  | 70.6         | 982.4     | 72.9          | 980.2      | 74.9          | 979.2
        1:1    | 70.5         | 553.6     | 72.9          | 552.0      | 74.6          | 550.4
        1:3    | 70.1         | 339.2     | 72.1          | 337.6      | 73.3          | 336.0
        1:7    | 69.6         | 230.4     | 71.7          | 230.4      | 71.3          | 228.8
        1:15   | 69.0         | 176.0     | 69.9          | 176.0      |               |
        1:31   | 67.2         | 150.4     |               |            |               |
    """,
    5: """
        Model            | seconds | gmacs | accuracy
        All C (Avg pool) | 15.1    | 101.3 | 66.7
        All E (Avg pool) | 75.7    | 959.3 | 74.5
        FASTER32         | 35.3    | 550.4 | 74.6
    """,
    6: """
        #E :#C            | R(2+1)D-50 accuracy | R(2+1)D-50 gmacs | R3D-50 accuracy | R3D-50 gmacs
        All E (Avg. pool) | 74.5                | 959.3            | 74.4            | 942.7
        1:1 (FAST-GRU)    | 74.6                | 550.4            | 75.3            | 542.1
        1:3 (FAST-GRU)    | 73.3                | 336.0            | 73.9            | 331.9
    """,
    # The page prints I3D and S3D twice each; the bracket in the key is ours and repeats the pre-training column.
    7: """
        Model          | accuracy | ImageNet pre-training | gmacs per clip x clips
        I3D (ImageNet) | 72.1     | ✓                     | 108 x 4
        S3D (ImageNet) | 72.2     | ✓                     | 66.4 x N/A
        MF-Net         | 72.8     | ✓                     | 11.1 x 50
        A2-Net         | 74.6     | ✓                     | 40.8 x 30
        S3D-G          | 74.7     | ✓                     | 71.4 x N/A
        NL I3D-50      | 76.5     | ✓                     | 282 x 30
        NL I3D-101     | 77.7     | ✓                     | 359 x 30
        I3D (scratch)  | 68.4     | -                     | 108 x 4
        STC            | 68.7     | -                     | N/A x N/A
        ARTNet         | 69.2     | -                     | 23.5 x 250
        S3D (scratch)  | 69.4     | -                     | 66.4 x N/A
        ECO            | 70.0     | -                     | N/A x N/A
        R(2+1)D-34     | 72.0     | -                     | 152 x 115
        FASTER16       | 71.7     | -                     | 14.4 x 16
        FASTER32       | 75.3     | -                     | 67.7 x 8
    """,
    8: """
        Model      | ImageNet pre-training | Kinetics pre-training | UCF-101 accuracy | HMDB-51 accuracy
        STC        | -                     | ✓                     | 95.8             | 72.6
        ARTNet     | -                     | ✓                     | 94.3             | 70.9
        ECO        | -                     | ✓                     | 93.6             | 68.4
        R(2+1)D-34 | -                     | ✓                     | 96.8             | 74.5
        I3D        | ✓                     | ✓                     | 95.6             | 74.8
        S3D        | ✓                     | ✓                     | 96.8             | 75.9
        FASTER32   | -                     | ✓                     | 96.9             | 75.7
    """,
}


@dataclass(frozen=True)
class Reported:
    """One cell of a printed table, found by the keys of its row and column.

    `printed` is the cell as it stands on the page. `value` is its number, "✓" or "-", or None where there is none:
    "" in Table 4 (a ratio that needs more clips than there are), "N/A" in Table 7 (what the cited papers leave out).
    """

    value: float | str | None
    unit: str
    table: int
    row: str
    column: str
    printed: str


def _read(number: int, page: str) -> Iterator[Reported]:
    (_, *columns), *lines = (re.split(r" *\| *| x ", line.strip()) for line in page.strip().splitlines())
    for row, *cells in lines:
        for column, printed in zip(columns, cells, strict=True):
            value = _NO_NUMBERS[printed] if printed in _NO_NUMBERS else float(printed)
            unit = next(unit for end, unit in _UNITS.items() if column.endswith(end))
            yield Reported(value, unit, number, row, column, printed)


REPORTED = tuple(cell for number, page in _PRINTED.items() for cell in _read(number, page))


def table(number: int) -> tuple[Reported, ...]:
    """Return every cell of a table, row by row in the printed order; KeyError if it is not one of 2 to 8."""
    if number not in _PRINTED:
        raise KeyError(f"Table {number!r} is not recorded; choose one of {list(_PRINTED)}.")
    return tuple(cell for cell in REPORTED if cell.table == number)


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
DISCREPANCIES = {
    (2, "R2D-26 L=16", "gmacs per clip"): (
        "6.33 counted; Table 4's own cells need 6.3, and 12.7 at L = 32 is twice that"
    ),
    (4, "All E", "L=16 gmacs"): (
        "980.2 / 16 has no one-decimal value, so the printed total breaks the table's own rounding"
    ),
    (6, "1:1 (FAST-GRU)", "R3D-50 gmacs"): "542.17 counted; the last digit",
    (6, "1:3 (FAST-GRU)", "R3D-50 gmacs"): "331.82 counted; the last digit",
    (7, "FASTER32", "gmacs per clip"): "67.77 counted, cut off instead of rounded",
}

# x of the patterns 1:x that Table 4 fills, by clip length L; 0 stands for "All E". Source: Table 4, cells with a value.
TABLE_4_RATIOS = {8: (0, 1, 3, 7, 15, 31), 16: (0, 1, 3, 7, 15), 32: (0, 1, 3, 7)}

# Frames processed per video, N x L. Source: "Setups for clip-level backbones" ("to be 256, i.e., N x L = 256").
VIDEO_FRAMES = 256

# What the text says of Fig. 3, by network and number of clips: averaging 4 expensive clips of 8 frames.
# Source: "FASTER vs. average pooling" ("it takes 119 GFLOPs ... to achieve 67.1%").
FIGURE_3_TEXT = {
    ("R(2+1)D-50", 4): Reported(67.1, "percent", 3, "Fig. 3, text", "averaging 4 expensive clips", "67.1"),
}
