"""Tests of timing: the stopwatch changes no logit, and every model is timed on every video."""

import pytest
import torch
from torch.utils.data import Subset

from faster_lib.data.datasets import VideoClips
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster, Schedule
from faster_lib.report.timing import PARTS, TimedFaster, _now, time_videos


def parts_of(aggregator: str, pattern: str) -> tuple:
    networks = [build_backbone(name, 16, 1 / 64).eval() for name in ("r2plus1d_50", "r2d_26")]
    return *networks, build_aggregator(aggregator, networks[0].channels), Schedule(pattern), 16


@pytest.mark.parametrize("name", ["fast_gru", "avg_pool"])
def test_the_stopwatch_changes_no_logit_and_finds_no_time_where_there_is_no_work(name):
    clips = torch.randn(1, 4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    for pattern, idle in (("ECCC", set()), ("CCCC", {"expensive network"}), ("EEEE", {"cheap network"})):
        parts = parts_of(name, pattern)
        plain, timed = Faster(*parts).eval(), TimedFaster(*parts).eval()
        timed.load_state_dict(plain.state_dict())
        with torch.inference_mode():
            for _ in range(2):  # the second call starts the watch anew
                start = _now()
                logits = timed(clips)
                in_all = _now() - start
                assert torch.equal(logits, plain(clips))
                assert {part for part, seconds in timed.seconds.items() if seconds == 0} == idle
                assert sum(timed.seconds.values()) <= in_all


def test_every_model_is_timed_on_every_video_and_its_parts_are_within_the_whole(videos, make_data):
    clips = VideoClips(videos, make_data(), clip_frames=8, num_clips=8, views=0, seed=0)
    models = {
        "All C": TimedFaster(*parts_of("avg_pool", "C" * 8)),
        "1:3": TimedFaster(*parts_of("fast_gru", "ECCC" * 2)),
    }
    measured = time_videos({name: model.eval() for name, model in models.items()}, Subset(clips, range(2)))
    assert {name: len(seconds) for name, seconds in measured.items()} == {"All C": 2, "1:3": 2}
    for name, timed in measured.items():
        for seconds in timed:
            assert seconds["decoding"] > 0 and (seconds["expensive network"] > 0) == (name != "All C")
            assert sum(seconds[part] for part in PARTS) <= seconds["in all"]
            assert seconds["networks"] <= seconds["in all"] and seconds["at work"] > 0
