"""The form of a clip that every network takes, and how its bytes become numbers."""

import torch

PIXEL_MEAN = (110.2, 100.6, 96.0)  # of 0 to 255, RGB. Source: VMZ's 0.43216, 0.394666, 0.37645 on Kinetics
PIXEL_STD = (58.1, 56.5, 55.3)  # Source: VMZ's 0.22803, 0.22145, 0.216989
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


def normalise(clips: torch.Tensor) -> torch.Tensor:
    """Turn bytes into floats of about zero mean and unit deviation, colour by colour.

    Shape: (..., 3, T, H, W) uint8 -> the same shape, float32
    """
    mean, std = (torch.tensor(v, device=clips.device).view(3, 1, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return torch.sub(clips, mean).div_(std)


def as_input(clips: torch.Tensor) -> torch.Tensor:
    """Normalise clips of bytes; floats are taken to be so already."""
    return normalise(clips) if clips.dtype == torch.uint8 else clips
