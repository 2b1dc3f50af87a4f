"""Tests of which frames make up clips, in faster_lib.data.datasets: all of it is checked to the frame."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faster_lib.data import datasets as sampling

frames, clip_lengths, clip_counts = st.integers(1, 400), st.integers(1, 80), st.integers(1, 40)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(frames, clip_lengths, st.data())
def test_a_clip_is_consecutive_frames_that_loop_over_the_video(num_frames, clip_frames, data):
    start = data.draw(st.integers(0, num_frames - 1))
    indices = sampling.clip_frame_indices(start, clip_frames, num_frames)
    assert len(indices) == clip_frames and indices[0] == start
    assert all(0 <= i < num_frames for i in indices)
    assert all(b == a + 1 or (b == 0 and a == num_frames - 1) for a, b in pairwise(indices))


@given(frames, clip_lengths, st.integers(2, 40))
def test_uniform_clips_reach_from_the_first_to_the_last_frame_in_even_steps(num_frames, clip_frames, num_clips):
    starts = sampling.clip_starts(num_frames, clip_frames, num_clips)
    steps = [b - a for a, b in pairwise(starts)]
    assert len(starts) == num_clips and starts[0] == 0
    assert min(steps) >= 0 and max(steps) - min(steps) <= 1
    if num_frames >= clip_frames:
        assert sampling.clip_frame_indices(starts[-1], clip_frames, num_frames)[-1] == num_frames - 1
    else:
        assert set(starts) == {0}


@given(frames, clip_lengths)
def test_a_single_uniform_clip_leaves_out_as_much_before_as_after(num_frames, clip_frames):
    (start,) = sampling.clip_starts(num_frames, clip_frames, 1)
    after = num_frames - clip_frames - start
    assert start == 0 if num_frames <= clip_frames else after - start in (0, 1)


@given(clip_lengths, clip_counts)
def test_clips_whose_frames_add_up_to_the_video_s_cover_it_exactly_once(clip_frames, num_clips):
    num_frames = clip_frames * num_clips
    assert sampling.num_clips_covering(num_frames, clip_frames) == num_clips
    starts = sampling.clip_starts(num_frames, clip_frames, num_clips)
    covered = [i for start in starts for i in sampling.clip_frame_indices(start, clip_frames, num_frames)]
    assert covered == list(range(num_frames))


@given(frames, clip_lengths, clip_counts, st.integers(0, 2**31))
def test_random_clips_are_sorted_independent_draws_that_the_generator_decides(num_frames, clip_frames, num_clips, seed):
    starts = sampling.clip_starts(num_frames, clip_frames, num_clips, seeded(seed))
    generator = seeded(seed)
    draws = [sampling.clip_starts(num_frames, clip_frames, 1, generator)[0] for _ in range(num_clips)]
    assert starts == sorted(draws)
    assert all(0 <= start <= max(num_frames - clip_frames, 0) for start in starts)


def test_every_start_of_a_random_clip_is_equally_likely():
    generator = seeded(0)
    counts = Counter(sampling.clip_starts(12, 8, 1, generator)[0] for _ in range(5000))
    assert sorted(counts) == [0, 1, 2, 3, 4]  # the last clip ends with the last of 12 frames
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations


def test_a_video_shorter_than_a_clip_is_looped():
    assert sampling.clip_frame_indices(0, 8, 3) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert sampling.clip_starts(3, 8, 4, seeded(0)) == sampling.clip_starts(3, 8, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: sampling.clip_frame_indices(0, 8, 0), "frame 0 of a video with 0 frames"),
        (lambda: sampling.clip_frame_indices(10, 8, 10), "frame 10 of a video with 10 frames"),
        (lambda: sampling.clip_frame_indices(-1, 8, 10), "frame -1 of"),
        (lambda: sampling.clip_starts(0, 8, 1, seeded(0)), "8 frames .* 0 frames"),
        (lambda: sampling.clip_starts(10, 0, 1, seeded(0)), "0 frames .* 10 frames"),
        (lambda: sampling.clip_starts(10, 8, 0), "num_clips is 0"),
        (lambda: sampling.num_clips_covering(48, 32), "L is 32, .* 48 frames; choose L from 8, 16, 24, 48$"),
    ],
    ids=["no frame", "start behind", "start before", "empty video", "empty clip", "no clip", "no cover"],
)
def test_an_impossible_request_is_a_value_error_that_quotes_it(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()
