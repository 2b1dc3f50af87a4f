"""Tests of faster_lib.paper against the page: sums, the paper's own prose, and agreement between its tables."""

import pytest

from faster_lib import paper

# Per column (plain sum, sum weighted by line number 1, 2, ...), a "✓" as 1; blank, "N/A" and "-" as 0. Added up from
# the text of the printed paper, not from paper.py. The two sums notice a wrong number and two swapped lines.
PAGE_SUMS = {
    2: {"accuracy": (412.4, 1483.3), "gmacs per clip": (231.8, 1192.7), "clips": (112, 344)},
    3: {
        "N=2 accuracy": (305.8, 917.7),
        "N=4 accuracy": (327.2, 984.7),
        "N=8 accuracy": (330.5, 997.7),
        "N=16 accuracy": (326.1, 988.9),
        "N=32 accuracy": (319.7, 973.5),
    },
    4: {
        "L=8 accuracy": (417.0, 1448.5),
        "L=8 gmacs": (2432.0, 5811.2),
        "L=16 accuracy": (359.5, 1071.3),
        "L=16 gmacs": (2276.2, 4898.6),
        "L=32 accuracy": (294.1, 729.2),
        "L=32 gmacs": (2094.4, 4003.2),
    },
    5: {"seconds": (126.1, 272.4), "gmacs": (1611.0, 3671.1), "accuracy": (215.8, 439.5)},
    6: {
        "R(2+1)D-50 accuracy": (222.4, 443.6),
        "R(2+1)D-50 gmacs": (1845.7, 3068.1),
        "R3D-50 accuracy": (223.6, 446.7),
        "R3D-50 gmacs": (1816.7, 3022.6),
    },
    7: {
        "accuracy": (1085.3, 8639.9),
        "ImageNet pre-training": (7, 28),
        "gmacs per clip": (1370.7, 10021.8),
        "clips": (537, 5035),
    },
    8: {
        "ImageNet pre-training": (2, 11),
        "Kinetics pre-training": (7, 28),
        "UCF-101 accuracy": (669.8, 2689.5),
        "HMDB-51 accuracy": (512.8, 2076.9),
    },
}

# Lines, cells and cells without a value, counted on the page.
PAGE_COUNTS = {2: (6, 18, 0), 3: (5, 25, 0), 4: (6, 36, 6), 5: (3, 9, 0), 6: (3, 12, 0), 7: (15, 60, 7), 8: (7, 28, 0)}


def value(table: int, row: str, column: str) -> float:
    return paper.reported(table, row, column).value


def as_number(cell: paper.Reported) -> float:
    return {"✓": 1, "-": 0, None: 0}.get(cell.value, cell.value)


@pytest.mark.parametrize("number", PAGE_COUNTS)
def test_a_table_has_the_lines_and_cells_of_the_page(number):
    cells = paper.table(number)
    without_value = sum(cell.value is None for cell in cells)
    assert (len({cell.row for cell in cells}), len(cells), without_value) == PAGE_COUNTS[number]


@pytest.mark.parametrize("number", PAGE_SUMS)
def test_the_columns_of_a_table_add_up_as_on_the_page(number):
    sums = {}
    for cell in paper.table(number):
        sums.setdefault(cell.column, []).append(as_number(cell))
    sums = {
        column: (sum(numbers), sum(line * x for line, x in enumerate(numbers, 1))) for column, numbers in sums.items()
    }
    assert list(sums) == list(PAGE_SUMS[number])
    for column, expected in PAGE_SUMS[number].items():
        assert sums[column] == pytest.approx(expected, rel=0, abs=0.01), column


def test_the_tables_together_are_all_records_and_no_key_repeats():
    assert tuple(cell for number in range(2, 9) for cell in paper.table(number)) == paper.REPORTED
    keys = [(cell.table, cell.row, cell.column) for cell in paper.REPORTED]
    assert len(set(keys)) == len(keys)
    assert all(paper.reported(*key) is cell for key, cell in zip(keys, paper.REPORTED, strict=True))


def test_every_value_lies_in_the_range_of_its_unit():
    ranges = {"accuracy": (50, 100), "gmacs": (100, 1000), "per clip": (3, 360), "clips": (4, 250), "seconds": (15, 76)}
    for cell in paper.REPORTED:
        if cell.column.endswith("pre-training"):
            assert cell.value in ("✓", "-"), cell
        elif cell.value is not None:
            ((low, high),) = (bounds for end, bounds in ranges.items() if cell.column.endswith(end))
            assert low <= cell.value <= high, cell
            assert float(cell.printed) == cell.value, cell


def test_a_cell_without_value_says_whether_it_is_blank_or_not_available():
    kinds = {(cell.table, cell.printed) for cell in paper.REPORTED if cell.value is None}
    assert kinds == {(4, ""), (7, "N/A")}
    assert paper.reported(7, "STC", "gmacs per clip").printed == "N/A"
    assert value(7, "S3D (scratch)", "gmacs per clip") == 66.4


@pytest.mark.parametrize(
    ("larger", "smaller", "stated"),
    [  # the stated differences are from the paper's prose
        ((3, "Concat", "N=8 accuracy"), (3, "Avg. pool", "N=8 accuracy"), 2.1),
        ((3, "Concat", "N=8 accuracy"), (3, "Concat", "N=32 accuracy"), 8.1),
        ((3, "FAST-GRU", "N=32 accuracy"), (3, "LSTM", "N=32 accuracy"), 2.5),
        ((3, "FAST-GRU", "N=32 accuracy"), (3, "GRU", "N=32 accuracy"), 1.4),
        ((4, "1:15", "L=8 accuracy"), (4, "1:31", "L=8 accuracy"), 1.8),
        ((4, "1:15", "L=8 gmacs"), (4, "1:31", "L=8 gmacs"), 25.6),
        ((6, "1:1 (FAST-GRU)", "R3D-50 accuracy"), (6, "All E (Avg. pool)", "R3D-50 accuracy"), 0.9),
        ((7, "FASTER32", "accuracy"), (7, "R(2+1)D-34", "accuracy"), 3.3),
        ((7, "FASTER16", "accuracy"), (7, "I3D (scratch)", "accuracy"), 3.3),
        ((7, "FASTER32", "accuracy"), (7, "A2-Net", "accuracy"), 0.7),
    ],
)
def test_a_difference_stated_in_the_prose_follows_from_the_cells(larger, smaller, stated):
    assert value(*larger) - value(*smaller) == pytest.approx(stated, abs=0.01)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, "FAST-GRU", "N=32 accuracy"), (4, "1:31", "L=8 accuracy")),
        ((2, "R2D-26 L=32", "accuracy"), (5, "All C (Avg pool)", "accuracy")),
        ((2, "R(2+1)D-50 L=32", "accuracy"), (5, "All E (Avg pool)", "accuracy")),
        ((2, "R(2+1)D-50 L=8", "accuracy"), (4, "1:3", "L=8 accuracy")),
        ((4, "1:1", "L=32 accuracy"), (5, "FASTER32", "accuracy")),
        ((4, "1:1", "L=32 gmacs"), (5, "FASTER32", "gmacs")),
        ((4, "1:1", "L=32 gmacs"), (6, "1:1 (FAST-GRU)", "R(2+1)D-50 gmacs")),
        ((4, "1:3", "L=32 gmacs"), (6, "1:3 (FAST-GRU)", "R(2+1)D-50 gmacs")),
        ((5, "All E (Avg pool)", "gmacs"), (6, "All E (Avg. pool)", "R(2+1)D-50 gmacs")),
        ((4, "1:7", "L=16 accuracy"), (7, "FASTER16", "accuracy")),
        ((6, "1:1 (FAST-GRU)", "R3D-50 accuracy"), (7, "FASTER32", "accuracy")),
    ],
)
def test_a_result_printed_in_two_tables_is_the_same_in_both(one, other):
    assert value(*one) == value(*other)


def test_table_4_fills_exactly_these_ratios():
    for clip_frames, ratios in paper.TABLE_4_RATIOS.items():
        cells = [cell for cell in paper.table(4) if cell.column == f"L={clip_frames} accuracy"]
        rows = ["All E" if x == 0 else f"1:{x}" for x in ratios]
        assert [cell.row for cell in cells if cell.value is not None] == rows
    assert [*paper.TABLE_4_RATIOS] == [8, 16, 32]


def test_a_ratio_is_filled_where_the_video_has_a_whole_group_of_clips():
    for clip_frames, ratios in paper.TABLE_4_RATIOS.items():
        num_clips = paper.VIDEO_FRAMES // clip_frames
        assert ratios == tuple(x for x in (0, 1, 3, 7, 15, 31) if 1 + x <= num_clips)


@pytest.mark.parametrize(
    ("total", "num_clips", "printed"), [(550.5, 8, 550.4), (982.0, 32, 982.4), (230.0, 16, 230.4), (0.0, 1, 0.0)]
)
def test_a_counted_total_is_rounded_per_clip(total, num_clips, printed):
    assert paper.printed_gmacs(total, num_clips) == printed


def test_the_costs_of_table_4_but_one_are_rounded_per_clip():
    costs = [cell for cell in paper.table(4) if cell.column.endswith("gmacs") and cell.value is not None]
    clips = {"L=8 gmacs": 32, "L=16 gmacs": 16, "L=32 gmacs": 8}
    exceptions = [cell for cell in costs if paper.printed_gmacs(cell.value, clips[cell.column]) != cell.value]
    assert exceptions == [paper.reported(4, "All E", "L=16 gmacs")]


@pytest.mark.parametrize(("total", "num_clips"), [(550.5, 0), (-1.0, 8), (float("nan"), 8)])
def test_rounding_refuses_a_cost_that_cannot_be_and_quotes_it(total, num_clips):
    with pytest.raises(ValueError, match=f"num_clips={num_clips} and total={total}"):
        paper.printed_gmacs(total, num_clips)


def test_a_wrong_key_is_refused_with_the_key_and_the_valid_ones():
    with pytest.raises(KeyError) as unknown_row:
        paper.reported(4, "1:2", "L=8 gmacs")
    with pytest.raises(KeyError) as unknown_column:
        paper.reported(4, "1:3", "L=64 gmacs")
    assert all(key in unknown_row.value.args[0] for key in ("'1:2'", "'All E'", "'1:31'"))
    assert all(key in unknown_column.value.args[0] for key in ("'L=64 gmacs'", "'L=8 accuracy'", "'L=32 gmacs'"))
    for ask in (lambda: paper.table(9), lambda: paper.reported(9, "1:3", "L=8 gmacs")):
        with pytest.raises(KeyError, match=r"Table 9 .*\[2, 3, 4, 5, 6, 7, 8\]"):
            ask()
