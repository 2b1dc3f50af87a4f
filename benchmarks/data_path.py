"""From files to clips: the kit's loader against bare decord, PyAV and a torchvision-style loader, in one run.

    python benchmarks/data_path.py OUT.csv [--rounds 3]

All read the same H.264 files in the same patterns, with the same random draws: all clips of a video, as for a store of
features and the test, and one random clip of a video, as in stage 1. Speeds are frames of clips per second. Bare decord
decodes them and throws them away, so that what the kit's figure lacks of its own is what scaling, cutting and moving
cost. The start of threads and processes counts.
"""

import argparse
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
import torch
from side_by_side import KIT, Peer, Speed, contend, write_table
from torchvision.transforms.v2 import functional as F

from faster_lib.data.datasets import (
    RandomClips,
    Video,
    VideoClips,
    VideoList,
    clip_frame_indices,
    clip_starts,
    draw_epochs,
    generator_for,
)
from faster_lib.data.transforms import cut_frames, draw_cut
from faster_lib.data.video import File, encode_h264
from faster_lib.profiles import load_profile
from faster_lib.training.ranks import limited_threads
from faster_lib.workers import load_ahead

PART = "data path"
VIDEOS, HEIGHT_PX, WIDTH_PX, FPS = 24, 256, 340, 30  # copies of Kinetics are kept with a short side of 256
FRAMES, GOPS = (256, 300), (12, 25, 50)  # frames of a video, from and to; between key frames
L, SEED = 32, 0
PATTERNS = {"all clips of a video": 4, "a random clip of a video": 16}  # how often a call visits each video
BATCH_VIDEOS = 8
DATA = load_profile("kinetics400").data
Job = tuple[Path, list[list[int]], torch.Generator | None]  # a video, its clips' frames, what draws the cut


class Pattern(NamedTuple):
    """What all contenders of a contest read."""

    name: str
    videos: VideoList
    visits: int

    @property
    def is_random(self) -> bool:
        return self.name == "a random clip of a video"

    def draws(self, share: int = 1) -> list[tuple[int, int]]:
        """Give the visits as (epoch, video), or the first of them where only a share is read."""
        sampler = draw_epochs(
            len(self.videos), batch_videos=len(self.videos), first=0, iterations=max(self.visits // share, 1), seed=SEED
        )
        return [draw for batch in sampler for draw in batch]

    def jobs(self, share: int = 1) -> Iterator[Job]:
        """Give each visit's clips, drawn as the kit draws them."""
        for epoch, number in self.draws(share):
            video = self.videos.videos[number]
            generator = generator_for(SEED, epoch, number) if self.is_random else None
            num_clips = 1 if self.is_random else DATA.video_frames // L
            starts = clip_starts(video.file.frames, L, num_clips, generator)
            clips = [clip_frame_indices(start, L, video.file.frames) for start in starts]
            yield video.path, clips, generator


def write_files(folder: Path) -> VideoList:
    """Write videos in which a window wanders over a large smooth picture."""
    rng, lengths = np.random.default_rng(SEED), []
    for number in range(VIDEOS):
        lengths.append(int(rng.integers(*FRAMES, endpoint=True)))
        picture, time = _picture(rng), np.arange(lengths[-1])
        tops, lefts = (((1 + np.sin(time * rng.uniform(0.01, 0.05))) * 100).astype(int) for _ in range(2))
        frames = np.stack([picture[t : t + HEIGHT_PX, s : s + WIDTH_PX] for t, s in zip(tops, lefts, strict=True)])
        content = encode_h264(frames, fps=FPS, crf=23, gop_frames=GOPS[number % len(GOPS)])
        (folder / f"{number}.mp4").write_bytes(content)
    files = [File(length, FPS, WIDTH_PX, HEIGHT_PX, "h264", "decord") for length in lengths]
    return VideoList(tuple(Video(folder / f"{n}.mp4", 0, file) for n, file in enumerate(files)), ("any",))


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Draw waves of all lengths over each other: (H, W, 3) uint8, 200 pixels larger than a frame each way."""
    y, x = np.mgrid[: HEIGHT_PX + 200, : WIDTH_PX + 200].astype(np.float32)
    picture = np.full((*x.shape, 3), 128, dtype=np.float32)
    for colour in range(3):
        for _ in range(12):
            frequency, angle, phase = rng.uniform(0.01, 0.3), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
            wave = np.cos(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
            picture[..., colour] += rng.uniform(5, 12) * wave
    return picture.clip(0, 255).astype(np.uint8)


def bare(job: Job) -> int:
    """Decode a job's frames by decord and throw them away."""
    path, clips, _ = job
    indices = [i for clip in clips for i in clip]
    decord.VideoReader(str(path), num_threads=1).get_batch(indices)
    return len(indices)


def by_pyav(job: Job) -> int:
    """Decode a job's frames by PyAV from the key frame before, and cut them as the kit does."""
    path, clips, generator = job
    wanted = sorted({i for clip in clips for i in clip})
    with av.open(str(path)) as file:
        found = dict(_decode(file, wanted[0], wanted[-1], set(wanted)))
    frames = torch.from_numpy(np.stack([found[i] for clip in clips for i in clip]))
    cut = cut_frames(frames, draw_cut(frames.shape[1:3], DATA, generator)).movedim(-1, 0)
    torch.stack(cut.split(L, dim=1))
    return len(frames)


def by_torchvision(job: Job) -> int:
    """Read each clip as `torchvision.io.read_video` did, and cut it as floats by torchvision's transforms."""
    path, clips, generator = job
    cut = []
    for clip in clips:
        with av.open(str(path)) as file:
            frames = [frame for _, frame in _decode(file, clip[0], clip[-1], set(range(clip[0], clip[-1] + 1)))]
        video = torch.as_tensor(np.stack(frames)).permute(0, 3, 1, 2)  # (T, 3, H, W)
        side = DATA.test_short_side_px
        if generator is not None:
            side = int(
                torch.randint(DATA.train_short_side_px[0], DATA.train_short_side_px[1] + 1, (), generator=generator)
            )
        video = F.resize(F.to_dtype(video, torch.float32, scale=True), [side], antialias=True)
        cut.append(_float_cut(video, generator))
    torch.stack(cut)
    return len(clips) * L


def _float_cut(video: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    size = DATA.crop_px
    if generator is None:
        return F.normalize(F.center_crop(video, [size, size]), [0.43] * 3, [0.22] * 3)
    top, left = (int(torch.randint(length - size + 1, (), generator=generator)) for length in video.shape[-2:])
    video = F.crop(video, top, left, size, size)
    if DATA.flip and bool(torch.randint(2, (), generator=generator)):
        video = F.horizontal_flip(video)
    return F.normalize(video, [0.43] * 3, [0.22] * 3)


def _decode(file, first: int, last: int, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode from the key frame before `first` to `last`; give those that are wanted, with their numbers."""
    stream = file.streams.video[0]
    stream.codec_context.thread_count = 1
    tick = 1 / (stream.time_base * stream.average_rate)  # of one frame
    file.seek(int(first * tick), stream=stream)
    for frame in file.decode(stream):
        number = round(frame.pts / tick)
        if number in wanted:
            yield number, frame.to_ndarray(format="rgb24")
        if number >= last:
            return


def alone(read: Callable[[Job], int], jobs: Iterable[Job]) -> float:
    """Do jobs in this process; give the frames."""
    return float(sum(map(read, jobs)))


def in_processes(read: Callable[[Job], int], jobs: Iterable[Job], processes: int) -> float:
    """Do jobs in so many processes; give the frames."""
    plain = [(path, clips, None) for path, clips, _ in jobs]
    with multiprocessing.get_context("fork").Pool(processes, torch.set_num_threads, (1,)) as pool:
        return float(sum(pool.imap_unordered(read, plain)))


def by_kit(pattern: Pattern, workers: int) -> float:
    """Load the pattern through the loaders of feature extraction and of stage 1; give the frames."""
    if not pattern.is_random:
        clips = VideoClips(pattern.videos, DATA, clip_frames=L, num_clips=DATA.video_frames // L, views=0, seed=SEED)
        loaded = load_ahead(clips.__getitem__, [video for _, video in pattern.draws()], workers)
        return float(sum(item.clips.shape[:2].numel() * L for item in loaded))
    clips = RandomClips(pattern.videos, DATA, clip_frames=L, clips_per_video=1, seed=SEED)
    number = len(pattern.videos)
    draws = draw_epochs(
        number, batch_videos=BATCH_VIDEOS, first=0, iterations=pattern.visits * number // BATCH_VIDEOS, seed=SEED
    )
    loader = load_ahead(clips.load_batch, draws, workers)
    return float(sum(batch.clips.shape[:2].numel() * L for batch in loader))


def contest(pattern: Pattern, workers: int, *, rounds: int) -> list[Speed]:
    """Time a pattern by so many workers; the others are there once, and read a share of it, since they are slow."""
    contenders: dict[str, Callable[[], float]] = {KIT: partial(by_kit, pattern, workers)}
    contenders["bare decord"] = Peer(lambda: alone(bare, pattern.jobs()))
    if workers == 1:
        contenders["PyAV"] = Peer(lambda: alone(by_pyav, pattern.jobs(share=4)))
        contenders["torchvision-style"] = Peer(lambda: alone(by_torchvision, pattern.jobs(share=4)))
    if workers > 1:
        contenders[f"bare decord, {workers} processes"] = Peer(lambda: in_processes(bare, pattern.jobs(), workers))
    name = f"{pattern.name}, {workers} worker{'s' * (workers != 1)}"
    found = contend(PART, name, 0.0, "frames/s", contenders, rounds=rounds)
    kit = next(speed for speed in found if speed.who == KIT)
    waits = tuple(L / value for value in kit.values)
    return [*found, Speed(PART, f"{name}: a clip of L = {L}", KIT, "seconds", waits)]


def contests(rounds: int) -> Iterator[list[Speed]]:
    """Write the files, and time all patterns by no, one and two workers."""
    with tempfile.TemporaryDirectory() as folder, limited_threads(1):
        videos = write_files(Path(folder))
        for name, visits in PATTERNS.items():
            for workers in (0, 1, 2):
                yield contest(Pattern(name, videos, visits), workers, rounds=rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, log the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_table(given.out, contests(given.rounds))


if __name__ == "__main__":
    main()
