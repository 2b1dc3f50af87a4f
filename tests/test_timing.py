"""Tests of timing: the stopwatch changes no logit and finds no time where there is no work."""

import pytest
import torch

from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster, Schedule
from faster_lib.report.timing import TimedFaster, read_clock


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
                start = read_clock()
                logits = timed(clips)
                in_all = read_clock() - start
                assert torch.equal(logits, plain(clips))
                assert {part for part, seconds in timed.seconds.items() if seconds == 0} == idle
                assert sum(timed.seconds.values()) <= in_all
