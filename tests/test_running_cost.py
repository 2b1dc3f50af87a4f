"""Tests of what a video has cost after each of its clips."""

import numpy as np
import pytest
import torch
from torch import nn

from faster_lib.flops import count_macs, step_macs, video_gmacs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    networks = [build_backbone(name, 5, 1 / 64) for name in ("r2plus1d_50", "r2d_26")]
    built = Faster(*networks, build_aggregator("fast_gru", 32), "ECCE", 5, feature_scales=(2.0, 3.0)).eval()
    for module in built.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)  # so that all scores differ clearly
    return built


def test_each_clip_adds_its_networks_cost_and_from_the_second_on_a_step(model):
    sizes = {"expensive": model.expensive, "cheap": model.cheap, "L": 8, "size_px": 33}
    clip = torch.zeros(1, 3, 8, 33, 33)
    step, cheap = step_macs(model.aggregator, (1, 2, 2)), count_macs(model.cheap, clip)
    expensive = count_macs(model.expensive, clip)
    expected = np.cumsum([expensive, cheap + step, cheap + step, expensive + step]) / 1e9
    spent = [video_gmacs(**sizes, aggregator=model.aggregator, schedule="ECCE"[:t]) for t in (1, 2, 3, 4)]
    assert spent == expected.tolist() and step > 0
    assert video_gmacs(**sizes, aggregator=None, schedule="EE") == 2 * expensive / 1e9
