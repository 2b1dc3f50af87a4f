"""Tests of measured cells that come with the repository: written, read back, and taken in place of a training."""

import csv
from dataclasses import asdict, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from faster_lib import build_backbone, count_macs
from faster_lib.data.datasets import Census
from faster_lib.models.faster import Schedule
from faster_lib.paths import RESULTS
from faster_lib.profiles import load_profile
from faster_lib.report import tables
from faster_lib.store import Entry
from faster_lib.training import evaluation
from faster_lib.training.evaluation import Measured, aggregator_entry, measure_all, shipped_results
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import name_backbone
from workflow.results import row_of, write_results

CENSUS = Census(expected=6, used=5, missing=1, corrupt=0)
ACCURACIES = {"video1": 60.0, "video5": 100.0, "video1_of_expected": 50.0, "macro_f1": 1 / 3, "commonest": 40.0}
MEASURED = Measured(**ACCURACIES, correct="00111", census=CENSUS, train_loss=0.1)


def make(runs, aggregator: str, measured: Measured, networks: tuple[str, str] = ("other", "ones")) -> Entry:
    depends = {"aggregator": aggregator, "schedule": "EC", "networks": networks}
    if aggregator != "avg_pool":
        depends |= {"seed": 3, "training": {"learning_rate": 0.5, "epochs": 7}}
    entry = Entry("smoke", "aggregators", f"{aggregator}-L8-1E1C-seed3", depends, runs)
    entry.complete(lambda: asdict(measured))
    return entry


def test_what_is_written_is_read_back_to_the_digit(tmp_path):
    first = make(tmp_path, "gru", MEASURED)
    second = make(tmp_path, "avg_pool", replace(MEASURED, train_loss=None, correct="00000"))
    assert write_results([first.path, second.path], tmp_path / "results.csv") == 2
    found = shipped_results(tmp_path / "results.csv")
    assert list(found) == [second.path.name, first.path.name]
    for entry, wanted in ((first, MEASURED), (second, replace(MEASURED, train_loss=None, correct="00000"))):
        read = found[entry.path.name]
        assert replace(read, seconds=0.0, made="") == wanted and read.seconds == entry.record["seconds"]
        assert entry.record["finished"][:10] in read.made
    third = make(tmp_path, "lstm", replace(MEASURED, video1=50.0))
    assert write_results([third.path], tmp_path / "results.csv", keep=True) == 3
    more = shipped_results.__wrapped__(tmp_path / "results.csv")
    assert more[third.path.name].video1 == 50.0 and {name: more[name] for name in found} == found
    assert write_results([third.path], tmp_path / "results.csv") == 1


def test_a_row_says_what_was_trained_how_and_what_a_video_costs_in_its_networks(tmp_path):
    keys = tuple(name_backbone(load_profile("smoke"), name, 8).entry.key for name in ("r3d_50", "r2d_26"))
    row = row_of(make(tmp_path, "gru", MEASURED, keys).path)
    facts = ("profile", "expensive", "aggregator", "schedule", "L", "seed", "learning_rate", "epochs", "made")
    assert [row[key] for key in facts[:-1]] == ["smoke", "r3d_50", "gru", "EC", 8, 3, 0.5, 7]
    clips = [
        count_macs(build_backbone(n, 16, 0.0625).eval(), torch.zeros(1, 3, 8, 35, 35)) for n in ("r3d_50", "r2d_26")
    ]
    assert row["mflops"] == pytest.approx((sum(clips) + 6 * 128**2) / 1e6, abs=0.01)
    unknown = row_of(make(tmp_path, "avg_pool", replace(MEASURED, train_loss=None)).path)
    assert [unknown[key] for key in ("expensive", "mflops", "seed", "epochs")] == [None] * 4


def test_a_damaged_record_is_not_kept(tmp_path):
    entry = make(tmp_path, "gru", MEASURED)
    path = entry.path / "record.json"
    path.write_text(path.read_text().replace('"video1": 60.0', '"video1": 61.0'))
    with pytest.raises(ValueError, match=r"record.json is damaged"):
        write_results([entry.path], tmp_path / "results.csv")


@cache
def study(L: int, name: str = "study", expensive: str = "r2plus1d_50") -> FeaturePair:
    profile = load_profile(name)
    return FeaturePair(profile, *(name_backbone(profile, network, L) for network in (expensive, "r2d_26")))


def test_a_shipped_cell_is_taken_where_its_key_fits_and_trained_where_it_does_not(tmp_path, monkeypatch):
    pair, cell = study.__wrapped__(8), ("gru", Schedule("ECCC"))
    pair.runs = tmp_path
    name = aggregator_entry(pair, *cell, 0, "test").path.name
    monkeypatch.setattr(evaluation, "shipped_results", lambda: {name: MEASURED})
    monkeypatch.setattr(FeaturePair, "open", None)  # reading or computing a feature would fail
    assert measure_all(pair, [cell], seeds=[0], split="test") == {cell: [MEASURED]}
    for how in ({"seeds": [1]}, {"seeds": [0], "anew": True}):
        with pytest.raises(TypeError):
            measure_all(pair, [cell], split="test", **how)


def test_the_committed_results_are_those_of_the_notebooks_and_agree_with_themselves():
    found = shipped_results()
    for entry, measured in found.items():
        assert len(measured.correct) == measured.census.used, entry
        assert measured.video1 == pytest.approx(100 * measured.correct.count("1") / measured.census.used), entry
        assert measured.made and (measured.train_loss is None) == entry.startswith("avg_pool"), entry
    for row in csv.DictReader(RESULTS.read_text().splitlines()):  # what a row says is what its key holds
        if row["profile"].startswith("study"):
            pair, cell = (
                study(int(row["L"]), row["profile"], row["expensive"]),
                (row["aggregator"], Schedule(row["schedule"])),
            )
            assert aggregator_entry(pair, *cell, int(row["seed"] or 0), "test").path.name == row["entry"]
    wanted = []
    for L in (8, 16, 32):
        pair, schedules = study(L), tables.check_ratios([], L, load_profile("study")).values()
        cells = [(name, schedule) for name in ("mean", "lstm", "gru", "fast_gru") for schedule in schedules]
        if L == 8:
            units = ("mean", "concat", "lstm", "gru", "fast_gru")
            cells += [(name, Schedule.ratio(n, n - 1)) for name in units for n in (2, 4, 8, 16, 32)]
        wanted += [aggregator_entry(pair, *cell, seed, "test").path.name for cell in cells for seed in (0, 1, 2)]
    assert set(wanted) <= found.keys(), "notebooks 02, 03 and 04 at every L train nothing but their check"


def test_a_cell_trained_here_may_differ_in_a_few_videos_and_not_in_many():
    known = [SimpleNamespace(correct="1" * 100, video1=100.0)]
    close, far = (SimpleNamespace(correct="0" * n + "1" * (100 - n), video1=100.0 - n) for n in (5, 6))
    assert tables.check_live({"cell": [close]}, {"cell": known}).startswith("trained here: 5 of 100 videos differ")
    with pytest.raises(ValueError, match=r"94.00 as trained here, 100.00 as kept, and 6 of 100"):
        tables.check_live({"cell": [far]}, {"cell": known})
