"""Golden keys: stored results and shipped networks are found again only as long as these digits stay."""

import pytest
import safetensors.torch

from faster_lib.data import index
from faster_lib.data.index import videos_key
from faster_lib.models.faster import Schedule
from faster_lib.profiles import load_profile
from faster_lib.training import evaluation, features, stage1, stage2
from faster_lib.training.evaluation import aggregator_entry
from faster_lib.training.features import FeaturePair, features_entry
from faster_lib.training.stage1 import name_backbone
from workflow import scan

WORK = {  # what makes or reads a result, where it is called
    safetensors.torch: ("load", "load_file", "save", "save_file"),
    stage1: ("load", "load_videos", "build_backbone", "run_training", "load_ahead"),
    features: ("load_videos", "load_ahead", "extract_features", "compute_features"),
    stage2: ("build_aggregator", "run_trainings"),
    evaluation: ("load", "build_faster", "train_heads", "evaluate"),
    index: ("write_planned", "read_index"),
    scan: ("scan", "choose_decoder"),
}


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """Give an empty folder of results and let all work fail; features are read by a decoder of a fixed name."""

    def fail(*_, **__):
        raise AssertionError("naming a result has done work")

    for module, names in WORK.items():
        for name in names:
            monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(features, "DECODER", "decord2 3.0.0")
    return tmp_path


def test_the_keys_of_the_default_profile_are_as_they_were_and_naming_them_does_no_work(idle):
    tiny = load_profile("tiny")
    expensive, cheap = (name_backbone(tiny, name, 8, runs=idle) for name in ("r2plus1d_50", "r2d_26"))
    pair = FeaturePair(tiny, expensive, cheap, runs=idle)
    every_second = Schedule.ratio(pair.num_clips, 1)
    assert cheap.entry.key == "bbe8db296c9fcd7d"
    assert features_entry(tiny, cheap, "test", pair.num_clips).key == "a10a2cd67f6e5116"
    assert aggregator_entry(pair, "avg_pool", every_second, 0, "test").key == "d8f0e3e754e0a6b5"
    assert aggregator_entry(pair, "fast_gru", every_second, 0, "test").key == "460c118511cad55d"
    assert videos_key(tiny, "train", runs=idle) == "db3aac6069ec35bb"
    assert not list(idle.iterdir())
