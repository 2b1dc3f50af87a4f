"""Videos as PyTorch data sets, loaded ahead: random clips for stage 1, all clips of a video for stage 2 and the test.

A clip is L consecutive frames; a video shorter than a clip is looped. Everything random comes from a seed and numbers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch.utils.data import Dataset

from faster_lib.data.transforms import Cut, cut_frames, draw_cut
from faster_lib.data.video import File, VideoError, VideoReader, look_at, probe_once
from faster_lib.profile_sections import Data

_STEP_FRAMES = 8  # decoded, scaled and cut at a time: few enough that they stay in the cache and memory is used again


@dataclass(frozen=True)
class Video:
    """One readable video, and what its index says of it; without an index, the file is read whole at first."""

    path: Path
    target: int = 0
    file: File | None = None

    def open(self) -> VideoReader:
        """Open the file; raises VideoError if it cannot be read, or is not as long as its index says."""
        look_at(self.path)
        return VideoReader(self.path, self.file or probe_once(self.path))


@dataclass(frozen=True)
class Census:
    """How many videos the lists of a split name, and what became of them."""

    expected: int
    used: int
    missing: int
    corrupt: int


@dataclass(frozen=True)
class VideoList:
    """The readable videos of one split; a target is a place in `classes`. Without an index there is no census."""

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    census: Census | None = None

    def __len__(self) -> int:
        return len(self.videos)


def generator_for(*numbers: int) -> torch.Generator:
    """Make a random generator that depends on these numbers alone, so that order and workers do not matter."""
    state = np.random.SeedSequence([len(numbers), *(number % 2**64 for number in numbers)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def clip_frame_indices(start: int, clip_frames: int, num_frames: int) -> list[int]:
    """List the frames of the clip from `start` on, looping over a video that is too short."""
    if not 0 <= start < num_frames:
        raise ValueError(f"a clip cannot start at frame {start} of a video with {num_frames} frames")
    return [(start + i) % num_frames for i in range(clip_frames)]


def clip_starts(
    num_frames: int, clip_frames: int, num_clips: int, generator: torch.Generator | None = None
) -> list[int]:
    """Give the first frames of N clips of L frames in temporal order: uniform, or independent draws of a generator.

    Uniform ones go "to cover the whole video", from its beginning to its end; a single one goes to the middle. The
    paper does not say in which order drawn ones come.
    """
    if min(num_frames, clip_frames, num_clips) < 1:
        clips = f"num_clips is {num_clips}: clips of {clip_frames} frames"
        raise ValueError(f"{clips} cannot be taken from a video of {num_frames} frames")
    last = max(num_frames - clip_frames, 0)
    if generator is not None:
        return sorted(int(torch.randint(last + 1, (), generator=generator)) for _ in range(num_clips))
    return [i * last // (num_clips - 1) for i in range(num_clips)] if num_clips > 1 else [last // 2]


def num_clips_covering(video_frames: int, clip_frames: int) -> int:
    """Give the N for which L x N equals the video's frames; raises ValueError if L does not divide them."""
    if video_frames % clip_frames:
        choices = ", ".join(str(length) for length in range(8, video_frames + 1, 8) if video_frames % length == 0)
        rule = f"L x N must equal the profile's {video_frames} frames"
        raise ValueError(f"L is {clip_frames}, but {rule}; choose L from {choices}")
    return video_frames // clip_frames


class Item(NamedTuple):
    """What a data set gives for a video: its clips, uint8, in the shape that the data set says."""

    clips: torch.Tensor
    target: int


class Batch(NamedTuple):
    """Some items of `RandomClips`; videos that cannot be read are skipped, never replaced."""

    clips: torch.Tensor  # (B, clips_per_video, 3, L, crop, crop)
    targets: torch.Tensor  # (B,)
    skipped: list[tuple[int, str]]  # place of the video, and why it could not be read


@dataclass(eq=False)
class RandomClips(Dataset):
    """Random clips of a video, asked for as (epoch, place).

    Shape: item -> (clips_per_video, 3, L, crop, crop) uint8
    Source: FASTER, "Setups for clip-level backbones".
    """

    videos: VideoList
    data: Data
    _: KW_ONLY
    clip_frames: int
    clips_per_video: int
    seed: int
    kept_gib: float = 0.0  # of decoded frames that may stay in memory, while less than half of the machine's is used
    _kept: dict[int, VideoReader] = field(default_factory=dict, init=False)
    _kept_bytes: int = field(default=0, init=False)

    def __getitem__(self, draw: tuple[int, int]) -> Item:
        (epoch, place), generator = draw, generator_for(self.seed, *draw)
        video = self.videos.videos[place]
        reader = self._kept.get(place) or video.open()
        if epoch and place not in self._kept:  # it has come before, and will again
            size = 3 * len(reader) * math.prod(reader.size_px)
            if self._kept_bytes + size <= self.kept_gib * 2**30 and psutil.virtual_memory().percent < 50:
                with suppress(VideoError):
                    self._kept[place] = reader.hold()
                    self._kept_bytes += size
        views = [draw_view(reader, self.data, self.clip_frames, 1, generator) for _ in range(self.clips_per_video)]
        return Item(read_views(reader, views).movedim(-1, 1), video.target)

    def load_batch(self, draws: Sequence[tuple[int, int]]) -> Batch:
        """Make a batch, pinned for a GPU, of those draws that can be read, which may be none."""
        items, skipped = [], []
        for draw in draws:
            try:
                items.append(self[draw])
            except VideoError as error:
                skipped.append((draw[1], str(error)))
        clips = stack_clips([item.clips for item in items]) if items else torch.empty(0)
        targets = torch.tensor([item.target for item in items], dtype=torch.int64)
        return Batch(clips.pin_memory() if torch.cuda.is_available() else clips, targets, skipped)


def draw_view(
    reader: VideoReader, data: Data, clip_frames: int, num_clips: int, generator: torch.Generator | None
) -> tuple[list[int], Cut]:
    """Choose the frames of N clips and their cut: uniform and central, or drawn by a generator."""
    starts = clip_starts(len(reader), clip_frames, num_clips, generator)
    indices = [i for start in starts for i in clip_frame_indices(start, clip_frames, len(reader))]
    return indices, draw_cut(reader.size_px, data, generator)


def read_views(reader: VideoReader, views: Sequence[tuple[Sequence[int], Cut]]) -> torch.Tensor:
    """Read the frames of each view and cut them, every frame decoded once, a few at a time since they may be large.

    Shape: n times T places of frames -> (n, T, crop, crop, 3) uint8
    """
    wanted, size = np.array([indices for indices, _ in views]), views[0][1].crop_px  # (n, T)
    needed, step = np.unique(wanted), min(_STEP_FRAMES, reader.at_once)
    clips = np.empty((*wanted.shape, size, size, 3), dtype=np.uint8)
    for numbers in (needed[first : first + step] for first in range(0, len(needed), step)):
        frames = reader.read(numbers.tolist())
        for clip, indices, (_, cut) in zip(clips, wanted, views, strict=True):
            places = np.flatnonzero((numbers[0] <= indices) & (indices <= numbers[-1]))
            if len(places):
                rows = np.searchsorted(numbers, indices[places])
                clip[places] = cut_frames(frames[rows.min() : rows.max() + 1], cut).numpy()[rows - rows.min()]
    return torch.from_numpy(clips)


def stack_clips(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack clips (..., 3, L, H, W); the colours are last in memory, as in decoded frames and the networks' input."""
    return torch.stack([clip.movedim(-4, -1) for clip in clips]).movedim(-1, -4)


def draw_epochs(
    num: int, *, batch_videos: int, first: int, iterations: int, seed: int, mine: Sequence[int] = (0,), parts: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """Shuffle endless epochs into batches of (epoch, place), from iteration `first` on; of each, `mine` of `parts`."""

    @lru_cache(1)
    def order(epoch: int) -> list[int]:
        return torch.randperm(num, generator=generator_for(seed, epoch)).tolist()

    for iteration in range(first, iterations):
        positions = range(iteration * batch_videos, (iteration + 1) * batch_videos)
        batch = [(epoch, order(epoch)[place]) for epoch, place in (divmod(p, num) for p in positions)]
        yield from (batch[part::parts] for part in mine)


@dataclass(frozen=True, eq=False)
class VideoClips(Dataset):
    """All N clips of a video: uniform ones cut centrally, as in the test, or `views` times random ones, in order.

    Shape: item -> (max(views, 1), N, 3, L, crop, crop) uint8
    Source: FASTER, "Setups for learning to aggregate".
    """

    videos: VideoList
    data: Data
    _: KW_ONLY
    clip_frames: int
    num_clips: int
    views: int
    seed: int

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Item:
        video = self.videos.videos[index]
        reader, form = video.open(), (self.data, self.clip_frames, self.num_clips)
        generators = [generator_for(self.seed, view, index) for view in range(self.views)] or [None]
        views = [draw_view(reader, *form, generator) for generator in generators]
        clips = read_views(reader, views).unflatten(1, (self.num_clips, self.clip_frames))
        return Item(clips.movedim(-1, 2), video.target)
