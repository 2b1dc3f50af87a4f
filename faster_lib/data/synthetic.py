"""Generated videos on which the paper's question has an answer: who moves how, and where.

A video's class is a pair (motion, context). The evidence for either is spread over the whole video:

- *Motion* is the direction in which the actors move. In a share of the videos they show only as random flicker, each
  pixel's polarity drawn anew in each frame. A linear temporal filter, such as the first layer of R2D-26, then carries
  hardly a sign of direction, while a network that rectifies before it looks along time can follow the flicker. So the
  expensive network is better at motion *by construction*; the kit says so wherever it reports that.
- *Context*, a tint of the picture, shows in one short stretch of the video, so that no single clip tells the class.

Neighbouring clips are redundant: shots last for dozens of frames. Videos differ in how hard they are: each draws the
strength of its tint and the share of its frames with action, and in a share of the videos both are cut to a part, so
that some are hardly legible to anybody. Labels are balanced, and nothing else tells them.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faster_lib.data.datasets import ANNOTATIONS
from faster_lib.data.video import encode_h264, encode_mpeg4
from faster_lib.jobs import run_all
from faster_lib.paths import RUNS
from faster_lib.profiles import Scene
from faster_lib.store import Entry, write_whole

RECIPE = 4  # raised whenever the same scene would give other pixels

MOTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
# The four opponent colours: equally strong, a quarter turn apart, and none brighter than another.
CONTEXTS = {"red": (0.87, -0.87, 0), "green": (-0.87, 0.87, 0), "blue": (-0.5, -0.5, 1), "yellow": (0.5, 0.5, -1)}
SPLITS = ("train", "val", "test", "stage1")  # a video depends on its split's place here
CLASSES = tuple(f"{motion}_{context}" for motion, context in itertools.product(MOTIONS, CONTEXTS))
Planned = tuple[Path, int, tuple[int, ...]]  # of a video where it goes, the class, and what else its pixels depend on


def generate(scene: Scene, split: str, *, workers: int, runs: Path = RUNS) -> Path:
    """Make the videos of one split, or find them again, and give the folder with their `annotations.csv`.

    Each video depends on the scene, the split and its number alone; an interrupted run goes on from what is there.

    Raises: ValueError for a split that the scene does not have.
    """
    if split not in scene.videos:
        raise ValueError(f"unknown split {split!r}; the scene has {', '.join(scene.videos)}")
    depends = {"recipe": RECIPE, "scene": scene.model_dump(mode="json", exclude={"videos"}), "split": split}
    depends["videos"] = scene.videos[split]
    entry = Entry("videos", split, depends, runs)
    entry.complete(lambda: _write_split(scene, split, entry.path, workers))
    return entry.path


def _write_split(scene: Scene, split: str, folder: Path, workers: int) -> dict[str, int]:
    rows = [(f"{split}_{i:05d}.mp4", CLASSES[i % len(CLASSES)], split) for i in range(scene.videos[split])]
    plan = [(folder / row[0], i % len(CLASSES), (SPLITS.index(split), i)) for i, row in enumerate(rows)]
    size = write_videos(plan, scene, title=f"generate {split} videos", workers=workers)
    write_whole(folder / ANNOTATIONS, _as_csv([("path", "label", "split"), *rows]))
    return {"videos": len(rows), "bytes": size}


def write_videos(plan: Sequence[Planned], scene: Scene, *, title: str, workers: int) -> int:
    """Write those videos of a plan that are missing, and give the size of all of them in bytes."""
    missing = [planned for planned in plan if not planned[0].is_file()]
    run_all(_write_video, [(*planned, scene) for planned in missing], workers=workers, title=title, unit="video")
    return sum(path.stat().st_size for path, *_ in plan)


def _write_video(path: Path, class_index: int, seed: tuple[int, ...], scene: Scene) -> None:
    frames = render_video(class_index, scene, np.random.default_rng([scene.seed, *seed]))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".avi":
        content = encode_mpeg4(frames, fps=scene.fps)
    else:
        content = encode_h264(frames, fps=scene.fps, crf=scene.crf, gop_frames=scene.gop_frames)
    write_whole(path, content)


def _as_csv(rows: list[tuple[str, str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class Shot(NamedTuple):
    """A stretch of frames seen by one camera; `first` and `last` as in a slice."""

    first: int
    last: int


def render_video(class_index: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one video of a class.

    Shape: -> (scene.frames, scene.size_px, scene.size_px, 3) uint8, RGB
    Args:
        scene: the profile's `scene` section.
    """
    motion, context = list(itertools.product(MOTIONS, CONTEXTS))[class_index]
    video = np.empty((scene.frames, scene.size_px, scene.size_px, 3), dtype=np.float32)
    does_flicker = rng.random() < scene.flicker_share
    legibility = rng.uniform(*scene.hard_legibility) if rng.random() < scene.hard_share else 1.0
    context_contrast = legibility * rng.uniform(*scene.context_contrast)
    action_share = legibility * rng.uniform(*scene.action_share)
    for shot in cut_into_shots(scene, rng):
        frames = video[shot.first : shot.last]
        frames[:] = _background(len(frames), scene, rng)[..., None]
        if rng.random() < scene.distractor_share:
            _draw_distractor(frames, scene, rng)
        _draw_actors(frames, MOTIONS[motion], does_flicker, action_share, scene, rng)
    first, last = _stretch(scene.frames, rng.uniform(*scene.context_share), rng)
    video[first:last] += context_contrast * np.asarray(CONTEXTS[context], dtype=np.float32)
    video += rng.uniform(-scene.noise, scene.noise, size=video.shape[:3]).astype(np.float32)[..., None]
    return np.clip(video, 0, 255, out=video).astype(np.uint8)


def cut_into_shots(scene: Scene, rng: np.random.Generator) -> list[Shot]:
    """Cut a video into shots of at least `scene.shortest_shot_frames`, their number drawn from `scene.shots`."""
    count = int(rng.integers(scene.shots[0], scene.shots[1] + 1))
    spare = scene.frames - count * scene.shortest_shot_frames
    cuts = np.sort(rng.integers(0, spare + 1, size=count - 1)) + scene.shortest_shot_frames * np.arange(1, count)
    edges = [0, *cuts.tolist(), scene.frames]
    return [Shot(first, last) for first, last in itertools.pairwise(edges)]


def _background(num_frames: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Three drifting-free gratings under camera shake: (T, H, W)."""
    grid = np.arange(scene.size_px, dtype=np.float32)
    shake = rng.normal(0, scene.shake_px, size=(2, num_frames, 1)).astype(np.float32)
    x, y = grid + shake[0], grid + shake[1]  # (T, W), (T, H)
    image = np.full((num_frames, scene.size_px, scene.size_px), rng.uniform(90, 160), dtype=np.float32)
    for _ in range(3):
        frequency, angle, phase = rng.uniform(0.1, 0.5), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        u, v = frequency * np.cos(angle) * x, frequency * np.sin(angle) * y + phase
        wave = np.cos(v)[:, :, None] * np.cos(u)[:, None, :]
        wave -= np.sin(v)[:, :, None] * np.sin(u)[:, None, :]
        wave *= rng.uniform(4, 12)
        image += wave
    return image


def _draw_distractor(frames: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Put a still, tinted disc in front of the background."""
    tint = np.asarray(list(CONTEXTS.values())[rng.integers(len(CONTEXTS))], dtype=np.float32)
    frames += (
        _disc(scene.size_px, rng.uniform(0, scene.size_px, size=(1, 2)), scene.actor_px / 2)[..., None] * 40 * tint
    )


def _draw_actors(
    frames: np.ndarray, direction, does_flicker: bool, action_share: float, scene: Scene, rng: np.random.Generator
) -> None:
    """Draw the actors: they move together while the action is on and rest otherwise.

    Each has a polarity, bright or dark, which turns over in a share of the frames.
    """
    num_frames = len(frames)
    is_moving = np.zeros(num_frames, dtype=bool)
    is_moving[slice(*_stretch(num_frames, action_share, rng))] = True
    travel = np.cumsum(is_moving * rng.uniform(*scene.speed_px))[:, None] * np.asarray(direction)  # (T, 2)
    for _ in range(scene.actors):
        position = np.mod(rng.uniform(0, scene.size_px, size=2) + travel, scene.size_px)
        mask = scene.actor_contrast * _disc(scene.size_px, position, scene.actor_px / 2)  # (T, H, W)
        if does_flicker:
            mask *= rng.integers(0, 2, size=mask.shape, dtype=np.int8) * 2 - 1
        else:
            mask *= rng.choice((-1, 1))
        frames += mask[..., None]


def _stretch(length: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Place one stretch that covers `share` of `length` frames at random, as (first, last)."""
    covered = max(1, round(share * length))
    first = int(rng.integers(0, length - covered + 1))
    return first, first + covered


def _disc(size_px: int, centres: np.ndarray, radius_px: float) -> np.ndarray:
    """Soft-edged discs on a torus: centres (T, 2) as (x, y) -> (T, H, W) in 0 to 1."""
    grid = np.arange(size_px, dtype=np.float32)
    offset = np.abs(grid[None, None, :] - centres.astype(np.float32)[:, :, None])  # (T, 2, size)
    squared = np.minimum(offset, size_px - offset) ** 2
    distance = np.sqrt(squared[:, 0, None, :] + squared[:, 1, :, None])
    np.subtract(radius_px + 0.5, distance, out=distance)
    return np.clip(distance, 0, 1, out=distance)
