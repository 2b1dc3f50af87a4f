"""torchvision's video classifiers as clip networks, with the clip size that their weights need."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from faster_lib.models.clips import ClipNetwork, as_input, check_clips

PREFIX = "torchvision/"
# By how much a network reduces (time, space). Source: torchvision's code, tested against the maps themselves.
TORCHVISION = {"r2plus1d_18": (8, 16), "r3d_18": (8, 16), "mc3_18": (1, 16), "s3d": (8, 32)}
# Why its other video classifiers cannot serve, by the beginning of their names.
_REFUSED = {
    "mvit_": "it classifies a token beside the feature map, takes 16 frames alone, and needs another normalisation",
    "swin3d_": "its weights need another normalisation than the other networks'",
}
# torchvision's names for the parts, and ours; the first that fits counts. The first two are s3d's.
_RENAMED = {"classifier.1.": "classifier.", "features.": "trunk.", "fc.": "classifier."}
_RENAMED |= {"stem.": "trunk.stem.", "layer": "trunk.layer"}


class TorchvisionBackbone(ClipNetwork):
    """One of torchvision's video classifiers.

    A clip of another size than `input_px` is resized to a square of it, as the weights need. S3D's average over
    2 x 7 x 7 positions stays before its classifier; at L = 16 it is the global mean.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; L a multiple of 8
    Args:
        name: a key of TORCHVISION.
    Raises: ValueError if the clips have another shape, or fewer frames than the network takes.
    Source: torchvision; Tran et al. 2018 for all but s3d, which is Xie et al. 2018's.
    """

    def __init__(self, name: str, *, num_classes: int):
        super().__init__()
        network, needed = get_model(name, weights=None, num_classes=num_classes), get_model_weights(name).DEFAULT
        self.name, self.input_px = name, crop_px_of(needed)
        self.least_frames = needed.meta.get("min_temporal_size", 1)
        if name == "s3d":
            dropout, classifier = network.classifier  # a 1x1x1 convolution, which is a linear layer after the mean
            self.trunk, self.pool = network.features, nn.Sequential(network.avgpool, dropout)
            self.classifier = nn.Linear(classifier.in_channels, num_classes)
        else:
            *trunk, (_, self.pool), (_, self.classifier) = network.named_children()
            self.trunk = nn.Sequential(OrderedDict(trunk))
        self.channels = self.classifier.in_features

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        if clips.shape[2] < self.least_frames:
            takes = f"a multiple of 8 of at least {self.least_frames} frames per clip"
            raise ValueError(f"L is {int(clips.shape[2])}; {PREFIX}{self.name} takes {takes}")
        return self.trunk(self._resize(as_input(clips)))

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        time, space = TORCHVISION[self.name]
        return clip_size[0] // time, *[self.input_px // space] * 2  # whatever H and W are

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return super().classify(self.pool(features))

    def _resize(self, clips: torch.Tensor) -> torch.Tensor:
        size = (self.input_px, self.input_px)
        if tuple(int(side) for side in clips.shape[-2:]) == size:
            return clips
        frames = clips.transpose(1, 2).flatten(0, 1)  # (B * L, 3, H, W)
        wide = frames.float() if frames.dtype == torch.bfloat16 else frames  # which torch cannot resize on a CPU
        frames = nn.functional.interpolate(wide, size=size, mode="bilinear", antialias=True).to(clips.dtype)
        return frames.reshape(clips.shape[0], -1, 3, *size).transpose(1, 2)


def build_torchvision(name: str, num_classes: int, width: float) -> TorchvisionBackbone:
    """Build one of torchvision's networks with fresh weights.

    Raises: ValueError for a network that cannot serve, saying why, an unknown one, or a width other than 1.
    """
    short = name.removeprefix(PREFIX)
    if short not in TORCHVISION:
        known = ", ".join(PREFIX + known for known in TORCHVISION)
        reason = next((reason for start, reason in _REFUSED.items() if short.startswith(start)), None)
        why = f"cannot be a clip network here: {reason}" if reason else "is unknown"
        raise ValueError(f"network {name!r} {why}; choose one of {known}")
    if width != 1:
        raise ValueError(f"width is {width!r}; {name} has one width, write 1.0")
    return TorchvisionBackbone(short, num_classes=num_classes)


def fetch_weights(network: TorchvisionBackbone, weights: str) -> dict[str, torch.Tensor]:
    """Load published weights by torchvision's name for them, from its cache or the network, with their hash checked.

    Raises: ValueError for an unknown name, or weights for clips of another size.
    """
    known = get_model_weights(network.name).__members__
    if weights not in known:
        choice = f"one of {', '.join(known)}, or a file ending in .safetensors, .pth or .pt"
        raise ValueError(f"weights is {weights!r}; for {PREFIX}{network.name} it must be {choice}")
    if (crop_px := crop_px_of(known[weights])) != network.input_px:
        raise ValueError(f"weights {weights} need clips of {crop_px} px, not of {network.input_px} px")
    return known[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)


def rename_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give torchvision's own keys the names that `TorchvisionBackbone` has for them; those stay as they are."""
    renamed = {}
    for key, value in weights.items():
        old = next((old for old in _RENAMED if key.startswith(old)), "")
        is_kernel = key == "classifier.1.weight"
        renamed[_RENAMED.get(old, "") + key.removeprefix(old)] = value.flatten(1) if is_kernel else value
    return renamed


def crop_px_of(weights: WeightsEnum) -> int:
    """Give the side of the clips that weights need."""
    return weights.transforms().crop_size[0]
