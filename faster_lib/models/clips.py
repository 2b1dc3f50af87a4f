"""A clip, how its bytes become numbers, and what every network over clips offers."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

PIXEL_MEAN = (110.2, 100.6, 96.0)  # of 0 to 255, RGB. Source: VMZ's 0.43216, 0.394666, 0.37645 on Kinetics
PIXEL_STD = (58.1, 56.5, 55.3)  # Source: VMZ's 0.22803, 0.22145, 0.216989
CLIP_FRAMES_MULTIPLE = 8  # Source: Table 1, every network turns L frames into a feature map of L/8


class ClipNetwork(nn.Module, ABC):
    """A network that turns a clip into a feature map, and a feature map into scores.

    It has `channels`, those of its feature map, and a linear `classifier` of their means.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; L a multiple of 8
    Source: FASTER (AAAI 2020), "Problem Formulation".
    """

    channels: int
    classifier: nn.Linear

    @abstractmethod
    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Compute the feature map x_t: (B, 3, L, H, W), normalised or uint8 -> (B, channels, l, h, w)."""

    @abstractmethod
    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Give the feature map's (l, h, w) for clips of (L, H, W)."""

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Pool a feature map globally and score it: (B, channels, l, h, w) -> (B, num_classes) logits."""
        return self.classifier(features.mean(dim=(-3, -2, -1)))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(clips))

    def fetch_weights(self, weights: str) -> dict[str, torch.Tensor]:
        """Give published weights of that name; networks that others publish override this and the next."""
        raise ValueError(f"weights is {weights!r}; for a network of Table 1 it must end in .safetensors, .pth or .pt")

    def rename_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give weights with the publisher's names for the parts this network's names; those stay as they are."""
        return weights

    def learn_last(self, layers: int) -> None:
        """Let the classifier and so many layers before it learn alone; all else keeps its weights and statistics."""
        found = [m for m in self.modules() if m is not self.classifier and [*m.parameters(recurse=False)]]
        self.requires_grad_(False)
        for layer in (*found[max(len(found) - layers, 0) :], self.classifier):
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> "ClipNetwork":
        for part in super().train(mode).modules():  # what does not learn keeps its statistics too
            own = [parameter.requires_grad for parameter in part.parameters(recurse=False)]
            part.training &= not own or any(own)
        return self


def check_clips(clips: torch.Tensor) -> None:
    """Raise ValueError unless `clips` are bytes or floats of shape (B, 3, L, H, W), L a positive multiple of 8."""
    if not (clips.dtype == torch.uint8 or clips.is_floating_point()):
        raise ValueError(f"clips are {clips.dtype}; they must be torch.uint8, or floats that are normalised already")
    shape = tuple(int(size) for size in clips.shape)  # whole numbers also while a tracer watches
    if len(shape) != 5 or shape[1] != 3:
        raise ValueError(f"clips have shape {shape}; they must be (B, 3, L, H, W), colour before frames")
    check_clip_frames(shape[2])


def check_clip_frames(clip_frames: int) -> None:
    """Raise ValueError unless the clip length L is a positive multiple of 8."""
    check_whole("L", clip_frames)
    if clip_frames % CLIP_FRAMES_MULTIPLE:
        must = f"a positive multiple of {CLIP_FRAMES_MULTIPLE}, such as 8, 16 or 32, as the networks reduce time by 8"
        raise ValueError(f"L is {clip_frames!r}; the frames per clip must be {must}")


def check_whole(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless the value of that name is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def normalise(clips: torch.Tensor) -> torch.Tensor:
    """Turn bytes into floats of about zero mean and unit deviation, colour by colour.

    Shape: (..., 3, T, H, W) uint8 -> the same shape, float32
    """
    mean, std = (torch.tensor(v, device=clips.device).view(3, 1, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return torch.sub(clips, mean).div_(std)


def resize(clips: torch.Tensor, side_px: int) -> torch.Tensor:
    """Resize each frame to a square: (B, 3, L, H, W) -> (B, 3, L, side_px, side_px)."""
    size = (side_px, side_px)
    if tuple(int(side) for side in clips.shape[-2:]) == size:
        return clips
    frames = clips.transpose(1, 2).flatten(0, 1)  # (B * L, 3, H, W)
    wide = frames.float() if frames.dtype == torch.bfloat16 else frames  # which torch cannot resize on a CPU
    frames = nn.functional.interpolate(wide, size=size, mode="bilinear", antialias=True).to(clips.dtype)
    return frames.unflatten(0, (-1, int(clips.shape[2]))).transpose(1, 2)


def as_input(clips: torch.Tensor) -> torch.Tensor:
    """Normalise clips of bytes; floats are taken to be so already."""
    return normalise(clips) if clips.dtype == torch.uint8 else clips
