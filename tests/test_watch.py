"""Tests of what is seen of a video clip by clip: what each network says, what all so far tells, what it has cost."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from faster_lib.flops import count_macs, running_gmacs, step_macs, video_gmacs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster
from faster_lib.training.evaluation import clip_accuracy_percent, watch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    networks = [build_backbone(name, 5, 1 / 64) for name in ("r2plus1d_50", "r2d_26")]
    built = Faster(*networks, build_aggregator("fast_gru", 32), "ECCE", 5, feature_scales=(2.0, 3.0)).eval()
    for module in built.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)  # so that all scores differ clearly
    return built


@torch.no_grad()
def test_watching_a_video_gives_each_clips_own_scores_and_those_of_every_beginning(model):
    clips = torch.randn(4, 3, 8, 33, 40, generator=torch.Generator().manual_seed(1))
    alone, so_far = watch(model, clips)
    assert alone.shape == so_far.shape == (4, 5)
    for t, network in enumerate((model.expensive, model.cheap, model.cheap, model.expensive)):
        torch.testing.assert_close(alone[t], network(clips[t : t + 1])[0].softmax(0))
        torch.testing.assert_close(so_far[t], model(clips[None, : t + 1])[0].softmax(0))
    assert (so_far[1:] - so_far[:-1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="5 clips do not fit"):
        watch(model, torch.cat([clips, clips[:1]]))


def test_each_clip_adds_its_networks_cost_and_from_the_second_on_a_step(model):
    sizes = {"expensive": model.expensive, "cheap": model.cheap, "L": 8, "size_px": 33}
    clip = torch.zeros(1, 3, 8, 33, 33)
    step, cheap = step_macs(model.aggregator, (1, 2, 2)), count_macs(model.cheap, clip)
    expensive = count_macs(model.expensive, clip)
    expected = np.cumsum([expensive, cheap + step, cheap + step, expensive + step]) / 1e9
    spent = running_gmacs(**sizes, aggregator=model.aggregator, schedule="ECCE")
    assert spent == expected.tolist() and step > 0
    assert spent == [video_gmacs(**sizes, aggregator=model.aggregator, schedule="ECCE"[:t]) for t in (1, 2, 3, 4)]
    assert running_gmacs(**sizes, aggregator=None, schedule="EE") == [expensive / 1e9, 2 * expensive / 1e9]


def held(expensive, cheap, targets):
    """Feature maps (videos, views, N, ...) in memory, read as those of a store."""

    def read_each(requests, schedule):
        for videos, views, clips in requests:
            parts = [expensive if letter == "E" else cheap for letter in schedule]
            yield [part[videos, views, clips[:, t]].float() for t, part in enumerate(parts)]

    return SimpleNamespace(read_each=read_each, targets=targets, num_clips=expensive.shape[2])


def test_clip_accuracy_is_the_share_of_single_clips_that_are_right():
    maps = torch.zeros(2, 1, 4, 3, 1, 1, 1)  # 2 videos, 1 view, 4 clips, 3 channels, which stand for classes
    targets = torch.tensor([2, 1])
    right = maps.clone()
    right[0, 0, :3, 2], right[0, 0, 3, 0], right[1, 0, :, 1] = 1, 1, 1  # 3 of 4, and 4 of 4
    wrong = maps.clone()
    wrong[0, 0, :, 1], wrong[1, 0, :, 2] = 1, 1  # what would be right for the other video
    wrong[0, 0, 0, 2] = 2
    network = SimpleNamespace(classify=lambda features: features.mean(dim=(-3, -2, -1)))
    trained = SimpleNamespace(network=network)
    features = held(right.half(), wrong.half(), targets)
    pair = SimpleNamespace(num_clips=4, expensive=trained, cheap=trained, open=lambda split: features)
    assert clip_accuracy_percent(pair, "test") == {"E": 87.5, "C": 12.5}
