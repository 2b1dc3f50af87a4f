"""Tests of timing: that the stopwatch changes nothing, what is compared with Table 5, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from faster_lib import paper
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.faster import Faster, Schedule
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.report import tables as report
from faster_lib.report import timing as runtime

SMOKE = load_profile("smoke")
# Per clip and step at L = 32, from a count in plain arithmetic (docs/discrepancies.md).
E, C, STEP = 119.91865, 12.66605, 2.87729
COSTS = {"All C": 8 * C, "All E": 8 * E, "1:1": 4 * E + 4 * C + 7 * STEP}


def setup_of(**changes):
    values = dict(profile=SMOKE, num_videos=2, clip_frames=8, width=0.0625, size_px=32, is_prepared=False)
    return runtime.Setup(**(values | changes))


def paper_setup():
    return setup_of(profile=load_profile("tiny"), clip_frames=32, width=1.0, size_px=224, is_prepared=True)


def as_measured(networks):
    """Give measurements whose networks take these seconds."""
    return {
        name: [{"decoding": 3.0, "networks": seconds, "in all": 3.0 + seconds, "at work": 2 * seconds}]
        for name, seconds in networks.items()
    }


@pytest.mark.parametrize("name", ["fast_gru", "avg_pool"])
def test_the_stopwatch_changes_no_logit_and_finds_no_time_where_there_is_no_work(name):
    networks = setup_of().networks()
    torch.manual_seed(0)
    clips = torch.randn(1, 4, 3, 8, 32, 32)
    for pattern, idle in (("ECCC", set()), ("CCCC", {"expensive network"}), ("EEEE", {"cheap network"})):
        parts = (*networks.values(), build_aggregator(name, networks["cheap"].channels), Schedule(pattern), 400)
        plain, timed = Faster(*parts).eval(), runtime.TimedFaster(*parts).eval()
        timed.load_state_dict(plain.state_dict())
        with torch.inference_mode():
            for _ in range(2):  # the second call starts the watch anew
                start = runtime._now()
                logits = timed(clips)
                in_all = runtime._now() - start
                assert torch.equal(logits, plain(clips))
                assert {part for part, seconds in timed.seconds.items() if seconds == 0} == idle
                assert sum(timed.seconds.values()) <= in_all


def test_every_pattern_is_timed_on_every_video_and_its_parts_are_within_the_whole(tmp_path):
    setup = setup_of()
    measured = runtime.measure(setup, runs=tmp_path)
    assert list(measured) == ["All C", "All E", "1:1", "1:3", "1:7"]
    for name, videos in measured.items():
        assert len(videos) == 2
        for seconds in videos:
            assert seconds["decoding"] > 0 and (seconds["expensive network"] > 0) == (name != "All C")
            assert sum(seconds[part] for part in runtime.PARTS) <= seconds["in all"]
    files = list(tmp_path.rglob("*.mp4"))
    assert len(files) == 2
    statuses = {row.note for row in runtime.time_rows(setup, runtime.count(setup), measured)}
    assert len(statuses) == 1 and "width 0.0625, 32 px" in statuses.pop()


def test_costs_of_table_5_are_exact_and_its_shares_are_those_of_its_own_cells():
    setup = paper_setup()
    rows = runtime.cost_rows(setup, COSTS)
    table = report.compare(rows, profile=setup.profile, caption="", command="").frame
    assert table.loc["GFLOPs", "status"].eq("exact").all() and len(table.loc["GFLOPs"]) == 3
    assert table.loc["GFLOPs, % of All E", "reported"].tolist() == [10.6, 100.0, 57.4]
    assert table.loc["GFLOPs, % of All E", "counted"].tolist() == [10.6, 100.0, 57.4]
    assert all(row.reported is None for row in runtime.cost_rows(setup_of(), COSTS))


def test_only_the_papers_own_pair_is_of_its_size():
    tiny = load_profile("tiny")
    other = tiny.networks.model_copy(update={"cheap": "torchvision/s3d"})
    setup = setup_of(profile=tiny.model_copy(update={"networks": other}), clip_frames=32, width=1.0, size_px=224)
    assert paper_setup().is_paper_size and not setup.is_paper_size


def test_seconds_here_are_never_subtracted_from_the_papers():
    rows = runtime.time_rows(paper_setup(), COSTS, as_measured({"All C": 3.0, "All E": 20.0, "1:1": 12.0}))
    kinetics = load_profile("kinetics400")
    assert kinetics.is_paper_scale
    table = report.compare(rows, profile=kinetics, caption="", command="").frame
    assert table["difference"].isna().all()
    assert table.loc["seconds, % of All E", "measured"].tolist() == [15.0, 100.0, 60.0]
    assert table.loc["seconds, % of All E", "reported"].tolist() == [19.9, 100.0, 46.6]
    assert table.loc["cores at work for the networks", "measured"].tolist() == [2.0] * 3
    halves = table.loc["seconds, % of All C's and All E's mean"].iloc[0]
    assert (halves["reported"], halves["measured"]) == (77.8, 104.3)
    assert table.loc["seconds a video, networks", "measured"].tolist() == [3.0, 20.0, 12.0]


def test_the_papers_own_seconds_keep_the_rule_and_larger_gaps_break_it():
    seconds = {name: paper.reported(5, row, "seconds").value for name, row in runtime.TABLE_5.items()}
    claim = runtime.judge(COSTS, as_measured(seconds))
    assert claim.difference == pytest.approx(-100 * (COSTS["1:1"] / COSTS["All E"] - 35.3 / 75.7), abs=0.06)
    assert claim.verdict == "holds"
    off = as_measured(seconds | {"All C": 75.7 * (COSTS["All C"] / COSTS["All E"] + 0.16)})
    assert runtime.judge(COSTS, off).verdict == "does not hold"
    ignored = as_measured(seconds | {"1:3": 75.7})
    assert runtime.judge(COSTS | {"1:3": 1.0}, ignored) == claim


def test_the_fit_finds_a_known_line_and_how_well_it_holds():
    assert runtime.fit([1.0, 2.0, 4.0], [7.0, 9.0, 13.0]) == pytest.approx((2.0, 5.0, 1.0))
    assert runtime.fit([0.0, 1.0, 2.0], [0.0, 2.0, 1.0]) == pytest.approx((0.5, 0.5, 0.25))


def test_a_mix_costs_its_clips_and_the_steps_between_them():
    costs = runtime.count(setup_of())
    step = costs["1:1"] - (costs["All E"] + costs["All C"]) / 2
    assert step > 0
    assert costs["1:3"] == pytest.approx((costs["All E"] + 3 * costs["All C"]) / 4 + step)


@pytest.mark.parametrize(
    ("changes", "quoted"),
    [
        (dict(num_videos=0), "num_videos is 0"),
        (dict(num_videos=True), "num_videos is True"),
        (dict(size_px=16), "size_px is 16"),
        (dict(size_px=32.0), "size_px is 32.0"),
        (dict(width=0.0), "width is 0.0"),
        (dict(width=2), "width is 2"),
        (dict(width="1"), "width is '1'"),
        (dict(clip_frames=12), "L is 12"),
    ],
)
def test_what_cannot_be_timed_is_refused_with_the_value(changes, quoted):
    with pytest.raises(ValueError, match=quoted):
        setup_of(**changes)


def test_a_clip_length_that_does_not_divide_the_video_is_refused_with_it():
    with pytest.raises(ValueError, match=r"L is 24.*64 frames"):
        setup_of(clip_frames=24).patterns()


def test_results_of_another_size_do_not_overwrite_those_of_the_papers():
    assert paper_setup().stem == "05_runtime" and paper_setup().is_paper_size
    others = [setup_of().stem, setup_of(width=1.0, size_px=224).stem, setup_of(size_px=64).stem]
    assert len({"05_runtime", *others, setup_of(is_prepared=True).stem}) == 5
    assert not setup_of(clip_frames=32, width=1.0, size_px=224).is_paper_size  # 2 clips


def test_the_notebook_runs_small_and_leaves_table_figure_and_claim(tmp_path):
    folders = {"FASTER_RUNS": str(tmp_path / "runs"), "FASTER_FIGURES": str(tmp_path / "figures")}
    values = {"profile": "smoke", "L": 8, "width": 0.0625, "size_px": 32, "num_videos": 2, "prepared": False}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "05_runtime.ipynb"),
        str(tmp_path / "out.ipynb"),
    ]
    command += [part for name, value in values.items() for part in ("-p", name, str(value))]
    done = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    stem = setup_of().stem
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {f"{stem}.csv", f"{stem}.png", f"{stem}.svg", f"{stem}_claims.csv"}
