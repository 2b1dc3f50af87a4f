"""Tests of the shipped networks: they fit the profile, and the commands in their manifest make them."""

import hashlib
import json
import logging
import shlex

import pytest
import torch
from safetensors.torch import load, save

from faster_lib import shipping, training
from faster_lib.data import synthetic
from faster_lib.data.datasets import EpochDraws, VideoList
from faster_lib.paths import WEIGHTS
from faster_lib.profiles import load_profile
from faster_lib.store import read_manifest

TINY = load_profile("tiny")
NETWORKS = [(name, L) for L in (8, 16, 32) for name in ("r2plus1d_50", "r2d_26")] + [("r3d_50", 32)]


def entry_name(network: str, clip_frames: int) -> str:
    return training.backbone_entry(TINY, network, clip_frames).path.name


def test_exactly_the_networks_of_the_default_profile_are_shipped_whole_and_small():
    manifest = read_manifest()
    assert set(manifest) == {entry_name(*network) for network in NETWORKS}, "the profile changed; run: make retrain"
    files = {path.stem: path.read_bytes() for path in WEIGHTS.glob("*.safetensors")}
    assert set(files) == set(manifest)
    assert sum(map(len, files.values())) <= 12e6
    for name, content in files.items():
        assert hashlib.sha256(content).hexdigest() == manifest[name]["sha256"]
        assert all(torch.isfinite(value).all() for value in load(content).values())


@pytest.fixture(scope="module")
def first_videos(tmp_path_factory):
    """The videos of stage 1, of which only those are made that the first batches of any network hold."""
    folder, settings, total = tmp_path_factory.mktemp("videos"), TINY.backbone_training, TINY.scene.videos["stage1"]
    largest = max(training.count_batch_videos(settings, L) for _, L in NETWORKS)
    draws = EpochDraws(total, batch_videos=largest, first=0, iterations=5, seed=settings.seed)  # workers read ahead
    numbers = [number for batch in draws for _, number in batch]
    synthetic._write_videos(numbers, TINY.scene, settings.split, folder, TINY.loading.workers)
    paths = [folder / f"{settings.split}_{number:05d}.mp4" for number in range(total)]
    classes = tuple(sorted(synthetic.CLASSES))
    targets = [classes.index(synthetic.CLASSES[number % len(classes)]) for number in range(total)]
    return VideoList(tuple(paths), tuple(targets), classes)


@pytest.mark.parametrize(("network", "clip_frames"), NETWORKS)
def test_the_command_in_the_manifest_trains_that_network_step_by_step(
    network, clip_frames, first_videos, tmp_path, monkeypatch, record_property
):
    about = read_manifest()[entry_name(network, clip_frames)]
    assert about["command"] == shipping.training_command("tiny", network, clip_frames, "runs/retrain")
    monkeypatch.setattr(training, "load_videos", lambda profile, split, runs, is_training: first_videos)
    losses = []

    def watch(loss, *rest):
        losses.append(loss.item())
        if len(losses) == 2:
            raise KeyboardInterrupt
        take_step(loss, *rest)

    take_step, threads = training.take_step, torch.get_num_threads()
    monkeypatch.setattr(training, "take_step", watch)
    arguments = shlex.split(about["command"].removesuffix("runs/retrain"))[3:]
    try:
        with pytest.raises(KeyboardInterrupt):
            training.main([*arguments, str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    first = about["measures"]["first_losses"][:2]
    far = max(abs(ours - theirs) for ours, theirs in zip(losses, first, strict=True))
    record_property("difference in the first losses", far)  # 0 on the machine that trained it
    assert far < 2e-3, f"{losses} against {first}"
    assert len({*losses}) == 2  # the step between them moved the weights


def test_retraining_gives_the_same_bits_and_says_so(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    smoke = load_profile("smoke")
    for folder in ("first", "second"):
        shipping.retrain(smoke, [8], runs=tmp_path / folder, jobs=2, weights=tmp_path / "weights")
    lines = [record.message for record in caplog.records if record.name == "faster_lib.shipping"]
    assert len(lines) == 6
    assert all(line.endswith("nothing was shipped for this profile and recipe") for line in lines[:3])
    assert all(line.endswith("bit-identical to the shipped one") for line in lines[3:])
    manifest = json.loads((tmp_path / "weights" / "manifest.json").read_text())
    assert {about["profile"] for about in manifest.values()} == {"smoke"} and len(manifest) == 3
    assert all(0 <= about["accuracy"]["video@1 of averaging"] <= 100 for about in manifest.values())
    name = training.backbone_entry(smoke, "r2d_26", 8).path.name
    assert "--backbone r2d_26 -L 8 --threads 1 --anew" in manifest[name]["command"]


def test_weights_that_differ_are_reported_with_the_largest_difference(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(save({"w": torch.tensor([1.0, 2.0])}))
    said = shipping.compare_weights(save({"w": torch.tensor([1.0, 2.5])}), tmp_path / "a.safetensors")
    assert said == "differs from the shipped one, by at most 0.5 in a weight"
