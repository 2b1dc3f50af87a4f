"""Generated videos on which the paper's question has an answer: who moves how, and where.

A video's class is a pair (motion, context), and nothing else tells it:

- *Motion* is the direction in which the actors move. In a share of the videos they show only as random flicker, which
  a linear filter over several frames cannot follow, and a network that rectifies single frames first can. R2D-26, whose
  one temporal layer is its first, must learn filters of single frames for that: one training of it did, another not.
- *Context*, a tint of the picture, shows in one short stretch of the video, so that no single clip tells the class.

Each video draws how strong its tint is and how long its action; some are hardly legible to anybody.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faster_lib.data.video import encode_h264
from faster_lib.profile_sections import Scene
from faster_lib.store import write_whole
from faster_lib.workers import run_all

RECIPE = 4  # raised whenever the same scene would give other pixels

MOTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
# The four opponent colours: equally strong, a quarter turn apart, and none brighter than another.
CONTEXTS = {"red": (0.87, -0.87, 0), "green": (-0.87, 0.87, 0), "blue": (-0.5, -0.5, 1), "yellow": (0.5, 0.5, -1)}
SPLITS = ("train", "val", "test", "stage1")  # a video depends on its split's place here
CLASSES = tuple(f"{motion}_{context}" for motion, context in itertools.product(MOTIONS, CONTEXTS))


class Planned(NamedTuple):
    """A generated video: its file's name, its class, the split as an index has it, and what its pixels depend on."""

    name: str
    label: str
    split: str
    seed: tuple[int, int]


def plan_videos(scene: Scene, split: str, *, has_folds: bool) -> list[Planned]:
    """List the videos of a split; with folds, those of train and test are one list, of which each fold tests a part."""
    if split not in scene.videos:
        raise ValueError(f"unknown split {split!r}; the scene has {', '.join(scene.videos)}")
    is_pooled = has_folds and split in ("train", "test")
    videos = [(each, i) for each in (("test", "train") if is_pooled else (split,)) for i in range(scene.videos[each])]
    plan = []
    for place, (each, i) in enumerate(videos):
        folds = ("test" if place // scene.videos["test"] == fold else "train" for fold in range(3))
        words = " ".join(folds if is_pooled else [split] * (3 if has_folds else 1))
        plan.append(Planned(f"{each}_{i:05d}.mp4", CLASSES[i % len(CLASSES)], words, (SPLITS.index(each), i)))
    return plan


def write_planned(plan: Sequence[Planned], folder: Path, scene: Scene, *, workers: int) -> None:
    """Write the videos of a plan."""
    parts = [(folder, video, scene) for video in plan]
    run_all(_write_video, parts, workers=workers, title="generate videos", unit="video")


def _write_video(folder: Path, video: Planned, scene: Scene) -> None:
    frames = render_video(video.label, scene, np.random.default_rng([scene.seed, *video.seed]))
    write_whole(folder / video.name, encode_h264(frames, fps=scene.fps, crf=scene.crf, gop_frames=scene.gop_frames))


def render_video(label: str, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one video of a class: (scene.frames, scene.size_px, scene.size_px, 3) uint8, RGB."""
    motion, context = label.split("_")
    video = np.empty((scene.frames, scene.size_px, scene.size_px, 3), dtype=np.float32)
    does_flicker = rng.random() < scene.flicker_share
    legibility = rng.uniform(*scene.hard_legibility) if rng.random() < scene.hard_share else 1.0
    context_contrast = legibility * rng.uniform(*scene.context_contrast)
    action_share = legibility * rng.uniform(*scene.action_share)
    for first, last in cut_into_shots(scene, rng):
        frames = video[first:last]
        frames[:] = _background(len(frames), scene, rng)[..., None]
        if rng.random() < scene.distractor_share:
            tint = np.asarray(list(CONTEXTS.values())[rng.integers(len(CONTEXTS))], dtype=np.float32)
            disc = _disc(scene.size_px, rng.uniform(0, scene.size_px, size=(1, 2)), scene.actor_px / 2)
            frames += disc[..., None] * 40 * tint  # still, in front of the background
        _draw_actors(frames, MOTIONS[motion], does_flicker, action_share, scene, rng)
    tint = context_contrast * np.asarray(CONTEXTS[context], dtype=np.float32)
    video[_stretch(scene.frames, rng.uniform(*scene.context_share), rng)] += tint
    video += rng.uniform(-scene.noise, scene.noise, size=video.shape[:3]).astype(np.float32)[..., None]
    return np.clip(video, 0, 255, out=video).astype(np.uint8)


def cut_into_shots(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw where a video is cut: the first frame of each shot, and the one after its last."""
    count = int(rng.integers(scene.shots[0], scene.shots[1] + 1))
    spare = scene.frames - count * scene.shortest_shot_frames
    cuts = np.sort(rng.integers(0, spare + 1, size=count - 1)) + scene.shortest_shot_frames * np.arange(1, count)
    return list(itertools.pairwise([0, *cuts.tolist(), scene.frames]))


def _background(num_frames: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Three drifting-free gratings under camera shake: (T, H, W)."""
    grid = np.arange(scene.size_px, dtype=np.float32)
    shake = rng.normal(0, scene.shake_px, size=(2, num_frames, 1)).astype(np.float32)
    x, y = grid + shake[0], grid + shake[1]  # (T, W), (T, H)
    image = np.full((num_frames, scene.size_px, scene.size_px), rng.uniform(90, 160), dtype=np.float32)
    for _ in range(3):
        frequency, angle, phase = rng.uniform(0.1, 0.5), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        u, v = frequency * np.cos(angle) * x, frequency * np.sin(angle) * y + phase
        wave = np.cos(v)[:, :, None] * np.cos(u)[:, None, :] - np.sin(v)[:, :, None] * np.sin(u)[:, None, :]
        image += wave * rng.uniform(4, 12)
    return image


def _draw_actors(
    frames: np.ndarray, direction, does_flicker: bool, action_share: float, scene: Scene, rng: np.random.Generator
) -> None:
    """Draw the actors, each bright or dark, or flickering: they move while the action is on and rest otherwise."""
    is_moving = np.zeros(len(frames), dtype=bool)
    is_moving[_stretch(len(frames), action_share, rng)] = True
    travel = np.cumsum(is_moving * rng.uniform(*scene.speed_px))[:, None] * np.asarray(direction)  # (T, 2)
    for _ in range(scene.actors):
        position = np.mod(rng.uniform(0, scene.size_px, size=2) + travel, scene.size_px)
        mask = scene.actor_contrast * _disc(scene.size_px, position, scene.actor_px / 2)  # (T, H, W)
        mask *= rng.integers(0, 2, size=mask.shape, dtype=np.int8) * 2 - 1 if does_flicker else rng.choice((-1, 1))
        frames += mask[..., None]


def _stretch(length: int, share: float, rng: np.random.Generator) -> slice:
    """Place one stretch that covers `share` of `length` frames at random."""
    covered = max(1, round(share * length))
    return slice(first := int(rng.integers(0, length - covered + 1)), first + covered)


def _disc(size_px: int, centres: np.ndarray, radius_px: float) -> np.ndarray:
    """Soft-edged discs on a torus: centres (T, 2) as (x, y) -> (T, H, W) in 0 to 1."""
    grid = np.arange(size_px, dtype=np.float32)
    offset = np.abs(grid[None, None, :] - centres.astype(np.float32)[:, :, None])  # (T, 2, size)
    squared = np.minimum(offset, size_px - offset) ** 2
    distance = np.sqrt(squared[:, 0, None, :] + squared[:, 1, :, None])
    return np.clip(radius_px + 0.5 - distance, 0, 1, out=distance)
