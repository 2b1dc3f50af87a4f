"""Tests of the shipped networks: they fit the profile, and the commands in their manifest make them."""

import hashlib
import json
import logging
import shlex
from functools import lru_cache

import pytest
import torch
from safetensors.torch import load, save

from faster_lib.data.datasets import Census, Video, VideoList, draw_epochs
from faster_lib.data.synthetic import CLASSES, plan_videos, write_planned
from faster_lib.data.video import File
from faster_lib.paths import WEIGHTS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import read_manifest
from faster_lib.training import loop, stage1
from workflow import factors, ship, train

FIRST, STUDY, KINETICS = map(load_profile, ("study_first", "study_networks", "tiny_kinetics"))
FOLDS = ship.folds_of(load_profile("tiny_ucf101"))
PAIR = ("r2plus1d_50", "r2d_26")
TRAININGS = (STUDY, load_profile("study_networks_1"), load_profile("study_networks_2"))
NETWORKS = [(each, name, L) for each in TRAININGS for L in (8, 16, 32) for name in PAIR] + [(STUDY, "r3d_50", 8)]
NETWORKS += [(FIRST, name, 8) for name in (*PAIR, "r3d_50")]  # those of trainings 1 and 2 would exceed 30 MB
OTHERS = [(profile, name, 8) for profile in (KINETICS, *FOLDS) for name in PAIR]
# Every network and every L, and every recipe: one from nothing, three that grow, one on another set, one on a fold.
TRIED = [(FIRST, "r3d_50", 8), (STUDY, "r2d_26", 8), (STUDY, "r2plus1d_50", 16), (STUDY, "r2d_26", 32)]
TRIED += [(KINETICS, "r2d_26", 8), (FOLDS[1], "r2plus1d_50", 8)]
STEPS = 2


def entry_name(profile: Profile, network: str, clip_frames: int) -> str:
    return stage1.name_backbone(profile, network, clip_frames).entry.path.name


def test_exactly_the_networks_of_these_profiles_are_shipped_whole_and_small():
    manifest = read_manifest()
    expected = {entry_name(*network) for network in NETWORKS + OTHERS}
    assert set(manifest) == expected, "a profile changed; run: make retrain PROFILE=<its name>"
    files = {path.stem: path.read_bytes() for path in WEIGHTS.glob("*.safetensors")}
    assert set(files) == set(manifest)
    sizes = {name: len(content) for name, content in files.items()}
    assert sum(sizes.values()) <= 30e6 and sum(sizes[entry_name(*network)] for network in OTHERS) <= 4e6
    for name, content in files.items():
        assert hashlib.sha256(content).hexdigest() == manifest[name]["sha256"]
        assert all(torch.isfinite(value).all() for value in load(content).values())


def test_the_manifest_names_the_command_of_each_network_and_the_first_losses_of_its_training():
    for network in NETWORKS + OTHERS:
        about = read_manifest()[entry_name(*network)]
        assert about["command"] == ship.training_command(*network, "runs/retrain")
        assert len({*about["measures"]["first_losses"][:STEPS]}) == STEPS


@pytest.fixture(scope="module")
def first_videos(tmp_path_factory):
    """Give a profile's videos of stage 1; only those are made that the first batches of any network hold."""

    @lru_cache
    def make(name: str, fold: int | None) -> VideoList:
        profile = load_profile(name) if fold is None else load_profile(name).in_fold(fold)
        folder, settings, labels = tmp_path_factory.mktemp("videos"), profile.backbone_training, sorted(CLASSES)
        plan = plan_videos(profile.scene, settings.split, has_folds=fold is not None)
        plan = [video for video in plan if video.split.split()[(fold or 1) - 1] == settings.split]
        file = File(
            profile.scene.frames, width_px=profile.scene.size_px, height_px=profile.scene.size_px, decoder="decord"
        )
        videos = [Video(folder / each.name, labels.index(each.label), file) for each in plan]
        largest = max(stage1.count_batch_videos(settings, L) for each, _, L in TRIED if each.scene == profile.scene)
        draws = draw_epochs(len(plan), batch_videos=largest, first=0, iterations=STEPS, seed=settings.seed)
        needed = sorted({number for batch in draws for _, number in batch})
        write_planned([plan[n] for n in needed], folder, profile.scene, workers=profile.loading.workers)
        return VideoList(tuple(videos), tuple(labels), Census(len(plan), len(plan), missing=0, corrupt=0))

    return make


@pytest.mark.parametrize(
    ("profile", "network", "clip_frames"), TRIED, ids=lambda value: getattr(value, "name", str(value))
)
def test_the_command_in_the_manifest_trains_that_network_step_by_step(
    profile, network, clip_frames, first_videos, tmp_path, monkeypatch, record_property
):
    about = read_manifest()[entry_name(profile, network, clip_frames)]
    videos = first_videos(profile.name, profile.data.fold)
    monkeypatch.setattr(stage1, "load_videos", lambda p, split, runs, is_training: videos)
    unread = {"loading": profile.loading.model_copy(update={"workers": 0})}  # reads no batch ahead
    monkeypatch.setattr(train, "load_profile", lambda name: load_profile(name).model_copy(update=unread))
    losses = []

    def watch(_, loss):
        losses.append(loss)
        if len(losses) == STEPS:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    monkeypatch.setattr(loop._Training, "_note", watch)
    arguments = shlex.split(about["command"].removesuffix("runs/retrain"))[2:]
    try:
        with pytest.raises(KeyboardInterrupt):
            train.main([*arguments, str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    first = about["measures"]["first_losses"][:STEPS]
    far = max(abs(ours - theirs) for ours, theirs in zip(losses, first, strict=True))
    record_property("difference in the first losses", far)  # 0 on the machine that trained it
    assert far < 2e-3, f"{losses} against {first}"
    assert len({*losses}) == STEPS  # the step between them moved the weights


def test_retraining_gives_the_same_bits_and_says_so(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    smoke = load_profile("smoke")
    for folder in ("first", "second"):
        ship.retrain(smoke, [8], runs=tmp_path / folder, jobs=2, weights=tmp_path / "weights")
    lines = [record.message for record in caplog.records if record.name == "workflow.ship"]
    assert len(lines) == 4
    assert all(line.endswith("nothing was shipped for this profile and recipe") for line in lines[:2])
    assert all(line.endswith("bit-identical to the shipped one") for line in lines[2:])
    manifest = json.loads((tmp_path / "weights" / "manifest.json").read_text())
    assert {about["profile"] for about in manifest.values()} == {"smoke"} and len(manifest) == 2
    assert all(0 <= about["accuracy"]["video@1 of averaging"] <= 100 for about in manifest.values())
    name = entry_name(smoke, "r2d_26", 8)
    assert "--backbone r2d_26 -L 8 --threads 1 --anew" in manifest[name]["command"]


def test_weights_that_differ_are_reported_with_the_largest_difference(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(save({"w": torch.tensor([1.0, 2.0])}))
    said = ship.compare_weights(save({"w": torch.tensor([1.0, 2.5])}), tmp_path / "a.safetensors")
    assert said == "differs from the shipped one, by at most 0.5 in a weight"


def test_the_parts_of_a_class_are_counted_by_themselves():
    labels = sorted(CLASSES)
    said = [("up_red", "up_red"), ("up_red", "down_blue"), ("left_red", "left_green")]  # by two clips of each video
    true = torch.tensor([labels.index(label) for label in ("up_red", "up_blue", "left_green")])
    logits = torch.tensor([[[float(label == each) for label in labels] for each in video] for video in said])
    logits[:, 1] *= 3  # the second clip is the surer one
    shares = factors.factor_percents(logits, true)
    assert shares == pytest.approx({"clip@1": 50.0, "video@1": 200 / 3, "motion": 200 / 3, "tint": 100.0})
