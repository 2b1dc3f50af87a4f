"""Tests of verdicts: the rule, its coverage, the same videos, equal cost, further trainings, the joined table."""

import math
from functools import partial

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from faster_lib.models.faster import Schedule
from faster_lib.paths import PARAMS, ROOT
from faster_lib.profiles import load_profile
from faster_lib.report import claims, tables
from faster_lib.report.claims import Claim, Side, at_cost, average, conclude, find_sides, judge, spreads_of, tabulate
from faster_lib.training import stage1
from faster_lib.training.features import FeaturePair
from faster_lib.training.results import aggregator_entry, shipped_results
from faster_lib.training.stage1 import name_backbone
from workflow.claims import survive_holm, write_claims, write_lengths

ENOUGH = {"training": 3, "seed": 3, "video": 512}


def side(*trainings, videos="key", learns=True) -> Side:
    """Marks of each training: of each seed, a string of 1 and 0 for each video."""
    marks = {f"study_{n}": np.array([list(m) for m in seeds], float) for n, seeds in enumerate(trainings)}
    return Side(videos, marks, learns)


# In points: what d[t, s, v] varies with. What training and video share (the interaction) is small or large beside it.
@pytest.mark.parametrize("interaction", [20.0, 60.0])
@pytest.mark.parametrize(("training", "seed"), [(0.1, 0.1), (2.5, 1.5), (20.0, 10.0)], ids=["small", "equal", "large"])
def test_an_interval_covers_the_truth_in_95_percent_of_simulated_studies(training, seed, interaction):
    rng, rounds = np.random.default_rng(5), 1000

    def normal(spread: float, *shape: int) -> np.ndarray:
        return np.float32(spread) * rng.standard_normal((rounds, *shape), dtype=np.float32)

    marks = 40 / math.sqrt(3)  # what three seeds leave of a single mark's spread
    gain = normal(40, 1, 512) + normal(math.hypot(interaction, marks), 3, 512)
    gain += normal(training, 3, 1) + normal(seed, 3, 3).mean(axis=2, keepdims=True)
    found = [conclude("", "", each.mean(), spreads_of(each[:, None]), ENOUGH, 0.0) for each in gain]
    covered = 100 * np.mean([abs(claim.difference) <= claim.uncertainty for claim in found])
    assert covered == pytest.approx(95, abs=2)


def test_an_interval_is_the_t_test_over_trainings_where_these_dominate_and_over_videos_where_there_is_one_unit():
    share = np.array([0.0, 2.0, 7.0])
    gain = share[:, None] + np.random.default_rng(0).normal(0, 1e-3, (3, 512))
    low, high = ttest_1samp(gain.mean(axis=1), 0).confidence_interval(0.95)
    claim = conclude("", "", gain.mean(), spreads_of(gain[:, None]), ENOUGH, 0.0)
    assert claim.uncertainty == pytest.approx((high - low) / 2, abs=0.006)
    assert claim.p == pytest.approx(ttest_1samp(gain.mean(axis=1), 0).pvalue, rel=0.02)
    low, high = ttest_1samp(gain[0], 0).confidence_interval(0.95)
    alone = conclude("", "", gain[0].mean(), spreads_of(gain[:1, None]), {"training": 1, "video": 512}, 0.0)
    assert alone.uncertainty == pytest.approx((high - low) / 2, abs=0.006) and math.isnan(alone.p)


def test_one_training_or_one_seed_decides_nothing_though_its_interval_is_drawn_and_named():
    better, worse = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50
    claim = judge("a beats b", "Table 3", [side([better] * 3)], [side([worse] * 3)])
    assert (claim.difference, claim.verdict) == (40, "undecided: one training")
    assert claim.over == "one training, 3 seeds, 100 videos" and math.isnan(claim.p)
    # 40 videos gained of 100: the standard deviation of the differences is sqrt(0.4 * 0.6 * 100 / 99)
    error = 100 * math.sqrt(0.4 * 0.6 * 100 / 99 / 100)
    assert claim.uncertainty == pytest.approx(student.isf(0.025, 99) * error, abs=0.006)
    lone = judge("", "", [side([better], [better])], [side([worse], [worse])])
    assert (lone.verdict, lone.over) == ("undecided: one seed", "2 trainings, one seed, 100 videos")
    plain = [side([marks], [marks], learns=False) for marks in (better, worse)]
    assert judge("", "", plain[:1], plain[1:]).over == "2 trainings, 100 videos", "averaging has no seeds"


def test_three_trainings_decide_and_their_spread_and_every_condition_count():
    better, worse = side(*[["1" * 90 + "0" * 10] * 3] * 3), side(*[["1" * 50 + "0" * 50] * 3] * 3)
    assert judge("", "", [better], [worse]).verdict == "holds"
    assert judge("", "", [worse], [better]).verdict == "does not hold"
    assert judge("", "", [better], [better]).verdict == "undecided within the spread"
    assert judge("", "", [better], [better], margin=1.0).verdict == "holds"
    others = side(*[["1" * 45 + "0" * 10 + "1" * 45] * 3] * 3)  # as many, but other videos
    assert judge("", "", [better], [others]).uncertainty > 8
    averaged = side(*[["1" * 50 + "0" * 50]] * 3, learns=False)  # measured once, whatever the seeds
    assert judge("", "", [better], [averaged]) == judge("", "", [better], [worse])
    shaky = side(["1100" * 25] * 3, ["1111" * 25] * 3, ["0000" * 25] * 3)
    steady = side(*[["1100" * 25] * 3] * 3)
    assert judge("", "", [steady], [shaky]).uncertainty > 100 > judge("", "", [steady], [steady]).uncertainty
    half = [side(*[[marks] * 3] * 3) for marks in ("11" * 50, "10" * 50)]
    assert judge("", "", half, [half[1]] * 2).difference == 25


def test_only_the_same_videos_and_as_many_conditions_are_compared():
    one, other = side(["10"] * 2), side(["10"] * 2, videos="others")
    with pytest.raises(ValueError, match="a beats b: tested on the videos key and others; they must be the same"):
        judge("a beats b", "", [one], [other])
    with pytest.raises(ValueError, match="1 conditions against 2"):
        judge("", "", [one], [one, one])


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
    assert Claim("", "", difference, uncertainty, ENOUGH, margin).verdict == verdict


def test_a_curve_is_read_at_a_cost_between_the_points_that_are_better_than_all_cheaper_ones():
    curve = {10.0: side(["1000"]), 20.0: side(["1100"]), 30.0: side(["0000"]), 40.0: side(["1111"])}
    read = {cost: at_cost(curve, cost) for cost in (10.0, 15.0, 30.0, 40.0)}
    shares = {cost: each.marks["study_0"].mean() for cost, each in read.items()}
    assert shares == {10.0: 0.25, 15.0: 0.375, 30.0: 0.75, 40.0: 1.0}
    assert at_cost(curve, 9.0) is None and at_cost(curve, 41.0) is None
    falling = {10.0: side(["1100"]), 20.0: side(["1000"])}
    assert at_cost(falling, 15.0).marks["study_0"].mean() == 0.5
    assert average([curve[10.0], curve[40.0]], [3, 1]).marks["study_0"].tolist() == [[1, 0.25, 0.25, 0.25]]


@pytest.fixture
def three_trainings(tmp_path, monkeypatch):
    """Profiles study_1 and study_2 with networks of other seeds, as a later session adds them."""
    for path in PARAMS.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    for n in (1, 2):
        trained = f"base: study_networks\nbackbone_training:\n  seed: {n + 10}\n"  # none that is shipped
        (tmp_path / f"study_networks_{n}.yaml").write_text(trained)
        (tmp_path / f"study_{n}.yaml").write_text(f"base: study\nnetworks:\n  trained_in: study_networks_{n}\n")
    load = partial(load_profile, folder=tmp_path)
    monkeypatch.setattr(claims, "PARAMS", tmp_path)
    for module in (claims, stage1):
        monkeypatch.setattr(module, "load_profile", load)
    return load


def named_pair(profile, runs) -> FeaturePair:
    return FeaturePair(
        profile, *(name_backbone(profile, n, 8, runs=runs) for n in ("r2plus1d_50", "r2d_26")), runs=runs
    )


def test_rows_of_further_trainings_turn_an_undecided_claim_into_a_verdict(three_trainings, tmp_path, monkeypatch):
    cells = [(name, Schedule.ratio(32, 1)) for name in ("fast_gru", "avg_pool")]
    how = {"seeds": [0, 1, 2], "split": "test"}
    pair, rows = named_pair(three_trainings("study"), tmp_path), dict(shipped_results())
    monkeypatch.setattr(claims, "shipped_results", lambda: rows)

    def verdict():
        sides = find_sides(pair, cells, **how)
        return judge("", "", *([sides[cell]] for cell in cells))

    assert verdict().verdict == "undecided: one training"
    for profile in ("study_1", "study_2"):  # generated rows: as those of training 0, under the keys of the others
        twin = named_pair(three_trainings(profile), tmp_path)
        for cell, seed in ((cells[1], 0), *((cells[0], seed) for seed in how["seeds"])):
            if seed == 2:  # all but the last row
                assert verdict().over.split(", ")[0] == {"study_1": "one training", "study_2": "2 trainings"}[profile]
            known, own = (aggregator_entry(each, *cell, seed, "test").path.name for each in (pair, twin))
            rows[own] = rows[known]
    assert (verdict().verdict, verdict().over) == ("holds", "3 trainings, 3 seeds, 512 videos")
    assert find_sides(pair, [("fast_gru", Schedule("C" * 32))], **how) == {}


def test_a_training_that_was_tested_on_other_videos_is_refused(three_trainings, tmp_path):
    path = tmp_path / "study_2.yaml"
    path.write_text(path.read_text() + "scene:\n  noise: 13.0\n")
    pair = named_pair(three_trainings("study"), tmp_path)
    with pytest.raises(ValueError, match=r"test videos .*'study_2': .*; they must be the same"):
        find_sides(pair, [], seeds=[0], split="test")


def test_the_claims_of_all_notebooks_join_into_one_markdown_table(tmp_path):
    units = {"training": 1, "seed": 3, "video": 9}
    found = {"02_b": Claim("b wins", "Table 3", -3.0, 1.0, ENOUGH, p=0.01)}
    found["01_a"] = Claim("a matches", "Table 2", 0.2, 0.5, units, 1.0)
    for name, claim in found.items():
        verdicts = tabulate([claim], command=f"make {name}")
        tables.save(f"{name}_tiny_claims", None, verdicts, profile="tiny", seeds=[0], seconds=1, folder=tmp_path)
    assert verdicts.frame.loc["a matches", "verdict"] == "undecided: one training"
    *_, first, second, _, tally, _, made, _, one, other = write_claims(tmp_path).splitlines()
    assert (made, one, other) == ("Made by:", "- `make 01_a`", "- `make 02_b`")
    over = "one training, 3 seeds, 9 videos"
    assert (
        first == f"| a matches (Table 2) | 01 | tiny | +0.2 ± 0.5 (margin 1) | {over} | **undecided: one training** |"
    )
    assert (
        second == "| b wins (Table 3) | 02 | tiny | -3.0 ± 1.0 | 3 trainings, 3 seeds, 512 videos | **does not hold** |"
    )
    assert tally == "In all 2: 1 undecided: one training, 1 does not hold."
    assert tabulate([], command="x").frame.empty


def test_of_more_than_twenty_verdicts_the_table_says_which_stay_after_holms_correction(tmp_path):
    # Holm by hand: 0.001 * 4, 0.012 * 3, 0.02 * 2 and 0.2; and 0.03 * 2 ends what follows it
    assert survive_holm(np.array([0.012, 0.2, 0.001, 0.02])).tolist() == [True, False, True, True]
    assert survive_holm(np.array([0.03, 0.04, 0.001])).tolist() == [False, False, True]
    many = [Claim(f"claim {n}", "", 3.0, 1.0, ENOUGH, p=0.0001 if n > 1 else 0.04) for n in range(21)]
    verdicts = tabulate([*many, Claim("alone", "", 3.0, 1.0, {"training": 1})], command="x")
    tables.save("01_tiny_claims", None, verdicts, profile="tiny", seeds=[0], seconds=1, folder=tmp_path)
    head, _, first, second, *rest = write_claims(tmp_path).splitlines()
    assert head.endswith("| verdict | after Holm's correction |")
    assert all(line.endswith("| **holds** | undecided |") for line in (first, second))
    assert rest[0].endswith("| **holds** | stays |") and rest[19].endswith("| **undecided: one training** |  |")


def test_the_page_of_results_holds_the_claims_as_the_notebooks_found_them():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for what, write in (("claims", write_claims), ("lengths", write_lengths)):
        held = page.split(f"<!-- {what}: printed by workflow/claims.py -->\n")[1].split(f"<!-- end of {what} -->")[0]
        assert held == write(ROOT / "figures") + "\n", "paste it again, see CONTRIBUTING"
