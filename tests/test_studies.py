"""Tests of what each experiment compares: its counted rows against the page, its cells, its claims."""

from types import SimpleNamespace

import pytest

from faster_lib import paper, studies
from faster_lib.models.faster import Schedule
from faster_lib.profiles import load_profile
from faster_lib.report.tables import Row, check_ratios
from faster_lib.studies.growth import printed_in_figure_3
from faster_lib.studies.points import rows_of_real_videos

TINY = load_profile("tiny")


def differing(rows) -> dict[str, tuple[float, float]]:
    return {row.name: (row.reported.value, row.rounded) for row in rows if row.reported.value != row.rounded}


@pytest.mark.parametrize(("clip_frames", "expected"), [(8, {}), (16, {"All E": (980.2, 980.8)}), (32, {})])
def test_table_4_is_counted_to_the_digit_but_for_one_cell(clip_frames, expected):
    schedules = check_ratios([], clip_frames, TINY)
    rows = studies.count_ratios(schedules, clip_frames)
    assert differing(rows) == expected
    assert len(rows) == len(paper.TABLE_4_RATIOS[clip_frames])
    unprinted = studies.count_ratios({0: Schedule("EE")}, clip_frames)
    assert unprinted[0].reported is None and unprinted[0].rounded is None


def test_table_6_is_counted_to_the_digit_but_for_two_last_digits():
    rows = studies.count_generalization(check_ratios([0, 1, 3], 32, TINY), 32)
    assert differing(rows) == {"R3D-50, 1:1 (FAST-GRU)": (542.1, 542.2), "R3D-50, 1:3 (FAST-GRU)": (331.9, 331.8)}
    assert [row.reported.value for row in rows if "All E" in row.name] == [959.3, 942.7]


def test_every_cell_that_a_study_finds_contradicted_is_explained():
    found = {(4, "All E", "L=16 gmacs")} | {(6, f"{x} (FAST-GRU)", "R3D-50 gmacs") for x in ("1:1", "1:3")}
    assert found <= set(paper.DISCREPANCIES)
    for table, row, column in paper.DISCREPANCIES:
        assert paper.reported(table, row, column).value is not None


def test_an_aggregators_cost_is_its_matrices_times_the_positions():
    counted = {(row.quantity, row.name): row.counted for row in studies.count_aggregators()}
    square = 2048 * 2048
    assert counted["GFLOPs, one step", "Concat"] == round(49 * 2 * square / 1e9, 4)
    assert counted["GFLOPs, one step", "LSTM"] == round(8 * square / 1e9, 4)
    assert counted["GFLOPs, one step", "GRU"] == round(6 * square / 1e9, 4)
    assert counted["GFLOPs, one step", "FAST-GRU"] == 0.7193
    assert counted["parameters (M)", "GRU"] == round((6 * square + 3 * 2048) / 1e6, 2)


def test_the_printed_accuracies_of_figure_3_stand_where_the_paper_has_them():
    assert printed_in_figure_3("FAST-GRU", 8).value == 67.2
    assert printed_in_figure_3("average, all expensive", 32).value == 70.1
    assert printed_in_figure_3("average, all expensive", 4).value == 67.1
    assert printed_in_figure_3("average, all cheap", 32).value == 63.3
    assert printed_in_figure_3("average, all cheap", 4) is None
    costs = {row.name: row.counted for row in studies.count_growth([4, 32])}
    assert costs["average, all expensive, N = 4"] == 119.92 and costs["FAST-GRU, N = 32"] == 150.46


def results(mark: str) -> list[dict]:
    return [{"correct": mark, "video@1": 100 * mark.count("1") / len(mark), "videos": len(mark)}]


def test_claims_compare_the_cells_that_they_name():
    good, bad = results("1" * 80 + "0" * 20), results("1" * 20 + "0" * 80)
    clips = [2, 16, 32]
    measured = {(name, Schedule.first_expensive(n)): bad for name in studies.NAMES for n in clips}
    measured |= {("fast_gru", Schedule.first_expensive(n)): good for n in (16, 32)}  # N = 2 must not count
    verdicts = {
        claim.statement: (claim.difference, claim.verdict) for claim in studies.judge_aggregators(clips, measured)
    }
    assert len(verdicts) == 4 and set(verdicts.values()) == {(60.0, "holds")}
    schedules = {x: Schedule.ratio(16, x) for x in (0, 1)}
    measured = {("fast_gru", schedules[0]): bad, ("avg_pool", schedules[0]): good}
    measured |= {("fast_gru", schedules[1]): good, ("avg_pool", schedules[1]): bad}
    mix, match, all_e = studies.judge_ratios(schedules, measured, 16)
    assert (mix.difference, match.difference, all_e.difference) == (60, 0, -60)
    assert (mix.verdict, match.verdict, all_e.verdict) == ("holds", "holds", "does not hold")


def test_real_videos_get_rows_of_macro_f1_and_of_the_commonest_class_and_generated_ones_do_not():
    cells = [("fast_gru", Schedule("EC")), ("avg_pool", Schedule("CC"))]
    rows = [
        Row("video@1 (%), FAST-GRU", "1:1", measured=[80.0]),
        Row("video@1 (%), averaging", "All C", measured=[70.0]),
    ]
    all_there = {"expected": 20, "used": 20, "missing": 0, "corrupt": 0}
    some_there = {"expected": 20, "used": 16, "missing": 3, "corrupt": 1}

    def measure(census):
        scores = {"commonest": 68.754, "video@1 of expected": 64.0, **census}
        return {cell: [{"macro_f1": 50.0 + n, **scores}] for n, cell in enumerate(cells)}

    real = SimpleNamespace(profile=load_profile("kinetics400"))
    f1, other, commonest, *counts = rows_of_real_videos(real, rows, cells, measure(all_there))
    assert (f1.quantity, f1.name, f1.measured) == ("macro-F1 (%), FAST-GRU", "1:1", [50.0])
    assert (other.quantity, other.measured) == ("macro-F1 (%), averaging", [51.0])
    assert (commonest.counted, commonest.measured) == (68.75, ())
    assert {row.name: row.counted for row in counts} == all_there
    *_, first, second, expected, used, missing, corrupt = rows_of_real_videos(real, rows, cells, measure(some_there))
    assert (first.quantity, first.name, first.measured) == ("video@1 (% of expected), FAST-GRU", "1:1", [64.0])
    assert second.quantity == "video@1 (% of expected), averaging"
    assert [row.counted for row in (expected, used, missing, corrupt)] == [20, 16, 3, 1]
    assert rows_of_real_videos(SimpleNamespace(profile=TINY), rows, cells, measure(all_there)) == []


def test_other_aggregators_than_those_of_table_4_can_be_tried_on_each_mix():
    schedules = {x: Schedule.ratio(8, x) for x in (0, 1)}
    usual, more = (set(studies.cells_of_ratios(schedules, others)) for others in ((), ["gru", "lstm"]))
    assert more - usual == {(name, schedule) for name in ("gru", "lstm") for schedule in schedules.values()}
    for wrong in ("gru", ["gru", "transformer"]):
        with pytest.raises(ValueError, match=rf"others is .*{wrong[-1]}.*list of some of avg_pool, concat"):
            studies.cells_of_ratios(schedules, wrong)


@pytest.fixture
def transfer(monkeypatch):
    """Three folds of 10 test videos: FAST-GRU is right in 8, 6 and 4 of them, started anew in half of those."""
    monkeypatch.setattr("faster_lib.studies.transfer.video_mflops", lambda pair, *cell: 1.0)
    census = {"expected": 12, "used": 10, "missing": 1, "corrupt": 1}

    def runs(right: int) -> list[dict]:
        (run,) = results("1" * right + "0" * (10 - right))
        return [run | census | {"video@1 of expected": run["video@1"] * 10 / 12}] * 2

    def fold(right: int) -> dict[str, list[dict]]:
        learnt = {studies.fast_gru("pre-trained", 24): right, studies.fast_gru("anew", 24): right // 2}
        return {name: runs(right) for name, right in learnt.items()} | {"average of the same mix": runs(5)[:1]}

    return {number: fold(right) for number, right in ((1, 8), (2, 6), (3, 4))}


def test_transfer_compares_the_videos_of_all_folds_at_once_and_averages_over_folds(transfer):
    assert studies.mean_over_folds(transfer, studies.fast_gru("pre-trained", 24)) == [60, 60]
    assert studies.mean_over_folds(transfer, "average of the same mix") == [50]
    (claim,) = studies.judge_transfer([24], transfer)
    assert claim.difference == 30 and claim.verdict == "holds"
    assert claim.uncertainty == pytest.approx(200 * (0.3 * 0.7 / 29) ** 0.5, abs=0.01)  # of 30 videos, 9 differ


def test_table_8_is_compared_only_at_the_papers_scale_with_its_clips_and_all_folds(transfer):
    tiny = load_profile("tiny_ucf101")
    data = tiny.data.model_copy(update={"root": "videos"})
    networks = tiny.networks.model_copy(update={"width": 1.0})
    full = tiny.model_copy(update={"scene": None, "data": data, "networks": networks})

    def printed(profile, clip_frames: int, folds) -> float | None:
        pair = SimpleNamespace(profile=profile, expensive=SimpleNamespace(clip_frames=clip_frames))
        measured = {fold: transfer[fold] for fold in folds}
        rows = studies.transfer_rows(dict.fromkeys(folds, pair), Schedule.ratio(8, 1), measured)
        assert [r.reported.value for r in rows if r.name == "FASTER32"] == [96.9]
        assert len({(r.quantity, r.name) for r in rows}) == len(rows)
        read = [r.counted for r in rows if r.quantity == "test videos, all folds"]
        assert read == ([] if profile is tiny else [12 * len(folds), 10 * len(folds), len(folds), len(folds)])
        means = {r.quantity: r.reported for r in rows if r.name == "mean"}
        cell = means.pop("video@1 (%), FAST-GRU pre-trained, 24 epochs")
        assert not any(means.values())
        return cell and cell.value

    assert printed(full, 32, (1, 2, 3)) == 96.9
    assert printed(full, 32, (1, 2)) is None and printed(full, 16, (1, 2, 3)) is None
    assert printed(tiny, 32, (1, 2, 3)) is None


def test_the_epochs_that_are_tried_are_those_of_the_profile_and_others():
    tiny = load_profile("tiny_ucf101")
    assert studies.check_epochs([8], tiny) == [8, 24] and studies.check_epochs([], tiny) == [24]
    with pytest.raises(ValueError, match=r"epochs is \[0\]; each must be a whole number of at least 1"):
        studies.check_epochs([0], tiny)


def test_folds_are_refused_where_they_are_wrong_or_nothing_was_pretrained():
    tiny = load_profile("tiny_ucf101")
    assert [each.data.fold for each in studies.check_folds([3, 1], tiny).values()] == [3, 1]
    with pytest.raises(ValueError, match="fold is 4; ucf101 and hmdb51 have folds, 1 to 3"):
        studies.check_folds([4], tiny)
    with pytest.raises(ValueError, match=r"folds is \[1, 1\]"):
        studies.check_folds([1, 1], tiny)
    with pytest.raises(ValueError, match="'tiny' has no pretraining; choose one that has, such as tiny_ucf101"):
        studies.check_folds([1], load_profile("tiny"))
