"""Tests of faster_lib.data.datasets: every item can be told from the video files alone, in any order, by any worker."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from faster_lib.data import datasets as sampling
from faster_lib.data.datasets import RandomClips, Video, VideoClips, VideoList, draw_epochs, generator_for
from faster_lib.data.transforms import cut_frames, draw_cut
from faster_lib.data.video import VideoError, encode_h264
from faster_lib.workers import load_ahead


def frames_of(path, indices=None) -> torch.Tensor:
    """Frames as clips have them: (3, T, H, W)."""
    reader = Video(path).open()
    return reader.read(range(len(reader)) if indices is None else indices).permute(3, 0, 1, 2)


def start_of(clip: torch.Tensor, whole: torch.Tensor) -> int:
    """Find where in a video an uncut clip begins; it must be there with all its frames in a row."""
    length = clip.shape[1]
    starts = [i for i in range(whole.shape[1] - length + 1) if torch.equal(whole[:, i : i + length], clip)]
    assert len(starts) == 1
    return starts[0]


def random_clips(videos, data, *, seed=0, clip_frames=8, clips_per_video=2):
    return RandomClips(videos, data, clip_frames=clip_frames, clips_per_video=clips_per_video, seed=seed)


def video_clips(videos, data, *, views=0, seed=0, clip_frames=8, num_clips=8):
    return VideoClips(videos, data, clip_frames=clip_frames, num_clips=num_clips, views=views, seed=seed)


def equal_items(a, b) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(torch.as_tensor(a[1]), torch.as_tensor(b[1]))


def test_random_clips_are_consecutive_frames_that_depend_on_seed_epoch_and_index_alone(videos, make_data):
    clips = random_clips(videos, make_data())
    draws = [(epoch, index) for epoch in (0, 1, 5) for index in range(len(videos))]
    items = {draw: clips[draw] for draw in draws}
    starts = {}
    for (epoch, index), (item, target) in items.items():
        assert item.shape == (2, 3, 8, 40, 40) and item.dtype == torch.uint8 and target == videos.videos[index].target
        whole = frames_of(videos.videos[index].path)
        starts[epoch, index] = [start_of(clip, whole) for clip in item]
    again = random_clips(videos, make_data())
    assert all(equal_items(again[draw], items[draw]) for draw in reversed(draws))
    assert len({tuple(pair) for pair in starts.values()}) > len(draws) / 2  # epochs and videos have draws of their own
    assert not equal_items(random_clips(videos, make_data(), seed=1)[0, 0], items[0, 0])


def test_videos_that_come_again_are_read_from_memory_as_far_as_there_is_room(videos, make_data, monkeypatch):
    draws, opened, open_video = [(epoch, index) for epoch in range(3) for index in range(6)], [], Video.open
    monkeypatch.setattr(Video, "open", lambda video: opened.append(video) or open_video(video))
    two = 2 * 3 * 64 * 40 * 40 / 2**30
    items, counts = [], []
    for kept_gib, percent in ((0.0, 0), (two, 49), (1.0, 49), (1.0, 50)):
        memory = SimpleNamespace(percent=percent)
        monkeypatch.setattr(sampling.psutil, "virtual_memory", lambda memory=memory: memory)
        opened.clear()
        clips = RandomClips(videos, make_data(), clip_frames=8, clips_per_video=2, seed=0, kept_gib=kept_gib)
        items.append([clips[draw] for draw in draws])
        counts.append(len(opened))
    assert counts == [18, 16, 12, 18]  # the first epoch decodes what it needs, the second all of what is kept
    for other in items[1:]:
        assert all(map(equal_items, items[0], other))


@given(num_videos=st.integers(1, 30), batch=st.integers(1, 70), iterations=st.integers(0, 25), data=st.data())
def test_every_epoch_visits_every_video_once_and_resuming_yields_exactly_the_tail(num_videos, batch, iterations, data):
    first = data.draw(st.integers(0, iterations))

    def draws(first: int, seed: int = 4):
        return draw_epochs(num_videos, batch_videos=batch, first=first, iterations=iterations, seed=seed)

    batches = list(draws(0))
    assert len(batches) == iterations and {len(b) for b in batches} <= {batch}
    assert list(draws(first)) == batches[first:]
    flat = [draw for b in batches for draw in b]
    for epoch in range(len(flat) // num_videos + 1):
        visits = flat[epoch * num_videos : (epoch + 1) * num_videos]
        assert {e for e, _ in visits} <= {epoch}
        assert len({index for _, index in visits}) == len(visits) and {i for _, i in visits} <= set(range(num_videos))
    if num_videos >= 20 and len(flat) >= 2 * num_videos:  # two equal orders of 20 would be a wonder
        assert [i for _, i in flat[:num_videos]] != [i for _, i in flat[num_videos : 2 * num_videos]]
        assert flat != [draw for b in draws(0, seed=5) for draw in b]


def test_uniform_clips_equal_the_same_frames_read_and_cut_directly(videos, make_data):
    whole_frames = video_clips(videos, make_data())
    assert len(whole_frames) == len(videos)
    item, target, *_ = whole_frames[3]
    assert item.shape == (1, 8, 3, 8, 40, 40) and target == videos.videos[3].target
    covered = item[0].transpose(0, 1).flatten(1, 2)  # (3, N * L, H, W)
    assert torch.equal(covered, frames_of(videos.videos[3].path))
    data = make_data(test_short_side_px=36, crop_px=32)
    item, *_ = video_clips(videos, data, num_clips=3)[2]
    for clip, start in zip(item[0], (0, 28, 56), strict=True):
        frames = frames_of(videos.videos[2].path, range(start, start + 8)).permute(1, 2, 3, 0)
        assert torch.equal(clip, cut_frames(frames, draw_cut((40, 40), data)).movedim(-1, 0))


def test_views_are_sorted_clips_with_one_cut_each_that_differ_and_come_again(videos, make_data):
    clips = video_clips(videos, make_data(), views=3, num_clips=5)
    item, *_ = clips[1]
    assert item.shape == (3, 5, 3, 8, 40, 40)
    whole = frames_of(videos.videos[1].path)
    starts = [[start_of(clip, whole) for clip in view] for view in item]
    assert all(a <= b for view in starts for a, b in pairwise(view))
    assert len({tuple(view) for view in starts}) == 3
    clips[0]
    assert equal_items(clips[1], (item, videos.videos[1].target))
    assert torch.equal(video_clips(videos, make_data(), views=1, num_clips=5)[1][0], item[:1])  # more views, same first
    assert not torch.equal(video_clips(videos, make_data(), views=3, num_clips=5, seed=1)[1][0], item)
    cut, *_ = video_clips(videos, make_data(crop_px=32), views=3, num_clips=5)[1]
    windows = []
    for view, (first, *_), clip_starts in zip(cut, cut, starts, strict=True):
        wide = whole[:, clip_starts[0] : clip_starts[0] + 8].unfold(2, 32, 1).unfold(3, 32, 1)
        places = [(y, x) for y in range(9) for x in range(9) if torch.equal(wide[:, :, y, x], first)]
        (place,) = places
        windows.append(place)
        y, x = place
        for clip, start in zip(view, clip_starts, strict=True):
            assert torch.equal(clip, whole[:, start : start + 8, y : y + 32, x : x + 32])
    assert len(set(windows)) > 1


def cut_plainly(frames: torch.Tensor, data, generator) -> torch.Tensor:
    """Scale, cut and flip all frames, drawing in the order of the kit: (T, H, W, 3) -> (3, T, crop, crop)."""
    sides = data.train_short_side_px
    side = data.test_short_side_px if generator is None else draw(sides[1] - sides[0] + 1, generator) + sides[0]
    scaled = F.resize(frames.permute(0, 3, 1, 2), [side], antialias=True)
    if generator is None:
        return F.center_crop(scaled, [data.crop_px] * 2).transpose(0, 1)
    top, left = (draw(length - data.crop_px + 1, generator) for length in scaled.shape[-2:])
    cut = scaled[..., top : top + data.crop_px, left : left + data.crop_px]
    return (cut.flip(-1) if data.flip and draw(2, generator) else cut).transpose(0, 1)


def draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


@pytest.mark.parametrize("size", [(5, 44, 60), (37, 62, 50), (120, 80, 80)])
@pytest.mark.parametrize(("num_clips", "clip_frames"), [(1, 8), (3, 16), (8, 8)])
def test_clips_read_in_pieces_are_byte_for_byte_those_of_the_whole_video(
    tmp_path, make_data, size, num_clips, clip_frames
):
    frames = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0)).byte()
    path = tmp_path / "any.mp4"
    path.write_bytes(encode_h264(frames.numpy(), fps=25, crf=23, gop_frames=7))
    videos, length = VideoList((Video(path),), ("any",)), size[0]
    whole = frames_of(path).permute(1, 2, 3, 0)
    data = make_data(train_short_side_px=(40, 58), test_short_side_px=41, crop_px=33, flip=True)
    for views in (0, 2):
        item, *_ = video_clips(videos, data, views=views, num_clips=num_clips, clip_frames=clip_frames)[0]
        for view in range(max(views, 1)):
            generator = generator_for(0, view, 0) if views else None
            starts = sampling.clip_starts(length, clip_frames, num_clips, generator)
            indices = [(start + i) % length for start in starts for i in range(clip_frames)]
            expected = cut_plainly(whole[indices], data, generator)
            assert torch.equal(item[view].transpose(0, 1).flatten(1, 2), expected)
    item, *_ = random_clips(videos, data, clip_frames=clip_frames, clips_per_video=num_clips)[2, 0]
    generator = generator_for(0, 2, 0)
    for clip in item:
        (start,) = sampling.clip_starts(length, clip_frames, 1, generator)
        indices = [(start + i) % length for i in range(clip_frames)]
        assert torch.equal(clip, cut_plainly(whole[indices], data, generator))


def test_a_video_shorter_than_a_clip_is_looped_and_an_unreadable_one_is_named_not_replaced(tmp_path, videos, make_data):
    frames = frames_of(videos.videos[0].path, range(5))
    short, broken = tmp_path / "short.mp4", tmp_path / "broken.mp4"
    short.write_bytes(encode_h264(frames.permute(1, 2, 3, 0).numpy(), fps=25, crf=18, gop_frames=4))
    broken.write_bytes(videos.videos[0].path.read_bytes()[:2000])
    pair = VideoList((Video(short, 0), Video(broken, 1)), ("a", "b"))
    looped = frames_of(short, [0, 1, 2, 3, 4, 0, 1, 2])
    for item in (random_clips(pair, make_data())[0, 0][0], video_clips(pair, make_data(), num_clips=2)[0][0][0]):
        assert item.shape[0] == 2 and all(torch.equal(clip, looped) for clip in item)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        video_clips(pair, make_data())[1]
    clips = random_clips(pair, make_data())
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        clips[0, 1]
    batch = clips.load_batch([(0, 1), (0, 0)])
    ((index, reason),) = batch.skipped
    assert index == 1 and "broken.mp4" in reason
    assert torch.equal(batch.clips, clips[0, 0][0][None]) and batch.targets.tolist() == [0]
    nothing = clips.load_batch([(0, 1), (1, 1)])
    assert len(nothing.targets) == 0 and len(nothing.skipped) == 2


def test_a_video_that_is_not_as_long_as_its_index_says_is_an_error(videos, make_data):
    other = replace(videos.videos[1], file=videos.videos[1].file._replace(frames=63))
    indexed = replace(videos, videos=(videos.videos[0], other, *videos.videos[2:]))
    with pytest.raises(VideoError, match=r"train_00001.mp4: has 64 frames, but 63 when it was indexed"):
        video_clips(indexed, make_data())[1]
    assert equal_items(video_clips(indexed, make_data())[2], video_clips(videos, make_data())[2])


def test_two_workers_load_the_same_as_none(videos, make_data):
    data = make_data(train_short_side_px=(40, 50), crop_px=32, flip=True)
    random, whole = random_clips(videos, data), video_clips(videos, data, views=2)

    def loaded(workers: int) -> list:
        draws = draw_epochs(len(videos), batch_videos=4, first=1, iterations=5, seed=2)
        batches = load_ahead(random.load_batch, draws, workers)
        return [batch[:2] for batch in batches] + list(load_ahead(whole.__getitem__, range(len(videos)), workers))

    alone, together = loaded(0), loaded(2)
    assert len(alone) == len(together) == 4 + len(videos)
    assert all(equal_items(a, b) for a, b in zip(alone, together, strict=True))


def test_a_generator_depends_on_its_numbers_and_their_order_and_on_no_global_state():
    torch.manual_seed(0)
    numbers = [(), (0,), (7,), (7, 0), (0, 0), (0, 1), (1, 0), (2, 1), (1, 2), (-1, 0), (2**40, 0)]
    draws = [torch.rand(4, generator=generator_for(*n)).tolist() for n in numbers]
    assert len({tuple(d) for d in draws}) == len(numbers)
    torch.manual_seed(1)
    assert [torch.rand(4, generator=generator_for(*n)).tolist() for n in numbers] == draws
