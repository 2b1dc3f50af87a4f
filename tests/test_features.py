"""Tests of the feature maps of frozen networks: the store's shards, and the mode without a store."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save

from faster_lib.inference import fold_batch_norm
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Schedule
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.store import write_whole
from faster_lib.training import evaluation, features, shards
from faster_lib.training.features import FeaturePair, compute_features, extract_features, features_entry
from faster_lib.training.shards import check_disk, find_gaps, list_shards
from faster_lib.training.stage1 import TrainedBackbone, build_network, name_backbone
from faster_lib.workers import load_ahead
from tests.test_ranks import launch

SMOKE = load_profile("smoke")


def backbone(name: str, runs) -> TrainedBackbone:
    """A network as it is before its training, which is enough for features."""
    named = name_backbone(SMOKE, name, 8, runs=runs)
    named.entry.path.mkdir(parents=True, exist_ok=True)
    write_whole(named.entry.path / "weights.safetensors", save(build_network(SMOKE, name).state_dict()))
    return named


def pair_in(runs, profile=None) -> FeaturePair:
    networks = [backbone(name, runs) for name in ("r2plus1d_50", "r2d_26")]
    return FeaturePair(profile or with_loading(), *networks, runs=runs)


def share_videos(made, runs):
    """Let a folder of results see the videos of another."""
    (runs / "smoke").mkdir(parents=True)
    (runs / "smoke" / "videos").symlink_to(made.runs / "smoke" / "videos")


def with_loading(**changes):
    return SMOKE.model_copy(update={"loading": SMOKE.loading.model_copy(update={"workers": 1, **changes})})


LIVE = with_loading(features="on_the_fly")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pair whose features of both splits are stored."""
    pair = pair_in(tmp_path_factory.mktemp("runs"))
    for split in ("train", "test"):
        pair.open(split)
    return pair


@pytest.fixture
def pair(made, tmp_path):
    """The same, in a folder of its own."""
    shutil.copytree(made.runs, tmp_path / "runs")
    return pair_in(tmp_path / "runs")


def shards_of(pair, split: str = "test") -> dict[str, bytes]:
    entries = [features_entry(SMOKE, network, split, 8) for network in (pair.expensive, pair.cheap)]
    return {f"{e.path.name}/{s.path.name}": s.path.read_bytes() for e in entries for s in list_shards(e.path)}


def all_clips(features, view: int = 0) -> list[tuple[torch.Tensor, ...]]:
    videos = torch.arange(len(features.targets))
    return [(videos, torch.full_like(videos, view), torch.arange(8).expand(len(videos), -1))]


def test_a_store_gives_the_maps_that_its_networks_compute_whatever_is_asked_for(made):
    found = made.open("train")
    assert (found.num_views, found.num_clips, len(found.targets)) == (2, 8, 20)
    clips = features._clips(SMOKE, made.expensive, "train", 8)
    videos, views, chosen = torch.tensor([17, 3, 17]), torch.tensor([1, 0, 0]), torch.tensor([[7, 0], [2, 3], [4, 4]])
    ((maps, others),) = found.read_each([(videos, views, chosen)], [Schedule("CE"), Schedule("EE")])
    assert others[1] is maps[1]  # read once
    for t, network in enumerate((made.cheap.network, made.expensive.network)):
        for row in range(3):
            seen = normalise(clips[int(videos[row])][0][views[row], chosen[row, t]])
            expected = fold_batch_norm(network).features(seen[None])[0]
            torch.testing.assert_close(maps[t][row], expected, rtol=2e-3, atol=2e-3)
        assert maps[t].dtype == torch.float32 and torch.equal(maps[t], maps[t].half().float())
    assert found.targets.tolist() == [video.target for video in clips.videos.videos]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "a cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no content": lambda path: path.write_bytes(b""),
    "no file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "interrupted"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_alone_is_made_again_and_not_read(pair, damage, is_complete, caplog):
    before = shards_of(pair)
    entry = features_entry(SMOKE, pair.cheap, "test", 8)
    networks = (pair.expensive, pair.cheap)
    intact, damaged = (shard.path for shard in list_shards(entry.path))  # 16 videos, 8 a shard
    stamp = intact.stat().st_mtime_ns
    extract_features(pair.profile, networks, "test", 8)  # verified in this process, and then damaged
    DAMAGES[damage](damaged)
    if not is_complete:
        (entry.path / "record.json").unlink()
    extract_features(pair.profile, networks, "test", 8)
    assert shards_of(pair) == before and entry.is_complete and intact.stat().st_mtime_ns == stamp
    if damage != "no file":
        assert f"{damaged.name} is damaged" in caplog.text
    elif is_complete:
        assert "lacks videos 8 to 15" in caplog.text


def test_a_store_is_verified_once_and_goes_along_verified_to_other_processes(pair, monkeypatch):
    pair.open("test")
    monkeypatch.setattr(shards.hashlib, "file_digest", None)  # any hash of a file would fail
    other = FeaturePair(pair.profile, pair.expensive, pair.cheap, runs=pair.runs)
    assert len(other.open("test").targets) == 16
    sent = pickle.loads(pickle.dumps(other))
    monkeypatch.setattr(features, "extract_features", None)  # looks for damage
    ((maps,),) = sent.open("test").read_each(all_clips(sent.open("test")), [Schedule("E" * 8)])
    assert [each.shape for each in maps] == [(16, 128, 1, 2, 2)] * 8


def test_threads_that_decode_beside_a_gpu_give_the_same_clips_in_the_same_order(made):
    clips, videos = features._clips(SMOKE, made.expensive, "train", 8), [5, 0, 19, 7]
    alone, beside = (list(load_ahead(clips.__getitem__, iter(videos), workers)) for workers in (0, 2))
    assert all(torch.equal(one.clips, other.clips) for one, other in zip(alone, beside, strict=True))
    assert [item.target for item in beside] == [clips.videos.videos[video].target for video in videos]
    half, full = (
        compute_features([made.expensive.network], alone[0].clips, precision)[0] for precision in ("bf16", "no")
    )
    assert half.dtype == torch.float16 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def test_compiled_networks_give_the_same_maps_to_rounding_under_a_hash_of_their_own(made, monkeypatch):
    compiled, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda method, **how: compiled.append(method) or real(method, **how))
    entries = [
        extract_features(profile, [made.cheap], "test", 8)[0] for profile in (made.profile, with_loading(compiled=True))
    ]
    assert compiled and entries[0].key != entries[1].key
    maps = [torch.cat([load_file(s.path)["features"] for s in list_shards(entry.path)]).float() for entry in entries]
    torch.testing.assert_close(*maps, rtol=2e-3, atol=2e-3)


def test_an_interrupted_store_goes_on_with_another_size_of_shards(pair):
    entry = features_entry(SMOKE, pair.cheap, "train", 8)
    (entry.path / "record.json").unlink()
    maps = torch.cat([load_file(shard.path)["features"] for shard in list_shards(entry.path)])
    list_shards(entry.path)[1].path.unlink()
    extract_features(with_loading(shard_videos=3), (pair.expensive, pair.cheap), "train", 8)
    found = list_shards(entry.path)
    assert [len(shard.videos) for shard in found] == [8, 3, 3, 2, 4]
    assert torch.equal(torch.cat([load_file(shard.path)["features"] for shard in found]), maps)
    assert find_gaps(found, 21, 8) == [range(20, 21)] and find_gaps([], 5, 2) == [range(2), range(2, 4), range(4, 5)]


def test_without_a_store_features_scales_and_results_are_the_same_bit_for_bit(made, tmp_path):
    share_videos(made, tmp_path)
    live = pair_in(tmp_path, LIVE)
    stored, computed = made.open("train"), live.open("train")
    some = [(torch.tensor([5, 19]), torch.tensor([1, 0]), torch.tensor([[0, 3, 6], [1, 2, 7]]))]
    state = torch.get_rng_state()
    for wanted, words in ((all_clips(stored, 1), ("ECCE" * 2, "C" * 8)), (some, ("ECC",))):
        read = (each.read_each(wanted, [Schedule(word) for word in words]) for each in (stored, computed))
        for mine, theirs in zip(*read, strict=True):
            for schedules in zip(mine, theirs, strict=True):
                assert all(torch.equal(*maps) for maps in zip(*schedules, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert live.scales == made.scales and min(live.scales) > 0
    cells = [("fast_gru", Schedule("ECCE")), ("avg_pool", Schedule.ratio(8, 1))]
    both = [evaluation.measure_all(pair, cells, seeds=[0], split="test") for pair in (made, live)]
    mine, theirs = ({cell: replace(runs[0], seconds=0.0) for cell, runs in each.items()} for each in both)
    assert mine == theirs
    kept = [evaluation.aggregator_entry(pair, *cells[0], 0, "test").path for pair in (made, live)]
    assert len({(path / "weights.safetensors").read_bytes() for path in kept}) == 1
    assert not list(tmp_path.rglob("shard_*"))


def test_the_scales_bring_the_training_features_to_a_mean_square_of_one(made):
    wanted = all_clips(made.open("train"), 0) + all_clips(made.open("train"), 1)
    for letter, scale in zip("EC", made.scales, strict=True):
        maps = [torch.stack(each) for (each,) in made.open("train").read_each(wanted, [Schedule(letter * 8)])]
        assert (scale * torch.cat(maps).double()).square().mean().item() == pytest.approx(1, rel=1e-6)


RANKS = """
import sys
from pathlib import Path
from tests.test_features import LIVE, pair_in, with_loading

for profile in (with_loading(), LIVE):
    pair = pair_in(Path(sys.argv[1]), profile)
    (Path(sys.argv[1]) / f"{profile.loading.features}.txt").write_text(str(pair.scales))
"""


def test_two_ranks_write_the_shards_of_one_byte_for_byte_and_find_its_scales(made, tmp_path):
    share_videos(made, tmp_path)
    for rank in launch(RANKS, tmp_path):
        assert rank.returncode == 0, rank.said
    other = pair_in(tmp_path)
    assert shards_of(other, "train") == shards_of(made, "train")
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {str(made.scales)}


def test_features_that_do_not_fit_the_disk_stop_before_anything_is_computed(made, tmp_path, monkeypatch):
    share_videos(made, tmp_path)
    free, usage = 10_000, namedtuple("usage", "total used free")
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda folder: usage(0, 0, free))
    monkeypatch.setattr(features, "_write_shards", None)
    each = "20 × 2 × 8 × 128 × 1 × 2 × 2 × 2"
    message = rf"need 655,360 bytes \({each} \+ {each}: videos × views.*, but 10,000 are free.*features: on_the_fly"
    with pytest.raises(OSError, match=message):
        pair_in(tmp_path).open("train")
    assert not list(tmp_path.rglob("record.json"))[1:] and not list(tmp_path.rglob("shard_*"))
    free = 655_360
    stored = sum(len(content) for content in shards_of(made, "train").values())
    check_disk(tmp_path, [(free,)])
    assert free < stored < 1.02 * free, "the size foreseen is that of the files"


def test_in_8_bits_a_store_is_half_as_large_and_off_by_half_a_step_of_each_channel_at_most(made, tmp_path):
    share_videos(made, tmp_path)
    rounded = pair_in(tmp_path, with_loading(features="stored_8_bit"))
    for letter in "EC":
        schedule = Schedule(letter * 8)
        maps, found = (
            torch.cat([torch.stack(of_video) for (of_video,) in store.read_each(all_clips(store), [schedule])])
            for store in (made.open("test"), rounded.open("test"))
        )
        half_step = maps.abs().amax((0, 1, 3, 4, 5), keepdim=True) / 254
        assert ((maps - found).abs() <= half_step + 1e-3 * maps.abs()).all() and not torch.equal(maps, found)
    paths = [features_entry(each.profile, each.cheap, "test", 8).path for each in (made, rounded)]
    whole, half = (sum(shard.path.stat().st_size for shard in list_shards(path)) for path in paths)
    assert 0.5 < half / whole < 0.6
    cell = ("gru", Schedule("EC"), 0, "test")
    assert evaluation.aggregator_entry(made, *cell).key != evaluation.aggregator_entry(rounded, *cell).key


def test_features_but_no_results_depend_on_the_decoder(made, monkeypatch):
    def keys():
        cell = evaluation.aggregator_entry(made, "gru", Schedule("EC"), 0, "test").key
        return features_entry(SMOKE, made.expensive, "test", 8).key, cell

    before = keys()
    monkeypatch.setattr(features, "DECODER", "decord2 0")
    after = keys()
    assert after[0] != before[0] and after[1] == before[1]
    assert features_entry(LIVE, made.expensive, "test", 8).key == after[0]


MEMORY = """
import resource, sys, torch
from pathlib import Path
from faster_lib.models.faster import Schedule
from faster_lib.training.features import StoredFeatures
from faster_lib.training.shards import write_shard
from faster_lib.store import Entry

def peak_mb(shards):
    entry = Entry("smoke", "features", str(shards), {}, Path(sys.argv[1]))
    entry.path.mkdir(parents=True)
    for first in range(0, 2 * shards, 2):  # 2 MB each
        tensors = {"features": torch.ones(2, 1, 4, 64, 1, 45, 45).half(), "targets": torch.zeros(2, dtype=torch.long)}
        write_shard(entry.path, range(first, first + 2), tensors | {"square_sums": torch.ones(2).double()})
    features = StoredFeatures([entry, entry])
    videos = torch.randperm(2 * shards).split(8)
    wanted = ((v, 0 * v, torch.arange(4).expand(len(v), -1)) for v in videos)
    for _ in features.read_each(wanted, [Schedule("ECCE")]):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, after = peak_mb(10), peak_mb(100)
sys.exit(f"{before:.0f} MB, {after:.0f} MB" if after - before > 10 else 0)
"""


def test_peak_memory_does_not_grow_with_the_store(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"of a store of 20 and one of 200 MB: {done.stderr}"
