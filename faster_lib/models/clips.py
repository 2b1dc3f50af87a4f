"""The form of a clip that every network takes."""

import torch

CLIP_FRAMES_MULTIPLE = 8  # Source: Table 1, every network turns L frames into a feature map of L/8


def check_clips(clips: torch.Tensor) -> None:
    """Raise ValueError unless `clips` has shape (B, 3, L, H, W) with L a positive multiple of 8."""
    shape = tuple(int(size) for size in clips.shape)  # whole numbers also while a tracer watches
    if len(shape) != 5 or shape[1] != 3:
        raise ValueError(f"clips have shape {shape}; they must be (B, 3, L, H, W), colour before frames")
    check_clip_frames(shape[2])


def check_clip_frames(clip_frames: int) -> None:
    """Raise ValueError unless the clip length L is a positive multiple of 8."""
    if isinstance(clip_frames, bool) or not isinstance(clip_frames, int):
        raise ValueError(f"L is {clip_frames!r}; the frames per clip must be a whole number, such as 8, 16 or 32")
    if clip_frames < 1 or clip_frames % CLIP_FRAMES_MULTIPLE:
        raise ValueError(
            f"L is {clip_frames}; the frames per clip must be a positive multiple of {CLIP_FRAMES_MULTIPLE}, "
            "such as 8, 16 or 32, since the networks reduce time by 8"
        )
