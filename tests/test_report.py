"""Tests of the tables and figures of the ratio study, and of what it refuses."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from faster_lib import report
from faster_lib.backbones import build_backbone
from faster_lib.faster import Schedule
from faster_lib.profiles import load_profile

TINY = load_profile("tiny")


@pytest.fixture(scope="module")
def table():
    schedules = report.check_ratios([], 32, TINY)
    measured = {("fast_gru", s): [{"video@1": 50.0 + i} for i in (0, 1, 2)] for s in schedules.values()}
    measured |= {("avg_pool", s): [{"video@1": 40.0}] for s in schedules.values()}
    networks = {
        name: build_backbone(net, 16, 1 / 16) for name, net in (("expensive", "r2plus1d_50"), ("cheap", "r2d_26"))
    }
    return report.join_ratio_study(TINY, schedules, 32, measured, **networks, size_px=35)


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
    with pytest.raises(ValueError, match=str(seeds).replace("[", r"\[")):
        report.check_seeds(seeds)


def test_a_column_holds_numbers_of_one_kind_and_the_printed_ones_are_the_papers(table):
    assert {kind for kind, _ in table.columns} == {"reported", "counted", "measured"}
    assert table["reported"]["accuracy"].tolist() == [74.9, 74.6, 73.3, 71.3]
    assert table["reported"]["GFLOPs"].tolist() == table["counted"]["GFLOPs, paper size"].tolist()
    assert table["measured"]["FAST-GRU"].tolist() == [51.0] * 4
    assert table["measured"]["± over seeds"].tolist() == [1.0] * 4
    ours = table["counted"]["GFLOPs, this profile"]
    assert ours.is_monotonic_decreasing and (ours > table["counted"]["GFLOPs, averaging"]).all()


def test_the_cell_that_the_count_contradicts_says_so_and_an_unprinted_ratio_is_no_claim():
    schedules = {x: Schedule.ratio(16, x) for x in (0, 3)}
    counted = report.count_ratios(schedules, 16)
    assert counted.at["1:3", "status"] == "exact"
    assert counted.at["All E", "status"].startswith("differs: 980.2 / 16")
    assert counted.at["All E", "counted, rounded"] == 980.8
    assert report.count_ratios({0: Schedule("EE")}, 16).at["All E", "status"] == "not in Table 4"


def test_saved_files_hold_the_table_its_origin_and_the_same_bytes_each_time(table, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        figure = report.draw_ratio_study(table, (0.01, 30.0), clip_frames=32, num_clips=8, profile="tiny")
        report.save(figure, table, "stem", {"profile": "tiny", "seeds": [0, 1, 2]}, folder=folder)
        plt.close(figure)
    for suffix in ("png", "svg", "csv"):
        first, second = ((tmp_path / name / f"stem.{suffix}").read_bytes() for name in "ab")
        assert first == second, suffix
    text = (tmp_path / "a" / "stem.csv").read_text()
    assert text.startswith('# profile: "tiny"\n# seeds: [0, 1, 2]\n') and "# device: " in text
    again = pd.read_csv(tmp_path / "a" / "stem.csv", skiprows=text.count("\n# ") + 1)
    assert again["measured FAST-GRU"].tolist() == [51.0] * 4
