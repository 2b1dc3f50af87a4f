"""Tests of the documentation: its numbers are those that the library has or counts, and its links lead somewhere."""

import re

import pytest

from faster_lib import paper
from faster_lib.flops import video_gmacs
from faster_lib.models.faster import Schedule
from faster_lib.paths import ROOT

PAGE = (ROOT / "docs" / "discrepancies.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]

# How each cell of paper.DISCREPANCIES is counted: expensive network, aggregator, schedule, L, and a divisor.
COUNTED = {
    (2, "R2D-26 L=16", "gmacs per clip"): ("r2plus1d_50", None, "C", 16, 1),
    (4, "All E", "L=16 gmacs"): ("r2plus1d_50", "fast_gru", "E" * 16, 16, 1),
    (6, "1:1 (FAST-GRU)", "R3D-50 gmacs"): ("r3d_50", "fast_gru", Schedule.ratio(8, 1), 32, 1),
    (6, "1:3 (FAST-GRU)", "R3D-50 gmacs"): ("r3d_50", "fast_gru", Schedule.ratio(8, 3), 32, 1),
    (7, "FASTER32", "gmacs per clip"): ("r3d_50", "fast_gru", Schedule.ratio(8, 1), 32, 8),
}


def count(expensive: str, aggregator: str | None, schedule: str, clip_frames: int, divisor: int = 1) -> float:
    gmacs = video_gmacs(expensive=expensive, cheap="r2d_26", aggregator=aggregator, schedule=schedule, L=clip_frames)
    return gmacs / divisor


def rows_of_table(first_header: str) -> list[list[str]]:
    """Give the cells of the page's only table whose first column has this header, the header's line first."""
    (start,) = re.finditer(rf"^\| {re.escape(first_header)} \|", PAGE, re.MULTILINE)
    lines = PAGE[start.start() :].split("\n\n")[0].splitlines()
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def rounded_as_written(value: float, text: str) -> str:
    """Write a number with as many decimals as a text has."""
    return f"{value:,.{len(text.partition('.')[2])}f}"


def test_the_page_lists_exactly_the_cells_that_the_library_knows_to_differ_as_they_are_printed():
    _, *rows = rows_of_table("table")
    listed = {(int(number), row, column): printed for number, row, column, printed, *_ in rows}
    assert listed == {key: paper.reported(*key).printed for key in paper.DISCREPANCIES}


@pytest.mark.parametrize("key", paper.DISCREPANCIES, ids=str)
def test_a_contradicting_count_is_given_as_the_library_counts_it(key):
    (row,) = (row for row in rows_of_table("table")[1:] if (int(row[0]), row[1], row[2]) == key)
    printed, counted, rounded = row[3:]
    value = count(*COUNTED[key])
    assert rounded_as_written(value, counted) == counted
    by_rule = paper.printed_gmacs(value, 16) if key[0] == 4 else round(value, 1)
    assert float(rounded) == by_rule != float(printed)


def count_clip(network: str, clip_frames: int) -> float:
    if network == "R2D-26":
        return count("r2plus1d_50", None, "C", clip_frames)
    return count({"R(2+1)D-50": "r2plus1d_50", "R3D-50": "r3d_50"}[network], None, "E", clip_frames)


def test_the_costs_on_which_the_page_builds_are_counted_so():
    (_, *lengths), *rows = rows_of_table("GFLOPs")
    for name, *cells in rows:
        if name == "S, FAST-GRU, a step":
            once, growing = 0.0, count("r2plus1d_50", "fast_gru", "CC", 8) - 2 * count_clip("R2D-26", 8)
        else:
            once = 2048 * 400 / 1e9  # the classifier's; all else grows in proportion to L, as the page says
            growing = count_clip(name.split(", ")[1], 8) - once
        for length, cell in zip(lengths, cells, strict=True):
            value = once + growing * int(length.removeprefix("L = ")) / 8
            assert rounded_as_written(value, cell) == cell, (name, length)


def test_the_layers_costs_add_up_to_the_count():
    (_, *networks), *rows = rows_of_table("1e6 MACs")
    for i, network in enumerate(networks, start=1):
        *layers, total = (float(row[i].replace(",", "")) for row in rows)
        assert sum(layers) == pytest.approx(total, abs=0.0035)  # six layers and the sum, each rounded
        assert rounded_as_written(1000 * count_clip(network, 8), rows[-1][i]) == rows[-1][i]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_relative_link_points_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if not re.match(r"[a-z]+:|#", link):
            assert (page.parent / link.split("#")[0]).exists(), link
