"""From decoded frames to clips of bytes: scale, crop, flip.

Clips stay uint8 until `models.clips.normalise`, which runs on the device: a quarter of the bytes to move.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import interpolate

from faster_lib.profile_sections import Data

RECIPE_TRANSFORM = 1  # raised whenever the same frames would give other input


class Cut(NamedTuple):
    """How all frames of a clip, or of a view of a video, are scaled, cut to a square and flipped."""

    scaled_px: list[int]  # height, width
    top: int
    left: int
    crop_px: int
    is_flipped: bool


def draw_cut(size_px: Sequence[int], data: Data, generator: torch.Generator | None = None) -> Cut:
    """Draw short side, square and flip for training, from the frames' height and width; for the test take the centre.

    Source: FASTER, "shorter side is randomly sampled in [256, 320]"; the random crop follows Tran et al. 2018. The
        central one is ours: the paper's cost per clip is that of one 224 x 224 crop, and it does not say which.
    """

    def draw(first: int, last: int) -> int:
        return int(torch.randint(first, last + 1, (), generator=generator))

    side = draw(*data.train_short_side_px) if generator else data.test_short_side_px
    scaled = [side * length // min(size_px) for length in size_px]
    spare = [length - data.crop_px for length in scaled]
    top, left = (draw(0, most) if generator else round(most / 2) for most in spare)
    return Cut(scaled, top, left, data.crop_px, bool(generator and data.flip and draw(0, 1)))


def cut_frames(frames: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Scale, cut and flip frames: (T, H, W, 3) uint8 -> (T, crop_px, crop_px, 3) uint8."""
    clip = frames.permute(0, 3, 1, 2)  # (T, 3, H, W)
    if list(clip.shape[-2:]) != cut.scaled_px:
        clip = interpolate(clip, cut.scaled_px, mode="bilinear", align_corners=False, antialias=True)
    clip = clip[..., cut.top : cut.top + cut.crop_px, cut.left : cut.left + cut.crop_px]
    return (clip.flip(-1) if cut.is_flipped else clip).movedim(1, -1)
