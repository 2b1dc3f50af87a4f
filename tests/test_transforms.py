"""Tests of faster_lib.data.transforms, on frames whose pixels say where they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from faster_lib.data import transforms
from faster_lib.profile_sections import Data
from faster_lib.profiles import load_profile

sizes = st.integers(20, 90)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Frames whose pixel at (t, y, x) is the colour (t, y, x): (T, H, W, 3)."""
    axes = [torch.arange(size, dtype=torch.uint8) for size in (num_frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def data_of(*, short_side_px, crop_px, flip=False) -> Data:
    sides = {"train_short_side_px": short_side_px, "test_short_side_px": short_side_px[0]}
    return load_profile("tiny").data.model_copy(update={**sides, "crop_px": crop_px, "flip": flip})


def train_view(frames, seed, *, short_side_px, crop_px, is_flip_allowed=False):
    data = data_of(short_side_px=short_side_px, crop_px=crop_px, flip=is_flip_allowed)
    cut = transforms.draw_cut(frames.shape[1:3], data, seeded(seed))
    return transforms.cut_frames(frames, cut).movedim(-1, 0)


def eval_view(frames, *, short_side_px, crop_px):
    data = data_of(short_side_px=(short_side_px,) * 2, crop_px=crop_px)
    return transforms.cut_frames(frames, transforms.draw_cut(frames.shape[1:3], data)).movedim(-1, 0)


@settings(max_examples=30)
@given(st.integers(1, 3), sizes, sizes, st.integers(8, 40), st.integers(0, 30), st.integers(0, 30))
def test_both_transforms_give_bytes_of_the_asked_size_for_frames_of_any_size(t, height, width, crop, more, spread):
    frames = coordinates(t, height, width)
    view = train_view(frames, more, short_side_px=(crop + more, crop + more + spread), crop_px=crop)
    centre = eval_view(frames, short_side_px=crop + more, crop_px=crop)
    for clip in (view, centre):
        assert clip.shape == (3, t, crop, crop) and clip.dtype == torch.uint8


@settings(max_examples=50)
@given(sizes, sizes, st.data())
def test_the_training_cut_is_one_window_of_the_frame_the_same_in_every_frame(height, width, data):
    side = min(height, width)
    crop = data.draw(st.integers(1, side) | st.just(side))
    view = train_view(
        coordinates(3, height, width), data.draw(st.integers(0, 999)), short_side_px=(side,) * 2, crop_px=crop
    )
    top, left = int(view[1, 0, 0, 0]), int(view[2, 0, 0, 0])
    assert 0 <= top <= height - crop and 0 <= left <= width - crop
    expected = coordinates(3, height, width)[:, top : top + crop, left : left + crop]
    assert torch.equal(view, expected.permute(3, 0, 1, 2))


def test_every_window_and_every_short_side_of_the_range_is_drawn():
    windows = [train_view(coordinates(1, 22, 22), seed, short_side_px=(22, 22), crop_px=20) for seed in range(150)]
    assert {(int(v[1, 0, 0, 0]), int(v[2, 0, 0, 0])) for v in windows} == {(y, x) for y in range(3) for x in range(3)}
    data = data_of(short_side_px=(20, 24), crop_px=20)
    sides = [transforms.draw_cut((30, 40), data, seeded(seed)).scaled_px for seed in range(60)]
    assert {height for height, _ in sides} == {20, 21, 22, 23, 24}


def test_a_flip_mirrors_the_whole_clip_about_half_of_the_time_and_only_where_allowed():
    frames = coordinates(2, 24, 24)
    straight = frames.permute(3, 0, 1, 2)
    allowed = [train_view(frames, s, short_side_px=(24, 24), crop_px=24, is_flip_allowed=True) for s in range(200)]
    assert all(torch.equal(v, straight) or torch.equal(v, straight.flip(-1)) for v in allowed)
    assert 70 <= sum(torch.equal(v, straight.flip(-1)) for v in allowed) <= 130  # 4 standard deviations
    for seed in range(50):
        assert torch.equal(train_view(frames, seed, short_side_px=(24, 24), crop_px=24), straight)


@pytest.mark.parametrize(("height", "width", "crop"), [(24, 40, 16), (41, 24, 24), (33, 33, 20), (20, 20, 20)])
def test_the_test_cut_is_the_centre_of_the_frame(height, width, crop):
    frames = coordinates(2, height, width)
    clip = eval_view(frames, short_side_px=min(height, width), crop_px=crop)
    top, left = int(clip[1, 0, 0, 0]), int(clip[2, 0, 0, 0])
    assert abs(2 * top - (height - crop)) <= 1 and abs(2 * left - (width - crop)) <= 1
    assert torch.equal(clip, frames[:, top : top + crop, left : left + crop].permute(3, 0, 1, 2))


@settings(max_examples=40)
@given(sizes, sizes, st.integers(10, 100), st.sampled_from([None, 0, 1]))
def test_scaling_keeps_the_aspect_and_gives_the_shorter_side_its_size(height, width, side, seed):
    generator = None if seed is None else seeded(seed)
    cut = transforms.draw_cut((height, width), data_of(short_side_px=(side, side), crop_px=1), generator)
    frames = torch.full((1, height, width, 3), 77, dtype=torch.uint8)
    assert tuple(F.resize(frames.movedim(-1, 1), [side]).shape[-2:]) == tuple(cut.scaled_px), "as torchvision scales"
    assert min(cut.scaled_px) == side
    assert (transforms.cut_frames(frames, cut) == 77).all()


def test_scaling_down_averages_instead_of_skipping_pixels():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::4] = 200  # a mean of 50
    clip = eval_view(stripes, short_side_px=16, crop_px=16).float()
    assert (clip[..., 2:-2] - 50).abs().max() <= 2
