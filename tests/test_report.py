"""Tests of tables and figures: the one form, what is written and read again, points, refusals."""

from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from faster_lib import paper
from faster_lib.data.datasets import Census
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Schedule
from faster_lib.profiles import load_profile
from faster_lib.report import claims
from faster_lib.report import tables as report
from faster_lib.report.figures import Panel, Series, caption_of, draw_panels, measured_series, video_mflops
from faster_lib.report.tables import Row, compare
from faster_lib.training.features import FeaturePair
from workflow.claims import read_table

TINY = load_profile("tiny")
KINETICS = load_profile("kinetics400")
CELL = paper.reported(4, "1:3", "L=16 accuracy")
ROWS = [
    Row("GFLOPs", "1:3", paper.reported(4, "1:3", "L=16 gmacs"), 337.42, 337.6),
    Row("GFLOPs", "All E", paper.reported(4, "All E", "L=16 gmacs"), 980.77, 980.8),
    Row("video@1 (%)", "1:3", CELL, measured=[50.0, 51.0, 52.0]),
    Row("video@1 (%)", "1:7", paper.reported(4, "1:7", "L=16 accuracy")),
    Row("MFLOPs, small", "1:3", counted=12.25),
]


def table(rows=ROWS, profile=TINY):
    return compare(rows, profile=profile, caption="Table 4 & more", command="papermill a.ipynb")


def test_each_number_stands_in_the_column_of_its_kind_and_the_status_says_what_it_is():
    cells = table().frame
    assert tuple(cells.columns) == report.COLUMNS
    exact, differing, measured, unrun, counted = (cells.iloc[i] for i in range(5))
    assert (exact.reported, exact.counted, exact.difference, exact.status) == (337.6, 337.42, 0, "exact")
    assert (differing.difference, differing.status[:26]) == (0.6, "differs: 980.2 / 16 has no")
    assert (measured.reported, measured.measured, measured["±"], measured.runs) == (72.1, 51.0, 1.0, 3)
    assert measured.status == "measured at tiny scale" and pd.isna(measured.difference) and pd.isna(measured.counted)
    assert unrun.status == "not run: needs Kinetics" and pd.isna(unrun.measured) and unrun.runs == ""
    assert counted.status == "counted" and pd.isna(counted.reported)


def test_an_accuracy_is_compared_with_the_papers_at_its_own_scale_alone():
    assert table(profile=KINETICS).frame.iloc[2]["difference"] == pytest.approx(-21.1)
    with pytest.raises(ValueError, match=r"'video@1 \(%\)', '1:3'\) is there twice"):
        table([ROWS[2], ROWS[2]])


def test_a_table_shows_caption_cells_and_command_as_text_and_as_html():
    text, page = repr(table()), table()._repr_html_()
    for shown in (text, page):
        assert "made by: " in shown and "papermill a.ipynb" in shown and "980.77" in shown and "NaN" not in shown
    assert text.startswith("Table 4 & more\n") and "Table 4 &amp; more" in page


def test_a_table_shows_no_empty_column_and_equally_many_decimals_for_one_quantity():
    cells = [Row("GFLOPs <&>", name, counted=value) for name, value in (("a", 60.0), ("b", 119.92), ("<c>", 1234567.0))]
    counted = table([*cells, Row("M", "a", counted=3.0)])
    assert list(counted.frame.columns) == list(report.COLUMNS), "the file has them all"
    text, page = repr(counted), counted._repr_html_()
    assert text.splitlines()[2].split() == ["counted", "status"]
    assert [line.split()[-2] for line in text.splitlines()[4:8]] == ["60.00", "119.92", "1234567.00", "3"]
    assert "GFLOPs &lt;&amp;&gt;" in page and "&lt;c&gt;" in page and "<c>" not in page
    other = report.Table(pd.DataFrame({"n": [1, 20], "share": [0.5, 1.0]}, index=["x", "y"]), "caption", "command")
    assert [line.split() for line in repr(other).splitlines()[3:5]] == [["x", "1", "0.5"], ["y", "20", "1.0"]]


def test_saved_files_hold_the_table_its_origin_and_the_same_bytes_each_time(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        figure = draw_panels(
            [Panel("reported", "GFLOPs", "video@1 (%)", [Series("FAST-GRU", [1, 10], [50, 60], [1, 2], ["a", "b"])])],
            title="A title",
            caption="A caption",
        )
        report.save("stem", figure, table(), profile="tiny", seeds=[0, 1, 2], seconds=12.3, folder=folder)
        plt.close(figure)
    for suffix in ("png", "svg", "csv"):
        first, second = ((tmp_path / name / f"stem.{suffix}").read_bytes() for name in "ab")
        assert first == second, suffix
    frame, about = read_table("stem", folder=tmp_path / "a")
    assert about | {"profile": "tiny", "seeds": [0, 1, 2], "seconds": 12, "command": "papermill a.ipynb"} == about
    assert {"device", "versions", "commit", "caption"} <= set(about)
    assert frame.loc[("video@1 (%)", "1:3"), "measured"] == 51.0
    assert frame.loc[("GFLOPs", "All E"), "status"].endswith("breaks the table's own rounding")


def results(*marks: str, **more) -> list[SimpleNamespace]:
    """Results of `measure_all`, one for each seed, of which each video has a 1 or 0."""
    return [SimpleNamespace(correct=mark, video1=100 * mark.count("1") / len(mark), **more) for mark in marks]


def test_a_command_names_every_parameter_as_papermill_takes_it():
    assert (
        report.command("04_x", profile="tiny", L=16)
        == "papermill notebooks/04_x.ipynb out.ipynb -p profile tiny -p L 16"
    )
    assert report.command("04_x", L=8, seeds=[0, 1]).endswith(" -p L 8 -y '{seeds: [0, 1]}'")


@pytest.mark.parametrize(
    ("clip_frames", "ratios"), [(8, [0, 1, 3, 7, 15, 31]), (16, [0, 1, 3, 7, 15]), (32, [0, 1, 3, 7])]
)
def test_an_empty_list_of_ratios_means_those_of_table_4(clip_frames, ratios):
    assert list(report.check_ratios([], clip_frames, TINY)) == ratios


@pytest.mark.parametrize(
    ("clip_frames", "ratios", "quoted"),
    [
        (12, [], "12.*multiple of 8"),
        (24, [], "24.*256.*8, 16, 32"),
        (16, [2], r"1:2.*16 clips.*1:0, 1:1, 1:3, 1:7, 1:15"),
        (16, [31], "1:31"),
        (16, [1, 1], r"\[1, 1\]"),
        (16, ["1"], "'1'"),
        (16, "[0, 1]", "must be a list"),
        ("16", [], "'16'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_with_the_value(clip_frames, ratios, quoted):
    with pytest.raises(ValueError, match=quoted):
        report.check_ratios(ratios, clip_frames, TINY)


@pytest.mark.parametrize(
    ("numbers", "quoted"),
    [
        ([], r"n is \[\]; it must be a list"),
        ("0", "n is '0'; it must be a list"),
        ([0, 0], r"n is \[0, 0\]; each number may stand there once"),
        ([-1], r"n is \[-1\]; each must be a whole number of at least 0 and at most 9"),
        ([10], r"n is \[10\]"),
        ([0.5], r"n is \[0.5\]"),
        ([True], r"n is \[True\]"),
    ],
)
def test_wrong_whole_numbers_are_refused_with_the_value(numbers, quoted):
    with pytest.raises(ValueError, match=quoted):
        report.check_whole_numbers("n", numbers, least=0, most=9)
    assert report.check_whole_numbers("n", (9, 0), least=0, most=9) == [9, 0]


def test_real_videos_get_rows_of_macro_f1_and_of_the_commonest_class_and_generated_ones_do_not():
    cells = [("fast_gru", Schedule("EC")), ("avg_pool", Schedule("CC"))]
    rows = [Row("video@1 (%), FAST-GRU", "1:1", measured=[80.0]), Row("video@1 (%), averaging", "All C", measured=[70])]

    def rows_of(profile, **census):
        more = {"commonest": 68.754, "video1_of_expected": 64.0, "census": Census(**census)}
        measured = {cell: results("1", macro_f1=50.0 + n, **more) for n, cell in enumerate(cells)}
        return report.rows_of_real_videos(SimpleNamespace(profile=profile), rows, cells, measured)

    there = {"expected": 20, "used": 16, "missing": 3, "corrupt": 1}
    f1, other, expected, other_expected, commonest, *counts = rows_of(KINETICS, **there)
    assert (f1.quantity, f1.name, f1.measured) == ("macro-F1 (%), FAST-GRU", "1:1", [50.0])
    assert (other.quantity, other.measured) == ("macro-F1 (%), averaging", [51.0])
    assert (expected.quantity, expected.measured) == ("video@1 (% of expected), FAST-GRU", [64.0])
    assert other_expected.quantity == "video@1 (% of expected), averaging"
    assert (commonest.counted, commonest.measured) == (68.75, ())
    assert {row.name: row.counted for row in counts} == there
    assert rows_of(TINY, **there) == []


@pytest.fixture(scope="module")
def pair():
    """Two small networks of the default profile at L = 8, untrained."""
    built = {name: build_backbone(name, 16, 1 / 64) for name in ("r2plus1d_50", "r2d_26")}
    parts = {"clip_frames": 8, "seconds": 10.0}
    return FeaturePair(TINY, *(SimpleNamespace(name=n, network=network, **parts) for n, network in built.items()))


def test_measured_cells_become_points_of_cost_and_mean_accuracy_with_their_spread(pair):
    all_cheap, mix = ("avg_pool", Schedule("CC")), ("fast_gru", Schedule("EC"))
    measured = {all_cheap: results("1000", seconds=1.0), mix: results("1100", "1110", seconds=2.0)}
    marks = {cell: claims.marks_of(runs) for cell, runs in measured.items()}
    sides = {cell: claims.Side("videos", {"tiny": each, "tiny_1": 1 - each}) for cell, each in marks.items()}
    one = {cell: claims.Side("videos", {"tiny": each}) for cell, each in marks.items()}
    assert sides[mix].percents == [50.0, 75.0, 50.0, 25.0] and one[mix].percents == [50.0, 75.0]
    percents = {cell: side.percents for cell, side in one.items()}
    series = measured_series("FAST-GRU", pair, [all_cheap, mix], percents, ["a", "b"])
    assert series.y == [25.0, 62.5] and series.spread == pytest.approx([0.0, 12.5 * 2**0.5])
    step = video_mflops(pair, *mix) - video_mflops(pair, None, mix[1])
    assert series.x == [video_mflops(pair, *all_cheap), video_mflops(pair, *mix)] and step > 0
    assert video_mflops(pair, *all_cheap) < video_mflops(pair, None, mix[1])
    assert report.seconds_of(pair, measured) == 25.0
    caption = caption_of(pair, sides.values())
    assert "ours, 4 generated videos, profile tiny" in caption
    assert "trainings of the clip networks (2) and seeds of stage 2 (2)" in caption


def test_labels_of_points_at_one_cost_are_lifted_off_each_other_and_others_left_alone():
    series = [Series("R2D-26", [10, 10, 10, 90], [40.2, 40.0, 60.0, 40.1], labels=["b", "a", "c", "d"])]
    figure = draw_panels([Panel("measured", "x", "y", series)], title="A title", caption="A caption")
    lifts = {text.get_text(): text.xyann[1] - 6 for text in figure.axes[0].texts}
    assert lifts["a"] == lifts["c"] == lifts["d"] == 0 and 9 < lifts["b"] < 12
    plt.close(figure)


def test_a_panel_without_points_says_so_and_a_function_draws_its_own():
    empty = Panel("reported", "GFLOPs", "video@1 (%)", [Series("FAST-GRU", [], [])])
    figure = draw_panels([empty, lambda ax: ax.set_title("mine")], title="A title", caption="A caption")
    assert [text.get_text() for text in figure.axes[0].texts] == ["the paper has no such cells"]
    assert figure.axes[1].get_title() == "mine"
    plt.close(figure)


def test_every_cell_that_a_notebook_finds_contradicted_is_explained():
    for number, row, column in paper.DISCREPANCIES:
        assert report.printed_cell(number, row, column).value is not None
    assert report.printed_cell(4, "1:31", "L=32 gmacs") is None and report.printed_cell(4, "1:2", "L=8 gmacs") is None


def test_what_would_stop_a_run_at_its_end_stops_it_at_its_beginning(tmp_path, monkeypatch):
    profile = load_profile("smoke")
    report.check_run(profile, "train", "test")
    with pytest.raises(ValueError, match="unknown split 'tset'; the scene has"):
        report.check_run(profile, "train", "tset")
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "FIGURES", tmp_path / "file" / "figures")
    with pytest.raises(OSError, match=r"figures cannot be written .*; name another by FASTER_FIGURES"):
        report.check_run(profile)
