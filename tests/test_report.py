"""Tests of the one form of all tables, of what is written and read again, of the claims' rule, and of refusals."""

import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from faster_lib import paper
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.report import tables as report
from faster_lib.report.figures import Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, claims_as_markdown, compare, judge, save_claims

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
    assert (measured.reported, measured.measured, measured["±"], measured.seeds) == (72.1, 51.0, 1.0, 3)
    assert measured.status == "measured at tiny scale" and pd.isna(measured.difference) and pd.isna(measured.counted)
    assert unrun.status == "not run: needs Kinetics" and pd.isna(unrun.measured) and unrun.seeds == ""
    assert counted.status == "counted" and pd.isna(counted.reported)


def test_an_accuracy_is_compared_with_the_papers_at_its_own_scale_alone():
    assert table(profile=KINETICS).frame.iloc[2]["difference"] == pytest.approx(-21.1)
    with pytest.raises(ValueError, match=r"'1:3' of 'video@1 \(%\)' is there twice"):
        table([ROWS[2], ROWS[2]])


def test_a_table_shows_caption_cells_and_command_as_text_and_as_html():
    text, page = repr(table()), table()._repr_html_()
    for shown in (text, page):
        assert "made by: " in shown and "papermill a.ipynb" in shown and "980.77" in shown and "NaN" not in shown
    assert text.startswith("Table 4 & more\n") and "Table 4 &amp; more" in page


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
    frame, about = report.load("stem", folder=tmp_path / "a")
    assert about | {"profile": "tiny", "seeds": [0, 1, 2], "seconds": 12, "command": "papermill a.ipynb"} == about
    assert {"device", "versions", "commit", "caption"} <= set(about)
    assert frame.loc[("video@1 (%)", "1:3"), "measured"] == 51.0
    assert frame.loc[("GFLOPs", "All E"), "status"].endswith("breaks the table's own rounding")


def results(*marks: str) -> list[dict]:
    return [{"correct": mark, "video@1": 100 * mark.count("1") / len(mark)} for mark in marks]


def test_a_claim_is_judged_on_the_same_videos_with_two_standard_errors():
    better, worse = results("1" * 90 + "0" * 10), results("1" * 50 + "0" * 50)
    claim = judge("a beats b", "Table 3", [better], [worse])
    assert claim.difference == 40 and claim.verdict == "holds"
    # 40 videos gained of 100: the standard deviation of the differences is sqrt(0.4 * 0.6 * 100 / 99)
    assert claim.uncertainty == pytest.approx(200 * (0.4 * 0.6 * 100 / 99 / 100) ** 0.5, abs=0.01)
    assert judge("b beats a", "Table 3", [worse], [better]).verdict == "does not hold"
    assert judge("a beats a", "Table 3", [better], [better]).verdict == "undecided within the spread"
    assert judge("a matches a", "Table 3", [better], [better], margin=1.0).verdict == "holds"
    same_share = results("1" * 45 + "0" * 10 + "1" * 45)
    assert judge("a beats c", "Table 3", [better], [same_share]).uncertainty > 8  # other videos, though equally many


def test_the_spread_over_seeds_and_every_condition_count_in_a_claim():
    steady, shaky = results("1100" * 25, "1100" * 25), results("1111" * 25, "0000" * 25)
    assert judge("", "", [steady], [shaky]).uncertainty > 99 > judge("", "", [steady], [steady]).uncertainty
    mixed = judge("", "", [results("11" * 50), results("10" * 50)], [results("10" * 50), results("10" * 50)])
    assert mixed.difference == 25
    with pytest.raises(ValueError, match="1 conditions against 2"):
        judge("", "", [steady], [steady, shaky])
    with pytest.raises(ValueError):
        judge("", "", [results("10")], [results("100")])


@pytest.mark.parametrize(
    ("difference", "uncertainty", "margin", "verdict"),
    [
        (1, 0.9, 0, "holds"),
        (1, 1.1, 0, "undecided within the spread"),
        (-1, 0.9, 0, "does not hold"),
        (-0.5, 0.4, 1, "holds"),
        (-0.5, 0.6, 1, "undecided within the spread"),
        (-3, 1.9, 1, "does not hold"),
    ],
)
def test_the_rule_of_a_claim(difference, uncertainty, margin, verdict):
    assert Claim("", "", difference, uncertainty, margin).verdict == verdict


def test_the_claims_of_all_notebooks_join_into_one_markdown_table(tmp_path):
    save_claims("02_b_tiny", [Claim("b wins", "Table 3", -3.0, 1.0)], command="x", folder=tmp_path)
    shown = save_claims("01_a_tiny", [Claim("a matches", "Table 2", 0.2, 0.5, 1.0)], command="x", folder=tmp_path)
    assert shown.frame.loc["a matches", "verdict"] == "holds"
    *_, first, second = claims_as_markdown(folder=tmp_path).splitlines()
    assert first == "| a matches (Table 2) | 01 | +0.2 ± 0.5 (margin 1) | **holds** |"
    assert second == "| b wins (Table 3) | 02 | -3.0 ± 1.0 | **does not hold** |"


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


@pytest.mark.parametrize("seeds", [[], "0", [0, 0], [-1], [0.5], [True]])
def test_wrong_seeds_are_refused_with_the_value(seeds):
    with pytest.raises(ValueError, match=re.escape(f"{seeds}")):
        report.check_seeds(seeds)


@pytest.mark.parametrize(
    ("clips", "quoted"), [([0], "at least 1"), ([2, 64], "at most 32"), ([4, 4], "twice"), (8, "8")]
)
def test_wrong_numbers_of_clips_are_refused_with_the_value(clips, quoted):
    with pytest.raises(ValueError, match=quoted):
        report.check_clip_counts(clips, 8, TINY)


def test_the_readme_holds_the_claims_as_the_notebooks_found_them():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    held = page.split("claims_as_markdown() -->\n")[1].split("<!-- end of claims -->")[0]
    assert held == claims_as_markdown(folder=ROOT / "figures"), "paste it again, see CONTRIBUTING"
