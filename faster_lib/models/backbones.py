"""The clip networks of Table 1, as data read by one builder, and the way to networks of others and to weights."""

import math
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from faster_lib.models.clips import CLIP_FRAMES_MULTIPLE, ClipNetwork, as_input, check_clips, check_whole
from faster_lib.models.weights import fit_weights, is_weight_file, read_weights

BN_EPS = 1e-3  # Source: VMZ, the code base of Tran et al. 2018; torch's default momentum 0.1 is its Caffe2 momentum 0.9
SPACE_STRIDE = 32  # Source: Table 1, 224 pixels become 7


class Stage(NamedTuple):
    """One row res2 to res5 of Table 1."""

    blocks: int
    width: int  # of the bottleneck; the block's output has EXPANSION times as many channels
    stride: int  # spatial stride of the first block; R(2+1)D and R3D stride time by the same


class Architecture(NamedTuple):
    """One column of Table 1: the stem's convolutions and how a block looks along time."""

    stem: tuple[tuple[int, tuple[int, int, int], tuple[int, int, int]], ...]  # (channels, kernel, stride) in order
    stages: tuple[Stage, ...]
    block: str  # "2d": 1x3x3, "2plus1d": 1x3x3 then 3x1x1, "3d": 3x3x3


# Networks of others: the module of each publisher, which alone needs that package, and its class.
FAMILIES = {"torchvision": "TorchvisionBackbone", "timm": "TimmBackbone"}
EXPANSION = 4
_STAGES_26 = (Stage(2, 64, 1), Stage(2, 128, 2), Stage(2, 256, 2), Stage(2, 512, 2))
_STAGES_50 = (Stage(3, 64, 1), Stage(4, 128, 2), Stage(6, 256, 2), Stage(3, 512, 2))

# Source: Table 1; R3D-50 (Table 6) is Tran et al. 2018's R3D with the same stages.
TABLE_1 = {
    "r2d_26": Architecture(((64, (8, 7, 7), (8, 2, 2)),), _STAGES_26, "2d"),
    "r2plus1d_50": Architecture(((45, (1, 7, 7), (1, 2, 2)), (64, (3, 1, 1), (1, 1, 1))), _STAGES_50, "2plus1d"),
    "r3d_50": Architecture(((64, (3, 7, 7), (1, 2, 2)),), _STAGES_50, "3d"),
}


class Bottleneck(nn.Module):
    """1x1x1, the block's own convolutions, 1x1x1 to 4 times the width; then add the shortcut and rectify.

    The strides sit on the middle convolutions; the shortcut is a strided 1x1x1 convolution where the shape changes.

    Shape: (B, in_channels, l, h, w) -> (B, 4 * width, l / stride, h / stride, w / stride); "2d" keeps l.
    Source: FASTER (AAAI 2020), Table 1; its printed costs settle where the strides are.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, block: str):
        super().__init__()
        out_channels, time_stride = EXPANSION * width, 1 if block == "2d" else stride
        layers = [conv_bn(in_channels, width, (1, 1, 1)), nn.ReLU(inplace=True)]
        if block == "2plus1d":
            factorised = 9 * width // 4  # as many weights as a 3x3x3 has. Source: Tran et al. 2018, section 3.5
            layers += [conv_bn(width, factorised, (1, 3, 3), (1, stride, stride)), nn.ReLU(inplace=True)]
            layers += [conv_bn(factorised, width, (3, 1, 1), (stride, 1, 1))]
        else:
            layers += [conv_bn(width, width, (1 if block == "2d" else 3, 3, 3), (time_stride, stride, stride))]
        layers += [nn.ReLU(inplace=True), conv_bn(width, out_channels, (1, 1, 1))]
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv_bn(in_channels, out_channels, (1, 1, 1), (time_stride, stride, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class Backbone(ClipNetwork):
    """A clip network of Table 1: stem, max pooling, four stages, global average pooling, a fully-connected layer.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; maps (B, channels, L/8, H/32, W/32)
    Raises: ValueError if the clips have another shape.
    Source: FASTER (AAAI 2020), Table 1.
    """

    def __init__(self, architecture: Architecture, *, num_classes: int, width: float):
        super().__init__()
        if not (isinstance(width, int | float) and math.isfinite(width) and width > 0):
            raise ValueError(f"width is {width!r}; it must be a positive number, 1.0 for the networks of the paper")
        stem, channels = [], 3
        for out_channels, kernel, stride in architecture.stem:
            before, channels = channels, _scale(out_channels, width)
            stem += [conv_bn(before, channels, kernel, stride), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem)
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.stages = nn.Sequential()
        for num_blocks, stage_width, stage_stride in architecture.stages:
            scaled, blocks = _scale(stage_width, width), nn.Sequential()
            for stride in (stage_stride, *[1] * (num_blocks - 1)):
                blocks.append(Bottleneck(channels, scaled, stride=stride, block=architecture.block))
                channels = EXPANSION * scaled
            self.stages.append(blocks)
        self.channels = channels
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        return self.stages(self.pool(self.stem(as_input(clips))))

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        clip_frames, *sides = clip_size
        return clip_frames // CLIP_FRAMES_MULTIPLE, *(math.ceil(side / SPACE_STRIDE) for side in sides)


def build_backbone(
    name: str, num_classes: int = 400, width: float = 1.0, weights: str | Path | None = None
) -> ClipNetwork:
    """Build a network of Table 1, or one of torchvision's or timm's, with fresh weights unless some are given.

    Args:
        name: "r2d_26" (the cheap network), "r2plus1d_50" or "r3d_50" (the expensive ones); "torchvision/" and one of
            "r2plus1d_18", "r3d_18", "mc3_18", "s3d"; "timm/<name>", an image network that looks at one frame of 8, or
            "timm/<name>/2", at every 2nd.
        width: scales every channel count but the input's and the classes'; networks of others have 1.0 alone.
        weights: as `load_weights` takes them.
    Raises: ValueError for an unknown name, a width that is not positive, fewer than one class, or unfit weights;
        ImportError where the package of another's network is not installed.
    """
    check_whole("num_classes", num_classes)
    family, _, others = name.partition("/") if isinstance(name, str) else (name, "", "")
    if name in TABLE_1:
        network = Backbone(TABLE_1[name], num_classes=num_classes, width=width)
    elif family in FAMILIES and others:
        if width != 1:
            raise ValueError(f"width is {width!r}; {name} has one width, write 1.0")
        build = getattr(import_module(f"faster_lib.models.{family}"), FAMILIES[family])
        network = build(others, num_classes=num_classes)
    else:
        known = f"choose one of {', '.join(TABLE_1)}, or torchvision's, such as torchvision/s3d, or timm's"
        raise ValueError(f"unknown network {name!r}; {known}, such as timm/resnet18")
    if weights is not None:
        load_weights(network, weights)
    return network


def load_weights(network: ClipNetwork, weights: str | Path) -> None:
    """Put weights into a network; a classifier of another number of classes is left out, with a warning.

    Args:
        weights: a file ending in .safetensors, .pth or .pt, none of whose code is run; for networks of others also the
            publisher's name for some, such as "KINETICS400_V1" or "DEFAULT".
    Raises: ValueError for an unknown name, a file that holds code, or weights whose keys or shapes do not match.
    """
    found = read_weights(Path(weights).expanduser()) if is_weight_file(weights) else network.fetch_weights(weights)
    fit_weights(network, network.rename_weights(found), str(weights))


def conv_bn(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    """Build a convolution without bias, padded to keep odd kernels centred, and its batch normalisation."""
    padding = tuple(k // 2 if k % 2 else 0 for k in kernel)  # R2D-26's even kernel 8 meets a stride of 8
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm3d(out_channels, eps=BN_EPS),
    )


def _scale(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _initialise(network: nn.Module) -> None:
    """MSRA initialisation; the last batch norm of each block starts at 0, so that a block starts as its shortcut.

    Source: VMZ for the convolutions; Goyal et al. 2017 for the zero (ours: the paper does not say; it helped).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.residual[-1][1].weight)
