"""Tests of the estimate: counts against known ones, arithmetic against that by hand, and no key without effect."""

import pytest
import torch
from torch import nn

from faster_lib.data.datasets import VideoList
from faster_lib.estimate import (
    KNOWN,
    Costs,
    NetworkCosts,
    Videos,
    count_costs,
    count_saved_bytes,
    count_videos,
    estimate,
    gpu_hours,
    measure_files,
)
from faster_lib.profiles import load_profile

SMOKE = load_profile("smoke")
COSTS = Costs(NetworkCosts(1000, 70, 11, 5), NetworkCosts(100, 30, 7, 3), 13)
VIDEOS = Videos(20, 6, 26, 9, "a test")


def with_key(profile, section, **changes):
    before = getattr(profile, section)
    assert set(changes) <= set(type(before).model_fields)
    return profile.model_copy(update={section: before.model_copy(update=changes)})


def test_the_papers_networks_cost_what_tables_2_and_4_prove_and_keep_what_a_clip_of_that_size_makes():
    costs = count_costs(load_profile("kinetics400"), 8)
    assert [round(count / 1e6, 0) for count in (costs.expensive.clip_macs, costs.cheap.clip_macs)] == [29980, 3167]
    assert round(costs.step_macs / 1e6) == 719
    assert [round(net.weights / 1e6, 1) for net in costs[:2]] == [47.0, 14.8]  # batch norm's included
    assert costs.expensive.map_bytes == costs.cheap.map_bytes == 2048 * 1 * 7 * 7 * 2
    maps = estimate(load_profile("kinetics400"), 8, costs, KNOWN["kinetics"]).disk["features of training"].value
    assert maps == 240_000 * 1 * 32 * 2048 * 7 * 7 * 2 * 2, "3 TB"


def test_what_the_backward_pass_needs_is_counted_once_and_weights_are_not():
    network = nn.Sequential(nn.Conv3d(3, 4, 1, bias=False), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.Flatten())
    network.append(nn.Linear(4 * 8, 5))
    # 4 bytes each: the clip, the convolution's result, mean and deviation of 4 channels, and one rectified map for two
    # layers, the linear one's input being a view of it.
    expected = 4 * (2 * 3 * 8 + 2 * 4 * 8 + 2 * 4 + 2 * 4 * 8)
    for device in ("cpu", "meta"):
        network.to(device)
        assert count_saved_bytes(network, torch.zeros(2, 3, 2, 2, 2, device=device)) == expected


def test_the_estimate_is_the_product_of_its_factors_worked_by_hand():
    whole = estimate(with_key(SMOKE, "backbone_training", clips_per_video=3), 8, COSTS, VIDEOS)  # 2 videos of 3 clips
    assert {name: part.value for name, part in whole.macs.items()} == {
        "stage 1, expensive": 6 * 6 * 1000 * 3,
        "stage 1, cheap": 6 * 6 * 100 * 3,
        "features of training": 20 * 2 * 8 * 1100,
        "features of evaluation": 6 * 8 * 1100,
        "stage 2 and evaluation": (3 * 2 * 20 + 6) * 7 * 13,
    }
    assert {name: part.value for name, part in whole.disk.items()} == {
        "videos": 26 * 9,
        "features of training": 20 * 2 * 8 * 8,
        "features of evaluation": 6 * 8 * 8,
    }
    assert {name: part.value for name, part in whole.memory.items()} == {
        "expensive: weights": 70 * 4 * 4,
        "expensive: a batch": 6 * 11,
        "cheap: weights": 30 * 4 * 4,
        "cheap: a batch": 6 * 7,
        "stage 2: features of a batch": 8 * 8 * 8 * 2,
    }
    assert str(whole.macs["stage 1, cheap"]) == "6 iterations × 6 clips × 100 MACs × 3 (forward, backward)"
    assert "passes (3 × 2 epochs × 20 videos + 6)" in str(whole.macs["stage 2 and evaluation"])


@pytest.mark.parametrize(
    ("section", "key", "value", "moved"),
    [
        ("data", "video_frames", 128, {"features of training", "features of evaluation", "stage 2 and evaluation"}),
        ("backbone_training", "iterations", 7, {"stage 1, expensive", "stage 1, cheap"}),
        ("backbone_training", "batch_frames", 32, {"stage 1, expensive", "stage 1, cheap", "expensive: a batch"}),
        ("backbone_training", "most_batch_clips", 3, {"stage 1, expensive", "stage 1, cheap", "cheap: a batch"}),
        ("backbone_training", "clips_per_video", 3, {"stage 1, expensive", "stage 1, cheap"}),
        ("backbone_training", "optimiser", "sgd", {"expensive: weights", "cheap: weights"}),
        ("aggregator_training", "epochs", 3, {"stage 2 and evaluation"}),
        ("aggregator_training", "views", 3, {"features of training"}),
    ],
)
def test_a_key_of_the_profile_moves_the_quantities_that_depend_on_it(section, key, value, moved):
    before, after = (estimate(p, 8, COSTS, VIDEOS) for p in (SMOKE, with_key(SMOKE, section, **{key: value})))
    changed = {
        name for one, other in zip(before, after, strict=True) for name in one if one[name].value != other[name].value
    }
    assert moved <= changed and "videos" not in changed
    untouched = {"stage 1, cheap"} if section != "backbone_training" else {"stage 2 and evaluation"}
    assert not untouched & changed


@pytest.fixture(scope="module")
def smoke_costs():
    """What the networks of the smoke profile cost at L = 8."""
    return count_costs(SMOKE, 8)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "num_classes", 40),
        ("data", "crop_px", 70),
        ("networks", "expensive", "r3d_50"),
        ("networks", "cheap", "r2plus1d_50"),
        ("networks", "width", 0.03125),
        ("networks", "reduction", 2),
    ],
)
def test_a_key_of_the_networks_moves_their_costs(section, key, value, smoke_costs):
    after = count_costs(with_key(SMOKE, section, **{key: value}), 8)
    differs = [one != other for one, other in zip(smoke_costs, after, strict=True)]
    alone = {"expensive": 0, "cheap": 1, "reduction": 2}
    expected = [place == alone[key] for place in range(3)] if key in alone else [True, True, key != "num_classes"]
    assert differs == expected


@pytest.mark.parametrize("name", KNOWN)
def test_the_set_of_a_profile_is_counted_by_what_is_known_where_its_lists_are_missing(name):
    profile = load_profile({"kinetics": "kinetics400"}.get(name, name))
    assert count_videos(with_key(profile, "data", root="nowhere")) == KNOWN[name]


def test_videos_are_counted_by_their_lists_or_scene_and_an_unknown_set_without_lists_is_refused(tmp_path):
    sizes = {"a/1.mp4": 10, "a/2.mp4": 20, "b/3.mp4": 31}
    for path, size in sizes.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x" * size)
    (tmp_path / "train.txt").write_text("a/1.mp4\na/2.mp4\nb/gone.mp4\n")
    (tmp_path / "val.txt").write_text("b/3.mp4\n")
    profile = with_key(load_profile("tank_state"), "data", root=str(tmp_path), num_classes=2)
    assert count_videos(profile)[:4] == (3, 1, 4, round(61 / 3))
    (tmp_path / "val.txt").rename(tmp_path / "test.txt")
    (tmp_path / "val").mkdir()  # of no class, so that no video is in it
    assert count_videos(profile)[:4] == (3, 1, 4, round(61 / 3)), "the test, where nothing is in val"
    assert count_videos(SMOKE)[:3] == (20, 16, 52)
    with pytest.raises(FileNotFoundError, match=r"data\.root is 'nowhere'"):
        count_videos(with_key(profile, "data", root="nowhere"))
    nothing = VideoList((tmp_path / "gone.mp4",), (0,), ("a",))
    with pytest.raises(FileNotFoundError, match=r"none of the listed videos is there, such as .*gone\.mp4"):
        measure_files(nothing, nothing, "a test")


def test_a_gpu_does_half_as_many_macs_as_operations_and_an_impossible_one_is_refused():
    assert gpu_hours(3600 * 10e12 * 0.5 / 2, tflops=10, utilisation=0.5) == pytest.approx(1.0)
    for wrong in ({"tflops": 0.0}, {"utilisation": 1.5}, {"utilisation": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))}.*must be above 0"):
            gpu_hours(1, **wrong)


@pytest.mark.parametrize(("name", "clips"), [("kinetics400", 45e6), ("ucf101", 8e5), ("hmdb51", 3.2e5)])
@pytest.mark.parametrize("clip_frames", [8, 16, 32])
def test_stage_1_sees_as_many_clips_as_its_source_says_at_every_length(name, clips, clip_frames):
    work = estimate(load_profile(name), clip_frames, COSTS, VIDEOS).macs["stage 1, expensive"]
    assert work.value == clips * 1000 * 3
