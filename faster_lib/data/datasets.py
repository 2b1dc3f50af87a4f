"""Annotated videos as PyTorch data sets: random clips for stage 1, all clips of a video for stage 2 and the test."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from faster_lib.data import sampling
from faster_lib.data.transforms import eval_transform, train_transform
from faster_lib.data.video import VideoError, open_video, read_frames
from faster_lib.profiles import Data

ANNOTATIONS = "annotations.csv"
_COLUMNS = ["path", "label", "split"]
_STEP_FRAMES = 16  # decoded at a time where all clips of a video are: few enough that memory is used again, not anew


@dataclass(frozen=True)
class VideoList:
    """The videos of one split; class indices follow the alphabetical order of all labels of the set.

    Args:
        frames, is_seekable: of each video, where the set has been indexed (`faster_lib.data.scan`).
        missing, corrupt: how many videos more the set's lists name, which cannot be read and are not among these.
    """

    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    frames: tuple[int, ...] = ()
    is_seekable: tuple[bool, ...] = ()
    missing: int = 0
    corrupt: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def census(self) -> dict[str, int]:
        """Count the videos: expected by the lists, used, missing, corrupt."""
        expected = len(self) + self.missing + self.corrupt
        return {"expected": expected, "used": len(self), "missing": self.missing, "corrupt": self.corrupt}

    def open(self, index: int) -> "OpenVideo":
        """Give one video to read from; one that is indexed is not opened before a frame of it is asked for."""
        frames = self.frames[index] if self.frames else None
        return OpenVideo(self.paths[index], frames, self.is_seekable[index] if self.is_seekable else True)


class OpenVideo:
    """A video that is being read.

    Args:
        frames: how many there are, by the index; None where there is no index.
        is_seekable: by the index; a video that is not is opened for each reading, and decoded from its beginning.
    """

    def __init__(self, path: Path, frames: int | None, is_seekable: bool):
        self.path, self.frames, self.is_seekable = path, frames, is_seekable

    @cached_property
    def reader(self) -> Any:
        """The open video; raises VideoError if it cannot be read, or is not as long as the index says."""
        return self._open()

    @property
    def num_frames(self) -> int:
        """The number of frames."""
        return len(self.reader) if self.frames is None else self.frames

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """Decode frames: (len(indices), H, W, 3) uint8, RGB."""
        reader = self.reader if self.is_seekable else self._open()
        return read_frames(reader, indices, path=self.path, is_seekable=self.is_seekable)

    def _open(self) -> Any:
        reader = open_video(self.path)
        if self.frames is not None and len(reader) != self.frames:
            raise VideoError(
                f"{self.path}: has {len(reader)} frames, but {self.frames} when it was indexed; start again, "
                "which indexes files that have changed"
            )
        return reader


def read_annotations(root: Path, split: str) -> VideoList:
    """Read one split of `<root>/annotations.csv`: path (relative to root), label and split.

    Raises: FileNotFoundError without such a file; ValueError for other columns, an empty field or an unknown split.
    """
    path = root / ANNOTATIONS
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; it must have the columns {','.join(_COLUMNS)}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}; they must be {','.join(_COLUMNS)}")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row or not all(row.values()):
            raise ValueError(f"{path}, line {number}: {list(row.values())} is not one path, label and split")
    classes = tuple(sorted({row["label"] for row in rows}))
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(sorted({row['split'] for row in rows}))}")
    targets = tuple(classes.index(row["label"]) for row in chosen)
    return VideoList(tuple(root / row["path"] for row in chosen), targets, classes)


def generator_for(*numbers: int) -> torch.Generator:
    """Make a random generator that depends on these numbers alone, so that order and workers do not matter."""
    state = np.random.SeedSequence([len(numbers), *(number % 2**64 for number in numbers)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class RandomClips(Dataset):
    """Random clips of L consecutive frames; an item is asked for as (epoch, index of the video).

    A video that turns out to be unreadable gives its index and the reason instead.

    Shape: item -> (clips_per_video, 3, L, crop, crop) uint8, target
    Source: FASTER, "Setups for clip-level backbones".
    """

    def __init__(self, videos: VideoList, data: Data, *, clip_frames: int, clips_per_video: int, seed: int):
        self.videos, self.data, self.seed = videos, data, seed
        self.clip_frames, self.clips_per_video = clip_frames, clips_per_video

    def __getitem__(self, draw: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = draw
        generator = generator_for(self.seed, epoch, index)
        clips = []
        try:
            for _ in range(self.clips_per_video):
                video = self.videos.open(index)
                start = sampling.random_clip_start(video.num_frames, self.clip_frames, generator)
                frames = video.read(sampling.clip_frame_indices(start, self.clip_frames, video.num_frames))
                del video  # as long as its reader lives, it decodes on in the background
                clips.append(_random_view(frames, self.data, generator))
        except VideoError as error:
            return index, str(error)
        return stack_clips(clips) if len(clips) > 1 else clips[0][None], self.videos.targets[index]


def stack_clips(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack clips (..., 3, L, H, W); the colours are last in memory, as in decoded frames and the networks' input."""
    return torch.stack([clip.movedim(-4, -1) for clip in clips]).movedim(-1, -4)


class Batch(NamedTuple):
    """Some items of `RandomClips`: clips (B, clips_per_video, 3, L, crop, crop), targets (B,), and what was skipped."""

    clips: torch.Tensor
    targets: torch.Tensor
    skipped: list[tuple[int, str]]  # index of the video, and why it could not be read


def collate(items: Sequence[tuple]) -> Batch:
    """Make a batch of those items that could be read; a batch may be smaller than asked for, or empty."""
    skipped = [item for item in items if isinstance(item[1], str)]
    there = [item for item in items if not isinstance(item[1], str)]
    clips = [clips for clips, _ in there]
    targets = torch.tensor([target for _, target in there], dtype=torch.int64)
    return Batch(stack_clips(clips) if clips else torch.empty(0), targets, skipped)


class EpochDraws(Sampler):
    """Endless shuffled epochs cut into batches of (epoch, index), from any iteration on, so that training resumes.

    Args:
        mine, parts: each batch is dealt out into so many parts, of which these are given one after the other.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_videos: int,
        first: int,
        iterations: int,
        seed: int,
        mine: Sequence[int] = (0,),
        parts: int = 1,
    ):
        self.num_videos, self.batch_videos, self.seed = num_videos, batch_videos, seed
        self.first, self.iterations, self.mine, self.parts = first, iterations, mine, parts

    def __len__(self) -> int:
        return (self.iterations - self.first) * len(self.mine)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        for iteration in range(self.first, self.iterations):
            positions = range(iteration * self.batch_videos, (iteration + 1) * self.batch_videos)
            batch = []
            for epoch, place in (divmod(position, self.num_videos) for position in positions):
                if epoch not in orders:
                    orders = {epoch: self._order(epoch), **{e: o for e, o in orders.items() if e == epoch - 1}}
                batch.append((epoch, orders[epoch][place]))
            yield from (batch[part :: self.parts] for part in self.mine)

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(self.num_videos, generator=generator_for(self.seed, epoch)).tolist()


class VideoClips(Dataset):
    """All N clips of a video, the frames decoded once.

    With `views` = 0 the clips cover the video uniformly and are cut centrally, as in the test. Otherwise each view has
    its own N random clips in temporal order and its own random cut, as in stage 2's training.

    Shape: item -> (max(views, 1), N, 3, L, crop, crop) uint8, target
    Source: FASTER, "Setups for learning to aggregate".
    """

    def __init__(self, videos: VideoList, data: Data, *, clip_frames: int, num_clips: int, views: int, seed: int):
        self.videos, self.data, self.seed = videos, data, seed
        self.clip_frames, self.num_clips, self.views = clip_frames, num_clips, views

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        video = self.videos.open(index)
        generators = [generator_for(self.seed, view, index) for view in range(self.views)]
        length = video.num_frames
        starts = [self._starts(length, generator) for generator in generators or [None]]
        wanted = [
            [i for start in view for i in sampling.clip_frame_indices(start, self.clip_frames, length)]
            for view in starts
        ]
        needed = sorted({i for view in wanted for i in view})
        step = _STEP_FRAMES if video.is_seekable else len(needed)
        size = (len(wanted), self.num_clips * self.clip_frames, *[self.data.crop_px] * 2, 3)
        views = torch.empty(size, dtype=torch.uint8)
        for first in range(0, len(needed), step):
            numbers = needed[first : first + step]
            frames = video.read(numbers)
            for view, indices, generator in zip(views, wanted, generators or [None], strict=True):
                self._fill(view, indices, frames, numbers, generator)
        clips = views.unflatten(1, (self.num_clips, self.clip_frames))
        return clips.movedim(-1, 2), self.videos.targets[index]

    def _fill(
        self,
        view: torch.Tensor,
        indices: Sequence[int],
        frames: torch.Tensor,
        numbers: Sequence[int],
        generator: torch.Generator | None,
    ) -> None:
        """Cut those of the decoded frames that a view shows, and write them where it does: (N * L, H, W, 3)."""
        shown = set(indices)
        used = [row for row, number in enumerate(numbers) if number in shown]
        row_of = {numbers[row]: i for i, row in enumerate(used)}
        places = [place for place, number in enumerate(indices) if number in row_of]
        if used:
            again = generator.clone_state() if generator else None  # all parts of a view are cut alike
            cut = self._cut(frames[_span(used)], again).movedim(0, -1)
            view[_span(places)] = cut[_span([row_of[indices[place]] for place in places])]

    def _starts(self, num_frames: int, generator: torch.Generator | None) -> list[int]:
        if generator is None:
            return sampling.uniform_clip_starts(num_frames, self.clip_frames, self.num_clips)
        return sampling.random_clip_starts(num_frames, self.clip_frames, self.num_clips, generator)

    def _cut(self, frames: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None:
            data = self.data
            return eval_transform(frames, short_side_px=data.test_short_side_px, crop_px=data.crop_px)
        return _random_view(frames, self.data, generator)


def _span(numbers: list[int]) -> slice | list[int]:
    """Give an index that makes no copy, where the numbers follow each other."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if numbers == list(range(first, last + 1)) else numbers


def _random_view(frames: torch.Tensor, data: Data, generator: torch.Generator) -> torch.Tensor:
    return train_transform(
        frames,
        short_side_px=data.train_short_side_px,
        crop_px=data.crop_px,
        is_flip_allowed=data.flip,
        generator=generator,
    )
