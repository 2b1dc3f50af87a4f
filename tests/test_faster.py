"""Tests of faster_lib.models.faster: the schedule as a word, and one way through the model however the clips arrive."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from faster_lib.models.aggregators import AGGREGATORS, build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster, Schedule

CLASSES, CHANNELS = 5, 32
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}  # in double precision: batches of other sizes have other last digits
OF_MAPS = [name for name in AGGREGATORS if name != "avg_pool"]


def make(aggregator: str = "fast_gru", schedule: str = "ECCE", seed: int = 0, **options) -> Faster:
    torch.manual_seed(seed)
    networks = (build_backbone(name, CLASSES, 1 / 64) for name in ("r2plus1d_50", "r2d_26"))
    model = Faster(*networks, build_aggregator(aggregator, CHANNELS), schedule, CLASSES, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)  # so that all scores differ clearly
    return model


def videos(num_clips: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, num_clips, 3, 8, 33, 40, generator=torch.Generator().manual_seed(seed))


def feature_maps(model: Faster, clips: torch.Tensor) -> list[torch.Tensor]:
    """Compute each clip's map by the network that the schedule names."""
    networks = {"E": model.expensive, "C": model.cheap}
    return [networks[letter].features(clip) for letter, clip in zip(model.schedule, clips.unbind(1), strict=True)]


@given(groups=st.integers(1, 40), cheap_per_expensive=st.integers(0, 40))
def test_a_ratio_fills_the_video_with_groups_that_begin_expensive(groups, cheap_per_expensive):
    num_clips = groups * (1 + cheap_per_expensive)
    schedule = Schedule.ratio(num_clips, cheap_per_expensive)
    assert len(schedule) == num_clips
    assert schedule.count("E") == num_clips / (1 + cheap_per_expensive)
    assert schedule.count("E") + schedule.count("C") == num_clips
    assert schedule[0] == "E"
    assert schedule == "".join("C" if t % (1 + cheap_per_expensive) else "E" for t in range(num_clips))


def test_the_schedules_of_tables_3_and_4_are_these_words():
    assert Schedule.ratio(8, 3) == "ECCCECCC"
    assert Schedule.ratio(4, 0) == "EEEE"
    assert [Schedule.ratio(num_clips, num_clips - 1) for num_clips in (1, 2, 4)] == ["E", "EC", "ECCC"]
    assert isinstance(Schedule.ratio(8, 3), Schedule)
    assert repr(Schedule("CE")) == "Schedule('CE')"


@pytest.mark.parametrize("pattern", ["", "EXC", "ec", "E C", 3, None, ["E"]])
def test_a_word_of_other_letters_is_no_schedule_and_is_quoted(pattern):
    with pytest.raises(ValueError, match=re.escape(f"schedule {pattern!r} must be")):
        Schedule(pattern)


@pytest.mark.parametrize(
    ("num_clips", "cheap_per_expensive", "quoted"),
    [
        (8, 2, "1:2 makes groups of 3 clips.* 8 clips.*1:0, 1:1, 1:3, 1:7$"),
        (4, 7, "groups of 8 clips.* 4 clips"),
        (0, 0, "num_clips is 0"),
        (8.0, 1, r"num_clips is 8\.0"),
        (8, -1, "cheap_per_expensive is -1"),
        (8, True, "cheap_per_expensive is True"),
    ],
)
def test_a_ratio_that_cannot_be_is_refused_with_the_value(num_clips, cheap_per_expensive, quoted):
    with pytest.raises(ValueError, match=quoted):
        Schedule.ratio(num_clips, cheap_per_expensive)
    with pytest.raises(ValueError, match="num_clips is 0"):
        Schedule.ratio(0, -1)


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["EEEE", "ECCC", "CECE", "CCCC"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_streaming_and_stored_features_give_what_the_whole_video_gives(name, schedule):
    model, clips = make(name, schedule, feature_scales=(2.0, 3.0)).double(), videos(4).double()
    maps = feature_maps(model, clips)
    state, results = None, []
    for t in range(1, 5):
        state, logits = model.step(clips[:, t - 1], state)
        assert logits.shape == (2, CLASSES)
        torch.testing.assert_close(model(clips[:, :t]), logits, **ROUNDING)
        torch.testing.assert_close(model.from_features(maps[:t]), logits, **ROUNDING)
        results.append(logits)
    assert all((one - other).abs().max() > 1e-9 for one, other in pairwise(results))


UNLIKE = {  # expensive and cheap, with the sizes of their maps for clips of 8 x 33 x 40
    "finer in time, coarser in space": (("r2plus1d_50", 1 / 64), ("torchvision/mc3_18", 1.0)),  # 1x2x2 and 8x1x1
    "finer in space": (("torchvision/r3d_18", 1.0), ("r2d_26", 1 / 64)),  # 1x1x1 and 1x2x2
    "channels": (("r2plus1d_50", 1 / 64), ("r2d_26", 1 / 32)),
}


def make_unlike(aggregator: str, schedule: str, pair: str) -> Faster:
    torch.manual_seed(0)
    networks = [build_backbone(name, CLASSES, width) for name, width in UNLIKE[pair]]
    for network in networks:
        network.input_px = 16  # of torchvision's alone
    aggregator = build_aggregator(aggregator, networks[0].channels)
    return Faster(*networks, aggregator, schedule, CLASSES, feature_scales=(2.0, 3.0)).eval()


@torch.no_grad()
@pytest.mark.parametrize("pair", UNLIKE)
@pytest.mark.parametrize("name", ["avg_pool", "fast_gru", "mean"])
def test_a_pair_of_unlike_maps_too_gives_the_same_whole_streamed_and_from_stored_features(name, pair):
    model, clips = make_unlike(name, "CEC", pair).double(), videos(3).double()
    maps = feature_maps(model, clips)
    assert maps[0].shape != maps[1].shape
    state = None
    for clip in clips.unbind(1):
        state, logits = model.step(clip, state)
    torch.testing.assert_close(model(clips), logits, **ROUNDING)
    torch.testing.assert_close(model.from_features(maps), logits, **ROUNDING)


@torch.no_grad()
def test_the_cheap_map_is_pooled_to_the_expensive_ones_size_or_repeated_and_projected_to_its_channels():
    networks = [build_backbone("r2d_26", CLASSES, width) for width in (1 / 64, 1 / 32)]  # 32 and 64 channels
    model = Faster(*networks, build_aggregator("fast_gru", CHANNELS), "CEC", CLASSES).eval()
    assert model.projection.weight.shape == (32, 64, 1, 1, 1) and model.projection.bias is None
    assert 0.8 < model.projection.weight.std() * 64**0.5 < 1.2
    expensive, fine = torch.rand(2, 32, 1, 2, 2), torch.rand(2, 2, 64, 2, 4, 4)

    def scores(cheap: torch.Tensor, model: Faster = model) -> torch.Tensor:
        return model.from_features([cheap[0], expensive, cheap[1]])

    pooled = fine.reshape(2, 2, 64, 1, 2, 2, 2, 2, 2).mean(dim=(4, 6, 8))  # the mean of each 2 x 2 x 2
    expected = scores(pooled)
    torch.testing.assert_close(scores(fine), expected)
    twin = make("fast_gru", "CEC")
    twin.aggregator, twin.classifier = model.aggregator, model.classifier
    projected = torch.einsum("bnclhw,dc->bndlhw", pooled, model.projection.weight.flatten(1))
    torch.testing.assert_close(scores(projected, twin), expected)
    coarse = torch.rand(2, 2, 64, 1, 1, 1)
    repeated = scores(coarse.expand(-1, -1, -1, -1, 2, 2))
    assert torch.equal(scores(coarse), repeated)
    assert (repeated - expected).abs().max() > 1e-4


def test_a_pair_of_like_maps_has_nothing_to_project_and_averaging_never_has():
    assert not [key for key in make("fast_gru").state_dict() if "projection" in key]
    assert not [key for key in make_unlike("avg_pool", "CE", "channels").state_dict() if "projection" in key]
    model = make_unlike("gru", "CE", "channels")
    assert [key for key in model.state_dict() if "projection" in key] == ["projection.weight"]
    model(videos(2)).sum().backward()
    assert model.projection.weight.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["avg_pool", "fast_gru"])
@pytest.mark.parametrize("schedule", ["ECC", "CEE", "CCE"])
def test_each_clip_is_seen_once_by_the_network_that_the_schedule_names(name, schedule):
    model, seen = make(name, schedule), []
    for letter, network in (("E", model.expensive), ("C", model.cheap)):
        network.stem.register_forward_pre_hook(
            lambda module, inputs, letter=letter: seen.append((letter, inputs[0][:, 0, 0, 0, 0].tolist()))
        )
    clips = torch.ones(2, 3, 3, 8, 33, 40) * torch.tensor([0.0, 1.0, 2.0])[:, None, None, None, None]
    model(clips)  # all clips of both videos in one call of either network
    places = {letter: [float(t) for t, other in enumerate(schedule) if other == letter] for letter in "CE"}
    assert seen == [(letter, 2 * places[letter]) for letter in "CE"]
    seen.clear()
    state = None
    for clip in clips.unbind(1):
        state, _ = model.step(clip, state)
    assert seen == [(letter, [float(t)] * 2) for t, letter in enumerate(schedule)]


@torch.no_grad()
def test_cheap_maps_alone_do_not_say_to_which_size_they_come_unless_both_networks_have_one():
    like, maps = make("fast_gru", "CCE"), [torch.rand(2, CHANNELS, 1, 2, 2) for _ in range(2)]
    assert like.from_features(maps).shape == (2, CLASSES)
    for pair in ("finer in time, coarser in space", "finer in space"):
        model = make_unlike("fast_gru", "CCE", pair)
        cheap = [torch.rand(2, model.cheap.channels, 1, 2, 2) for _ in range(2)]
        with pytest.raises(ValueError, match=r"2 clips of Schedule\('CCE'\) hold no expensive map"):
            model.from_features(cheap)
        expensive = torch.rand(2, model.expensive.channels, 1, 1, 1)
        assert model.from_features([*cheap, expensive]).shape == (2, CLASSES)
    assert make_unlike("avg_pool", "CCE", "finer in space").from_features(maps).shape == (2, CLASSES)


@torch.no_grad()
def test_averaging_gives_the_log_of_the_mean_probability_of_each_clips_own_network():
    model, clips = make("avg_pool", "CECC", feature_scales=(7.0, 7.0)).double(), videos(4).double()
    networks = [model.cheap, model.expensive, model.cheap, model.cheap]
    scores = [network(clip).softmax(1) for network, clip in zip(networks, clips.unbind(1), strict=True)]
    mean = torch.stack(scores).mean(0)
    logits = torch.stack([network(clip) for network, clip in zip(networks, clips.unbind(1), strict=True)]).mean(0)
    torch.testing.assert_close(model(clips), mean.log(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(clips).softmax(1), mean, rtol=1e-10, atol=1e-10)
    assert (logits.softmax(1) - mean).abs().max() > 1e-4  # averaged logits would be something else
    for network in networks[:2]:  # a class that every clip rules out
        network.classifier.bias[0] = -1e4
    assert model(clips).isfinite().all()


@torch.no_grad()
def test_the_control_classifies_the_mean_of_all_maps_by_a_layer_of_its_own_whatever_their_order():
    model = make("mean", "ECCE").double()
    maps = feature_maps(model, videos(4).double())
    expected = model.classifier(torch.stack(maps).mean(dim=(0, -3, -2, -1)))
    for first, last in ((0, 3), (3, 0)):
        torch.testing.assert_close(model.from_features([maps[first], *maps[1:3], maps[last]]), expected, **ROUNDING)
    assert "classifier.weight" in model.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("name", OF_MAPS)
def test_the_feature_scales_multiply_the_features_of_their_network(name):
    plain, scaled = make(name), make(name, feature_scales=(2.0, 0.5))
    clips = videos(4)
    maps = [scale * x for scale, x in zip((2.0, 0.5, 0.5, 2.0), feature_maps(plain, clips), strict=True)]  # of ECCE
    assert torch.equal(scaled(clips), plain.from_features(maps))
    assert (scaled(clips) - plain(clips)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_state_dict_carries_the_whole_model_over(name):
    model, other = make(name, feature_scales=(2.0, 0.5)), make(name, seed=5)
    clips = videos(4)
    assert not torch.equal(other(clips), model(clips))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(clips), model(clips))


def test_parts_that_do_not_fit_are_refused_with_their_sizes():
    networks = {c: build_backbone("r2d_26", c, 1 / 64) for c in (5, 6)}
    wider = build_backbone("r2d_26", 5, 1 / 32)
    gru, averaging = build_aggregator("gru", CHANNELS), build_aggregator("avg_pool", CHANNELS)
    for parts, quoted in [
        ((wider, networks[5], gru), "channels differ: 64 of the expensive network, 32 of the aggregator"),
        ((wider, wider, gru), "channels differ: 64 of the expensive network, 32 of the aggregator"),
        ((networks[6], networks[5], averaging), "classes differ: 6 .* 5 .* 5"),
        ((networks[6], networks[6], averaging), "classes differ: 6 .* 6 .* 5"),
    ]:
        with pytest.raises(ValueError, match=quoted):
            Faster(*parts, "EC", CLASSES)
    with pytest.raises(ValueError, match="'EQ'"):
        Faster(networks[5], networks[5], gru, "EQ", CLASSES)
    assert Faster(networks[6], networks[5], gru, "EC", CLASSES).classifier.out_features == CLASSES


@torch.no_grad()
def test_clips_that_do_not_fit_are_refused_with_their_shape_or_number():
    model = make(schedule="EC")
    for shape, quoted in [
        ((2, 3, 8, 33, 40), r"\(2, 3, 8, 33, 40\)"),
        ((1, 2, 4, 8, 33, 40), r"\(1, 2, 4, 8, 33, 40\)"),
        ((1, 2, 3, 12, 33, 40), "L is 12"),
        ((1, 0, 3, 8, 33, 40), "0 clips do not fit"),
        ((1, 3, 3, 8, 33, 40), r"3 clips do not fit .*Schedule\('EC'\) of 2 clips"),
    ]:
        with pytest.raises(ValueError, match=quoted):
            model(torch.zeros(shape))
    fit = torch.rand(1, CHANNELS, 1, 2, 2)
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"{number} clips do not fit"):
            model.from_features([fit] * number)
    model.schedule = Schedule("ECE")
    for place, bad in [
        (0, fit[:, :8]),
        (1, fit[:, :8]),
        (1, fit[0]),
        (1, fit.expand(2, -1, -1, -1, -1)),
        (2, fit[..., 1:]),
    ]:
        maps = [bad if t == place else fit for t in range(3)]
        shapes = (
            f"maps have shapes {[tuple(x.shape) for x in maps]}; map {place} of Schedule('ECE') must be (1, 32, l, h"
        )
        with pytest.raises(ValueError, match=re.escape(shapes)):
            model.from_features(maps)
    model.schedule = Schedule("EC")
    state = None
    for clip in torch.rand(2, 1, 3, 8, 33, 40):
        state, _ = model.step(clip, state)
    with pytest.raises(ValueError, match="3 clips do not fit"):
        model.step(clip, state)
