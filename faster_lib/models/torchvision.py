"""torchvision's video classifiers as clip networks, with the clip size that their weights need."""

import re
from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from faster_lib.models.clips import ClipNetwork, as_input, check_clips, resize

# By how much a network reduces (time, space). Source: torchvision's code, tested against the maps themselves.
TORCHVISION = {"r2plus1d_18": (8, 16), "r3d_18": (8, 16), "mc3_18": (1, 16), "s3d": (8, 32)}
# Why its other video classifiers cannot serve, by the beginning of their names.
_REFUSED = {
    "mvit_": "it classifies a token beside the feature map, takes 16 frames alone, and needs another normalisation",
    "swin3d_": "its weights need another normalisation than the other networks'",
}
# torchvision's names for the parts, as they begin, and ours. The first two are s3d's.
_RENAMED = {
    r"classifier\.1\.": "classifier.",
    r"features\.": "trunk.",
    r"fc\.": "classifier.",
    r"(?=stem|layer)": "trunk.",
}


class TorchvisionBackbone(ClipNetwork):
    """One of torchvision's video classifiers.

    A clip of another size than `input_px` is resized to a square of it, as the weights need. S3D's average over
    2 x 7 x 7 positions stays before its classifier; at L = 16 it is the global mean.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; L a multiple of 8
    Args:
        name: a key of TORCHVISION.
    Raises: ValueError for a network that is unknown or cannot serve, clips of another shape, or with too few frames.
    Source: torchvision; Tran et al. 2018 for all but s3d, which is Xie et al. 2018's.
    """

    def __init__(self, name: str, *, num_classes: int):
        super().__init__()
        if name not in TORCHVISION:
            known = ", ".join(f"torchvision/{known}" for known in TORCHVISION)
            reason = next((reason for start, reason in _REFUSED.items() if name.startswith(start)), None)
            why = f"cannot be a clip network here: {reason}" if reason else "is unknown"
            raise ValueError(f"network 'torchvision/{name}' {why}; choose one of {known}")
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
            raise ValueError(f"L is {int(clips.shape[2])}; torchvision/{self.name} takes {takes}")
        return self.trunk(resize(as_input(clips), self.input_px))

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        time, space = TORCHVISION[self.name]
        return clip_size[0] // time, *[self.input_px // space] * 2  # whatever H and W are

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return super().classify(self.pool(features))

    def fetch_weights(self, weights: str) -> dict[str, torch.Tensor]:
        """Load published weights by torchvision's name for them, from its cache or the network, hash checked."""
        known = get_model_weights(self.name).__members__
        if weights not in known:
            choice = f"one of {', '.join(known)}, or a file ending in .safetensors, .pth or .pt"
            raise ValueError(f"weights is {weights!r}; for torchvision/{self.name} it must be {choice}")
        return known[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)

    def rename_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for theirs, ours in _RENAMED.items():
            weights = {re.sub(f"^{theirs}", ours, key): value for key, value in weights.items()}
        return {k: value.flatten(1) if k == "classifier.weight" else value for k, value in weights.items()}  # s3d's


def crop_px_of(weights: WeightsEnum) -> int:
    """Give the side of the clips that weights need."""
    return weights.transforms().crop_size[0]
