"""From decoded frames to clips of bytes: scale, crop, flip.

Clips stay uint8 until `models.clips.normalise`, which runs on the device: a quarter of the bytes to move.
"""

import torch
from torchvision.transforms.v2 import functional as F

RECIPE_TRANSFORM = 1  # raised whenever the same frames would give other input

_PIECE_FRAMES = 8  # scaled at a time: few enough that they stay in the cache, and that their memory is used again


def train_transform(
    frames: torch.Tensor,
    *,
    short_side_px: tuple[int, int],
    crop_px: int,
    is_flip_allowed: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    """Scale the short side to a random size, cut a random square, and flip half of the clips where the label allows it.

    All frames of a call share one draw.

    Shape: (T, H, W, 3) uint8 -> (3, T, crop_px, crop_px) uint8, colours last in memory
    Source: FASTER, "shorter side is randomly sampled in [256, 320]"; the crop follows Tran et al. 2018.
    """
    side = int(torch.randint(short_side_px[0], short_side_px[1] + 1, (), generator=generator))
    scaled_px = resize_short_side(frames[:1], side).shape[-2:]
    top, left = (int(torch.randint(size - crop_px + 1, (), generator=generator)) for size in scaled_px)
    is_flipped = is_flip_allowed and bool(torch.randint(2, (), generator=generator))
    cut = frames.new_empty(len(frames), crop_px, crop_px, 3)
    for piece, place in zip(frames.split(_PIECE_FRAMES), cut.split(_PIECE_FRAMES), strict=True):
        scaled = resize_short_side(piece, side)[..., top : top + crop_px, left : left + crop_px]
        place.copy_((scaled.flip(-1) if is_flipped else scaled).movedim(1, -1))
    return cut.movedim(-1, 0)


def eval_transform(frames: torch.Tensor, *, short_side_px: int, crop_px: int) -> torch.Tensor:
    """Scale the short side and cut the central square.

    Shape: (T, H, W, 3) uint8 -> (3, T, crop_px, crop_px) uint8, where possible a view
    Source: ours; the paper's cost per clip is that of one 224 x 224 crop, and it does not say which.
    """
    clip = resize_short_side(frames, short_side_px)
    return F.center_crop(clip, [crop_px, crop_px]).transpose(0, 1)


def resize_short_side(frames: torch.Tensor, side_px: int) -> torch.Tensor:
    """Scale frames so that the shorter side has `side_px` pixels.

    Shape: (T, H, W, 3) uint8 -> (T, 3, H', W') uint8
    """
    clip = frames.permute(0, 3, 1, 2)  # (T, 3, H, W)
    if min(clip.shape[-2:]) == side_px:
        return clip
    return F.resize(clip, [side_px], antialias=True)
