"""Tests of both stages, of the feature store and of the results, on a few videos and steps."""

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.kills import annotate
from faster_lib import store
from faster_lib.data.datasets import Census
from faster_lib.data.index import load_videos
from faster_lib.models import torchvision
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Schedule
from faster_lib.profile_sections import Tuned, Tuning
from faster_lib.profiles import load_profile
from faster_lib.training import checkpoints, evaluation, features, loop, ranks, results, shards, stage1, stage2
from workflow import tune
from workflow.index import index_videos

SMOKE = load_profile("smoke")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Both networks of the smoke profile, trained once for this module."""
    runs = tmp_path_factory.mktemp("runs")
    networks = [stage1.train_backbone(SMOKE, name, 8, runs=runs) for name in ("r2plus1d_50", "r2d_26")]
    return features.FeaturePair(SMOKE, *networks, runs=runs)


def whole(features):
    """Read all maps of a store: (videos, views, N, C, l, h, w) of either network, as they were in memory at once."""
    videos = torch.arange(len(features.targets))
    clips = torch.arange(features.num_clips).expand(len(videos), -1)

    def read(letter):
        requests = ((videos, torch.full_like(videos, view), clips) for view in range(features.num_views))
        maps = features.read_each(requests, [Schedule(letter * features.num_clips)])
        return torch.stack([torch.stack(view, 1) for (view,) in maps], 1)

    return SimpleNamespace(expensive=read("E"), cheap=read("C"), targets=features.targets)


def share_videos(pair, runs):
    """Let a folder of results see the videos of another."""
    (runs / "smoke").mkdir(parents=True, exist_ok=True)
    (runs / "smoke" / "videos").symlink_to(pair.runs / "smoke" / "videos")


def with_training(profile, **changes):
    return profile.model_copy(update={"backbone_training": profile.backbone_training.model_copy(update=changes)})


def with_stage_2(profile, **changes):
    return profile.model_copy(update={"aggregator_training": profile.aggregator_training.model_copy(update=changes)})


def test_the_same_seed_gives_the_same_weights_and_the_same_table_bit_for_bit(pair, tmp_path):
    runs = tmp_path
    share_videos(pair, runs)
    networks = [stage1.train_backbone(SMOKE, name, 8, runs=runs) for name in ("r2plus1d_50", "r2d_26")]
    again = features.FeaturePair(SMOKE, *networks, runs=runs)
    for first, second in zip((pair.expensive, pair.cheap), networks, strict=True):
        assert first.entry.read() == second.entry.read()
    for name in ("avg_pool", "fast_gru"):
        cell = (name, Schedule.ratio(8, 3))
        tables = [evaluation.measure_all(p, [cell], seeds=[0, 1], split="test")[cell] for p in (pair, again)]
        first, second = ([dataclasses.replace(run, seconds=0.0) for run in table] for table in tables)
        assert first == second and len(first) == (1 if name == "avg_pool" else 2)


def test_another_seed_gives_other_weights(pair):
    other = stage1.train_backbone(with_training(SMOKE, seed=1), "r2d_26", 8, runs=pair.runs)
    assert other.entry.read() != pair.cheap.entry.read()


def test_an_interrupted_training_ends_in_the_same_weights(pair, tmp_path, monkeypatch):
    share_videos(pair, tmp_path)
    steps = 0

    def stop_at_five(*args):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return descend(*args)

    descend = loop._Training._descend
    monkeypatch.setattr(loop._Training, "_descend", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path)
    entry = stage1.name_backbone(SMOKE, "r2d_26", 8, runs=tmp_path).entry
    assert not entry.is_complete
    assert torch.load(entry.path / checkpoints.CHECKPOINT, weights_only=True)["progress"]["iteration"] == 4
    resumed = stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path)
    assert steps == 5 + 2  # iterations 5 and 6 alone
    assert resumed.entry.read() == pair.cheap.entry.read()


def test_a_training_does_not_begin_anew_in_silence_when_a_video_is_gone_but_names_it(pair, tmp_path, monkeypatch):
    root = shutil.copytree(pair.runs / "smoke" / "videos", tmp_path / "videos")
    videos = load_videos(SMOKE, "train", runs=pair.runs)
    annotate({"train": renamed(videos, pair.runs / "smoke" / "videos", root)}, root)
    data = {"source": "annotated", "root": str(root), "most_unreadable_share": 0.1}
    real = SMOKE.model_copy(update={"name": "real", "scene": None, "data": SMOKE.data.model_copy(update=data)})
    steps, descend = [], loop._Training._descend

    def stop_at_five(*args):
        steps.append(args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return descend(*args)

    monkeypatch.setattr(loop._Training, "_descend", stop_at_five)
    index_videos(real, runs=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stage1.train_backbone(real, "r2d_26", 8, runs=tmp_path)
    begun = stage1.name_backbone(real, "r2d_26", 8, runs=tmp_path).entry.path
    gone = load_videos(real, "train", runs=tmp_path).videos[3].path
    gone.rename(tmp_path / "elsewhere.mp4")  # or its disk does not answer
    index_videos(real, runs=tmp_path)
    assert stage1.name_backbone(real, "r2d_26", 8, runs=tmp_path).entry.path != begun
    with pytest.raises(
        ValueError, match=rf"{begun} is this training, not finished, .*: - {gone.relative_to(root)} \(1 in"
    ):
        stage1.train_backbone(real, "r2d_26", 8, runs=tmp_path)
    (tmp_path / "elsewhere.mp4").rename(gone)
    index_videos(real, runs=tmp_path)
    assert stage1.train_backbone(real, "r2d_26", 8, runs=tmp_path).entry.path == begun
    assert len(steps) == 5 + 2  # iterations 5 and 6 alone


def renamed(videos, old, new):
    """The same videos in another folder."""
    moved = tuple(dataclasses.replace(video, path=new / video.path.relative_to(old)) for video in videos.videos)
    return dataclasses.replace(videos, videos=moved)


def test_a_training_stopped_before_its_weights_are_written_is_finished_by_the_next_run(pair, tmp_path, monkeypatch):
    share_videos(pair, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stage1, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path)
    assert stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path).entry.read() == pair.cheap.entry.read()


def test_a_full_disk_during_training_leaves_no_weights_and_the_next_run_completes(pair, tmp_path, monkeypatch):
    share_videos(pair, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("faster_lib.store.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path)
    entry = stage1.name_backbone(SMOKE, "r2d_26", 8, runs=tmp_path).entry
    assert [path.name for path in entry.path.iterdir()] == []
    assert stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path).entry.read() == pair.cheap.entry.read()


def test_a_changed_key_of_stage_1_never_meets_the_old_network():
    keys = {stage1.name_backbone(SMOKE, "r2d_26", 8).entry.key}
    for changes in ({"learning_rate": 0.5}, {"seed": 3}, {"iterations": 7}, {"batch_frames": 32}):
        keys.add(stage1.name_backbone(with_training(SMOKE, **changes), "r2d_26", 8).entry.key)
    keys.add(stage1.name_backbone(SMOKE, "r2d_26", 16).entry.key)
    keys.add(stage1.name_backbone(SMOKE, "r3d_50", 8).entry.key)
    scene = SMOKE.model_copy(update={"scene": SMOKE.scene.model_copy(update={"noise": 9.0})})
    keys.add(stage1.name_backbone(scene, "r2d_26", 8).entry.key)
    assert len(keys) == 8


def with_networks(profile, **changes):
    return profile.model_copy(update={"networks": profile.networks.model_copy(update=changes)})


def test_a_start_is_told_from_others_by_its_name_size_and_time_and_is_not_read(tmp_path, monkeypatch):
    old = stage1.name_backbone(SMOKE, "r2d_26", 8).entry
    path = tmp_path / "start.pth"
    path.write_bytes(b"1")
    monkeypatch.setattr("builtins.open", None)
    both = with_networks(SMOKE, cheap_weights=str(path))
    keys = [stage1.name_backbone(both, "r2d_26", 8).entry.key]
    os.utime(path, (1, 1))
    keys.append(stage1.name_backbone(both, "r2d_26", 8).entry.key)
    keys.append(stage1.name_backbone(with_networks(SMOKE, cheap_weights="DEFAULT"), "r2d_26", 8).entry.key)
    assert len({old.key, *keys}) == 4
    assert (
        stage1.name_backbone(both, "r2plus1d_50", 8).entry.key
        == stage1.name_backbone(SMOKE, "r2plus1d_50", 8).entry.key
    )
    assert stage1.start_of(with_networks(SMOKE, expensive_weights="DEFAULT"), "r2plus1d_50") == "DEFAULT"
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        stage1.name_backbone(with_networks(SMOKE, cheap_weights="gone.pth"), "r2d_26", 8)


def test_a_training_starts_from_the_weights_that_the_profile_names(pair, tmp_path):
    share_videos(pair, tmp_path)
    entry = stage1.name_backbone(SMOKE, "r2d_26", 8, runs=pair.runs).entry
    still = with_training(SMOKE, learning_rate=1e-12, weight_decay=0.0, iterations=1)
    start = with_networks(still, cheap_weights=str(entry.path / "weights.safetensors"))
    went_on = stage1.train_backbone(start, "r2d_26", 8, runs=tmp_path)
    fresh = stage1.train_backbone(still, "r2d_26", 8, runs=tmp_path)
    for key, value in pair.cheap.network.state_dict().items():
        if value.ndim > 1:
            assert torch.equal(went_on.network.state_dict()[key], value)
    assert not torch.equal(fresh.network.classifier.weight, pair.cheap.network.classifier.weight)


def tiny_unlike_profile(weights):
    """Smoke, with four clips of a few videos, one iteration, and torchvision's r2plus1d_18 as the expensive network."""
    names = dict(expensive="torchvision/r2plus1d_18", expensive_weights=str(weights), cheap="r2d_26", width=1.0)
    scene = SMOKE.scene.model_copy(update={"frames": 32, "shots": (1, 2), "videos": {"train": 4, "test": 4}})
    parts = {
        "data": SMOKE.data.model_copy(update={"video_frames": 32}),
        "scene": scene,
        "aggregator_training": SMOKE.aggregator_training.model_copy(update={"views": 1}),
    }
    profile = with_networks(SMOKE, **names).model_copy(update=parts)
    return with_training(profile, iterations=1, batch_frames=8)


def test_both_stages_run_with_a_pretrained_network_of_torchvisions_and_an_unlike_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision, "crop_px_of", lambda weights: 32)  # for speed
    torch.save(build_backbone("torchvision/r2plus1d_18", 7).state_dict(), tmp_path / "pretrained.pth")
    profile = tiny_unlike_profile(tmp_path / "pretrained.pth")
    names = (profile.networks.expensive, profile.networks.cheap)
    networks = [stage1.train_backbone(profile, name, 8, runs=tmp_path) for name in names]
    assert {path.name.rsplit("-", 1)[0] for path in (tmp_path / "smoke" / "networks").iterdir() if path.is_dir()} == {
        "torchvision-r2plus1d_18-L8",
        "r2d_26-L8",
    }
    unlike = features.FeaturePair(profile, *networks, runs=tmp_path)
    cells = [("fast_gru", Schedule("CECC")), ("avg_pool", Schedule("CECC"))]
    measured = evaluation.measure_all(unlike, cells, seeds=[0], split="test")
    maps = whole(unlike.open("test"))
    assert maps.expensive.shape == (4, 1, 4, 512, 1, 2, 2) and maps.cheap.shape == (4, 1, 4, 2048, 1, 2, 2)
    model = results.load_faster(unlike, *cells[0], seed=0, split="test")
    assert evaluation.evaluate([model], unlike, "test")[0].correct == measured[cells[0]][0].correct
    kept = load_file(evaluation.aggregator_entry(unlike, *cells[0], 0, "test").path / "weights.safetensors")
    assert torch.equal(model.projection.weight, kept["projection.weight"])
    fresh = ranks.seeded(0, stage2.build_faster, unlike, *cells[0])
    assert not torch.equal(model.projection.weight, fresh.projection.weight)  # so stage 2 trains it


def test_heads_trained_in_one_pass_are_those_trained_alone_and_read_each_clip_once(pair, tmp_path, monkeypatch):
    words = [("fast_gru", "ECECECEC", 0), ("gru", "ECCCECCC", 0), ("fast_gru", "ECECECEC", 1), ("mean", "ECC", 0)]
    heads = [stage2.Head(name, Schedule(word), seed, tmp_path / f"{n}-0") for n, (name, word, seed) in enumerate(words)]
    read, clips = shards.ShardReader.read, []
    monkeypatch.setattr(shards.ShardReader, "read", lambda *what: clips.append(what[3].shape[1]) or read(*what))
    together = stage2.train_heads(pair, heads)
    assert sum(clips) == 6 * ((4 + 6) + (4 + 4) + (1 + 2))  # 6 steps; seed 0's eight clips are read for two schedules
    clips.clear()
    alone = [stage2.train_heads(pair, [head])[0] for head in heads]
    assert sum(clips) == 6 * (8 + 8 + 8 + 3)
    for one, other in zip(together, alone, strict=True):
        assert one.loss == other.loss
        for (name, weight), same in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
            assert torch.equal(weight, same), name


def test_an_aggregator_is_trained_as_was_chosen_for_it_and_the_others_as_the_profile_says(pair, tmp_path):
    mixed, choice = Schedule.ratio(8, 3), Tuned(learning_rate=1e-2, epochs=4)
    chosen, same = with_stage_2(SMOKE, tuned={"gru": choice}), with_stage_2(SMOKE, learning_rate=1e-2, epochs=4)
    one, other = (features.FeaturePair(p, pair.expensive, pair.cheap, runs=pair.runs) for p in (chosen, same))
    keys = [results.aggregator_entry(p, "gru", mixed, 0, "test").key for p in (one, other, pair)]
    assert keys[0] == keys[1] != keys[2]
    untouched = [results.aggregator_entry(p, "mean", mixed, 0, "test").key for p in (one, pair)]
    assert untouched[0] == untouched[1]
    heads = [stage2.Head(name, mixed, 0, tmp_path / name) for name in ("gru", "mean")]
    (long, _), (alone,) = stage2.train_heads(one, heads), stage2.train_heads(other, [heads[0]])
    (short,) = stage2.train_heads(pair, [heads[1]._replace(folder=tmp_path / "again")])
    trained = stage2.train_heads(one, [heads[1]._replace(folder=tmp_path / "both"), heads[0]])
    for found, expected in ((long, alone), (trained[1], alone), (trained[0], short)):
        wanted = expected.model.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.model.state_dict().items())


def test_the_grid_is_tried_on_val_and_every_try_is_kept(pair, tmp_path, monkeypatch):
    grid = Tuning(learning_rates=(1e-9, 1e-2), epochs=(1,))
    profile = with_stage_2(SMOKE, tuning=grid, learning_rate=1e-2)
    with pytest.raises(ValueError, match=r"epochs \[1\]; they must hold the profile's own, 0.01 and 2"):
        tune.try_grid(profile, 8, ["mean"], [3])
    profile = with_stage_2(profile, epochs=1)
    by_name = {network.name: network for network in (pair.expensive, pair.cheap)}
    monkeypatch.setattr(tune, "train_backbone", lambda _, name, L: by_name[name])
    monkeypatch.setattr(tune, "FeaturePair", functools.partial(features.FeaturePair, runs=pair.runs))
    monkeypatch.setattr(tune, "TABLE", tmp_path / "tuning.csv")
    rows = tune.try_grid(profile, 8, ["mean", "gru"], [3])
    tried = [(row["learning_rate"], row["aggregator"], row["seed"]) for row in rows]
    assert tried == [(*each, tune.SEED) for each in itertools.product((1e-9, 1e-2), ("mean", "gru"))]
    assert rows[0]["train_loss"] != rows[2]["train_loss"]
    tune.keep([{**row, "profile": "other"} for row in rows[:1]])
    tune.keep(rows[:2])
    tune.keep(rows)
    assert len(tune.read_tuning("smoke")) == 4 and len(tune.read_tuning("other")) == 1


def test_the_own_pair_stays_unless_another_one_is_clearly_better_on_val():
    def chosen(*tries):
        keys = ("learning_rate", "epochs", "val_video1")
        rows = [{"aggregator": "gru", **dict(zip(keys, each, strict=True))} for each in tries]
        return tune.choose(load_profile("tiny"), rows)

    own = ("0.002", "6", "90.0")
    assert chosen(own, ("0.001", "6", "91.0"), ("0.005", "12", "89.0")) == {}
    assert chosen(own, ("0.001", "6", "91.1")) == {"gru": Tuned(learning_rate=0.001)}
    better = ("0.001", "12", "91.1")
    assert chosen(better, ("0.005", "12", "91.1"), own) == {"gru": Tuned(learning_rate=0.001, epochs=12)}
    assert chosen(("0.005", "6", "91.1"), better, own) == {"gru": Tuned(learning_rate=0.005)}


@pytest.mark.parametrize("name", sorted({row["profile"] for row in tune.read_tuning()}))
def test_a_profile_trains_its_aggregators_as_the_table_of_tuning_says(name):
    assert load_profile(name).aggregator_training.tuned == tune.choose(load_profile(name), tune.read_tuning(name))


def test_a_head_that_is_not_finite_is_named_and_leaves_the_others_and_a_stopped_pass_goes_on(pair, monkeypatch):
    schedule, descend = Schedule("ECCCCCCC"), loop._Training._descend
    runs = [((name, schedule), 0) for name in ("concat", "fast_gru", "lstm")]
    entries = [evaluation.aggregator_entry(pair, *cell, seed, "test") for cell, seed in runs]

    def disturb(training, *what):
        if training.task.folder.name.startswith("fast_gru"):
            raise training._not_finite("the loss is nan")
        if training.task.folder.name.startswith("lstm") and training.progress["iteration"] == 4:
            raise KeyboardInterrupt
        return descend(training, *what)

    often = with_stage_2(pair.profile, checkpoint_iterations=3)
    often = features.FeaturePair(often, pair.expensive, pair.cheap, runs=pair.runs)
    monkeypatch.setattr(loop._Training, "_descend", disturb)
    with pytest.raises(KeyboardInterrupt):
        evaluation._complete(often, runs, "test")
    kept = [checkpoints.read_checkpoint(entry.path) for entry in entries]
    assert [state and state["progress"]["iteration"] for state in kept] == [3, None, 3]
    with pytest.raises(FloatingPointError, match=r"^fast_gru-L8-1E7C-seed0: the loss is nan; lower learning_rate"):
        evaluation._complete(often, [run for run in runs if run[0][0] != "lstm"], "test")
    assert [entry.is_complete for entry in entries] == [True, False, False]
    assert json.loads((entries[1].path / store.BEGUN).read_text())["error"].startswith("the loss is nan")
    monkeypatch.setattr(loop._Training, "_descend", descend)
    evaluation._complete(often, runs, "test")
    assert all(entry.is_complete for entry in entries)


def test_training_features_come_at_unit_size_and_the_networks_stay_frozen(pair, tmp_path):
    weights = copy.deepcopy(pair.expensive.network.state_dict())
    head = stage2.Head("fast_gru", Schedule.ratio(8, 1), 0, tmp_path / "aggregators" / "gru")
    model = stage2.train_heads(pair, [head])[0].model
    scaled = whole(pair.open("train")).cheap * model.feature_scales[1]
    assert scaled.square().mean().item() == pytest.approx(1, rel=1e-3)
    for name, weight in pair.expensive.network.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_shorter_schedule_gets_its_own_test_clips_and_draws_of_the_stored_training_clips(pair):
    schedule = Schedule.ratio(3, 2)
    cells = [("fast_gru", schedule), ("avg_pool", Schedule("CCC"))]
    results = evaluation.measure_all(pair, cells, seeds=[0], split="test")
    few, all_clips = whole(pair.open("test", 3)), whole(pair.open("test"))
    assert few.cheap.shape[2] == 3
    # 64 frames, L = 8: three clips start at 0, 28 and 56; of the eight, the first and the last start there too
    assert torch.equal(few.cheap[:, :, [0, 2]], all_clips.cheap[:, :, [0, 7]])
    assert not torch.equal(few.cheap[:, :, 1], all_clips.cheap[:, :, 3])
    scores = [pair.cheap.network.classify(few.cheap[:, 0, t].float()).softmax(-1) for t in range(3)]
    right = (sum(scores).argmax(-1) == few.targets).tolist()
    (averaging,) = results["avg_pool", Schedule("CCC")]
    assert averaging.correct == "".join(str(int(mark)) for mark in right)
    assert averaging.video1 == pytest.approx(100 * sum(right) / 16)
    drawn = stage2.draw_clips(1000, 8, 3, torch.Generator().manual_seed(0))
    assert (drawn.diff(dim=1) > 0).all() and drawn.min() == 0 and drawn.max() == 7
    assert torch.bincount(drawn.flatten(), minlength=8).min() > 3000 / 8 * 0.8  # each as often as the others


def test_a_result_depends_on_neither_workers_nor_threads(pair, tmp_path):
    cell = ("gru", Schedule.ratio(8, 1))
    by_two = SMOKE.model_copy(update={"loading": SMOKE.loading.model_copy(update={"workers": 2})})
    share_videos(pair, tmp_path)
    (tmp_path / "smoke" / "networks").symlink_to(pair.runs / "smoke" / "networks")
    other = features.FeaturePair(by_two, pair.expensive, pair.cheap, runs=tmp_path)  # makes features of its own too
    theirs = evaluation.measure_all(other, [cell], seeds=[0, 1], split="test")[cell]
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    try:
        mine = evaluation.measure_all(pair, [cell], seeds=[0, 1], split="test")[cell]
        assert torch.get_num_threads() == 1 + threads % 2
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(mine, theirs, strict=True):
        assert (first.train_loss, first.correct) == (second.train_loss, second.correct)


@pytest.mark.parametrize(("cores", "workers", "used"), [(2, 2, 1), (2, 1, 1), (4, 1, 3), (64, 2, 3), (1, 0, 1)])
def test_stage_1_leaves_a_core_to_each_loading_thread(pair, cores, workers, used, monkeypatch):
    loading = SMOKE.loading.model_copy(update={"workers": workers})
    monkeypatch.setattr(stage1, "count_cores", lambda: cores)
    monkeypatch.setattr(stage1, "run_training", lambda network, task: {"seen": torch.get_num_threads()})
    with ranks.limited_threads(99) as before:
        torch.set_num_threads(3)
        videos = stage1.load_videos(SMOKE, SMOKE.backbone_training.split, runs=pair.runs, is_training=True)
        profile = SMOKE.model_copy(update={"loading": loading})
        _, measures = stage1._train(stage1.name_backbone(profile, "r2d_26", 8, runs=pair.runs), videos)
        assert measures["seen"] == measures["threads"] == used and torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_a_measured_model_is_found_again_and_scores_as_it_did(pair):
    cell = ("fast_gru", Schedule.ratio(8, 3))
    measured = evaluation.measure_all(pair, [cell], seeds=[0], split="test")[cell][0]
    model = results.load_faster(pair, *cell, seed=0, split="test")
    assert evaluation.evaluate([model], pair, "test")[0].correct == measured.correct
    entry = evaluation.aggregator_entry(pair, *cell, 0, "test")
    weights = load_file(entry.path / "weights.safetensors")
    assert any(weight.abs().sum() for weight in weights.values())
    assert torch.equal(model.aggregator.V_x.weight, weights["aggregator.V_x.weight"])


def test_weights_are_kept_in_half_precision_and_are_the_ones_that_results_come_from(pair):
    entry = stage1.name_backbone(SMOKE, "r2d_26", 8, runs=pair.runs).entry
    kept = load_file(entry.path / "weights.safetensors")
    assert {str(value.dtype) for value in kept.values() if value.ndim > 1} == {"torch.float16"}
    for name, value in pair.cheap.network.state_dict().items():
        assert torch.equal(value, kept[name].to(value.dtype)), name


def test_a_shipped_network_is_used_as_it_is_and_a_damaged_one_refused(pair, tmp_path, monkeypatch):
    made = stage1.name_backbone(SMOKE, "r2d_26", 8, runs=pair.runs).entry
    content = (made.path / "weights.safetensors").read_bytes()
    about = {"sha256": hashlib.sha256(content).hexdigest(), "measures": made.record["measures"], "profile": "smoke"}
    monkeypatch.setattr(store, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(store.read_manifest, "__defaults__", (tmp_path / "weights",))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "manifest.json").write_text(json.dumps({made.path.name: about}))
    shipped = tmp_path / "weights" / f"{made.path.name}.safetensors"
    shipped.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"manifest says.*make retrain"):
        stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path / "runs")
    shipped.write_bytes(content)
    used = stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path / "runs")
    assert used.entry.read() == pair.cheap.entry.read() and used.seconds == pair.cheap.seconds
    assert not (tmp_path / "runs" / "smoke" / "videos").exists()  # nothing was trained
    changed = with_training(SMOKE, seed=1)
    share_videos(pair, tmp_path / "runs")
    assert stage1.train_backbone(changed, "r2d_26", 8, runs=tmp_path / "runs").entry.read() != used.entry.read()


@pytest.fixture(scope="module")
def target():
    """Another set of generated videos, on which both stages go on from the smoke profile's."""
    scene = SMOKE.scene.model_copy(update={"seed": 1, "videos": {"train": 16, "test": 16}})
    networks = SMOKE.networks.model_copy(update={"pretrained_in": "smoke"})
    return SMOKE.model_copy(update={"name": "target", "scene": scene, "networks": networks})


def test_stage_1_goes_on_from_the_pretrained_network_but_for_its_classifier(pair, target, monkeypatch):
    def look(network, task):
        start.update(copy.deepcopy(network.state_dict()))
        raise KeyboardInterrupt

    start = {}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage1, "run_training", look)
        stage1.train_backbone(target, "r2d_26", 8, runs=pair.runs)
    for name, weight in pair.cheap.network.state_dict().items():
        assert torch.equal(start[name], weight) != name.startswith("classifier."), name
    trained = stage1.train_backbone(target, "r2d_26", 8, runs=pair.runs)
    assert trained.entry.depends["pretrained"] == pair.cheap.entry.key
    assert pair.cheap.entry.depends["pretrained"] is None
    assert trained.pretrained.entry.read() == pair.cheap.entry.read()


def test_a_network_grows_from_that_of_another_profile_or_from_the_one_for_half_of_its_length(
    pair, tmp_path, monkeypatch
):
    changes = {"grown_from": "smoke", "iterations": 3, "learning_rate": 1e-4}
    growing = SMOKE.model_copy(update={"backbone_training": SMOKE.backbone_training.model_copy(update=changes)})
    named = stage1.name_backbone(growing, "r2d_26", 16, runs=pair.runs)
    again = stage1.name_backbone(growing, "r2d_26", 8, runs=pair.runs)
    assert named.pretrained.entry.key == again.pretrained.entry.key == pair.cheap.entry.key != again.entry.key
    start = {}

    def look(network, task):
        start.update(copy.deepcopy(network.state_dict()), steps=task.steps, rate=task.settings.learning_rate)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage1, "run_training", look)
        stage1.train_backbone(growing, "r2d_26", 16, runs=pair.runs)
    assert (start.pop("steps"), start.pop("rate")) == (3, 1e-4)
    for name, weight in pair.cheap.network.state_dict().items():
        assert torch.equal(start[name], weight), name  # the classifier too
    longest = stage1.name_backbone(growing, "r2d_26", 32, runs=pair.runs)
    assert longest.pretrained.entry.key == named.entry.key != stage1.name_backbone(SMOKE, "r2d_26", 16).entry.key


def test_networks_of_another_profile_serve_as_they_are(pair):
    other = SMOKE.model_copy(
        update={"name": "other", "networks": SMOKE.networks.model_copy(update={"trained_in": "smoke"})}
    )
    used = stage1.train_backbone(other, "r2d_26", 8, runs=pair.runs)
    assert used.entry.path == pair.cheap.entry.path and used.entry.read() == pair.cheap.entry.read()


def test_stage_2_goes_on_from_the_aggregator_of_the_same_name_schedule_and_seed(pair, target):
    networks = [stage1.train_backbone(target, name, 8, runs=pair.runs) for name in ("r2plus1d_50", "r2d_26")]
    ours, cell = features.FeaturePair(target, *networks, runs=pair.runs), ("gru", Schedule.ratio(8, 1))
    slow = with_stage_2(target, learning_rate=1e-9)  # whose stage 2 moves no weight
    still = features.FeaturePair(slow, *networks, runs=pair.runs)
    evaluation.measure_all(still, [cell], seeds=[1], split="test")
    kept, before = (
        load_file(evaluation.aggregator_entry(p, *cell, 1, split).path / "weights.safetensors")
        for p, split in ((still, "test"), (pair, "val"))
    )
    parts = [name for name in before if name.startswith("aggregator.")]
    assert parts and all(torch.allclose(kept[name], before[name], atol=1e-6) for name in parts)
    scaled = networks[0].network.classifier.weight / still.scales[0]
    assert torch.allclose(kept["classifier.weight"], scaled, atol=1e-6), "the classifier is the target's own"
    anew = features.FeaturePair(target.model_copy(update={"networks": SMOKE.networks}), *networks, runs=pair.runs)
    keys = {evaluation.aggregator_entry(p, *cell, seed, "test").key for p in (ours, anew) for seed in (0, 1)}
    assert len(keys) == 4
    averages = {evaluation.aggregator_entry(p, "avg_pool", Schedule("E"), 0, "test").key for p in (ours, anew)}
    assert len(averages) == 1, "averaging learns nothing"


def test_accuracy_counts_the_videos_whose_class_is_among_the_highest_scores():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
    targets = torch.tensor([0, 1, 1, 1])
    assert evaluation.accuracy_percent(logits, targets) == 50
    assert evaluation.accuracy_percent(logits, targets, top=2) == 75
    assert evaluation.accuracy_percent(logits, targets, top=5) == 100


def test_the_learning_rate_warms_up_and_falls_to_zero_along_a_cosine():
    settings = SMOKE.backbone_training.model_copy(
        update={"learning_rate": 1.0, "warmup_share": 0.2, "optimiser": "sgd"}
    )
    optimiser, schedule = loop.build_optimiser([torch.nn.Parameter(torch.zeros(1))], settings, 10, batch_samples=8)
    rates = []
    for _ in range(10):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # halfway down
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0)


def test_the_learning_rate_is_scaled_to_the_batch_where_the_profile_says_for_which_it_is_meant():
    settings = SMOKE.backbone_training.model_copy(update={"learning_rate": 0.01, "warmup_share": 0.0})
    for meant_for, expected in ((None, 0.01), (32, 0.04), (256, 0.005)):
        scaled = settings.model_copy(update={"learning_rate_samples": meant_for})
        optimiser, _ = loop.build_optimiser([torch.nn.Parameter(torch.zeros(1))], scaled, 4, batch_samples=128)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_training(pair, tmp_path, monkeypatch):
    share_videos(pair, tmp_path)
    monkeypatch.setattr(stage1, "normalise", lambda clips: clips.float() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan; lower learning_rate, which is 0\.002"):
        stage1.train_backbone(SMOKE, "r2d_26", 8, runs=tmp_path)


def test_a_batch_holds_as_many_frames_at_every_clip_length_but_never_more_clips_than_the_most():
    settings = {"batch_frames": 512, "most_batch_clips": 48, "clips_per_video": 1}
    stage_1 = load_profile("tiny").backbone_training.model_copy(update=settings)
    assert {L: stage1.count_batch_videos(stage_1, L) for L in (8, 16, 32, 256)} == {8: 48, 16: 32, 32: 16, 256: 2}
    twice = stage_1.model_copy(update={"clips_per_video": 2})
    assert stage1.count_batch_videos(twice, 8) == 24 and stage1.count_batch_videos(twice, 32) == 8
    many = stage_1.model_copy(update={"clips_per_video": 48})
    with pytest.raises(ValueError, match=r"holds 32 clips of L = 16 frames.* is 512.*clips_per_video is 48"):
        stage1.count_batch_videos(many, 16)


def test_macro_f1_counts_every_class_that_is_there_alike_whatever_its_share():
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 3).float()
    census = Census(expected=5, used=4, missing=1, corrupt=0)
    found = evaluation._measure(logits, torch.tensor([0, 0, 0, 1]), census)
    assert found.video1 == 75 and found.correct == "1101" and found.commonest == 75
    assert found.video1_of_expected == 60 and found.census == census
    # Class 0: precision 1, recall 2/3; class 1: 1/2 and 1; no video is of class 2, so it does not count.
    assert found.macro_f1 == pytest.approx(100 * (0.8 + 2 / 3) / 2)


@pytest.mark.parametrize("module", ["stage1", "features", "results"])
def test_another_recipe_of_a_stage_gives_other_entries(pair, module, monkeypatch):
    def entries():
        return {
            "stage1": stage1.name_backbone(SMOKE, "r2d_26", 8, runs=pair.runs).entry.key,
            "features": features.features_entry(SMOKE, pair.cheap, "test", 8).key,
            "results": evaluation.aggregator_entry(pair, "gru", Schedule("EC"), 0, "test").key,
        }

    before = entries()
    recipes = {
        "stage1": "stage1.RECIPE_STAGE_1",
        "features": "features.RECIPE_FEATURES",
        "results": "results.RECIPE_STAGE_2",
    }
    monkeypatch.setattr(f"faster_lib.training.{recipes[module]}", 99)
    assert {key for key, value in entries().items() if value != before[key]} == {module}
