"""Table 1 read off a built network."""

import copy
import itertools
from typing import NamedTuple

import torch
from torch import nn

from faster_lib.models.backbones import Backbone
from faster_lib.models.clips import check_clip_frames


class Layer(NamedTuple):
    """One row of Table 1 as a built network has it."""

    layer: str
    kernels: str  # in the order in which they are called, each with its output channels; equal blocks as "[...] × 3"
    stride: str  # of the kernels that do not move by 1
    shortcut: str  # a convolution beside the others, where the shape changes; Table 1 does not print it
    output: str  # L × H × W


class _Call(NamedTuple):
    """One convolution, pooling or fully-connected layer, seen while a network runs."""

    name: str  # of the module inside the network, such as stages.1.0.residual.0.0
    module: nn.Module
    size: torch.Size  # of its output

    @property
    def layer(self) -> str:
        part, *rest = self.name.split(".")
        names = {"stem": "conv1", "pool": "pool1", "classifier": "global average pooling, fc"}
        return names.get(part) or f"res{int(rest[0]) + 2}"

    def __str__(self) -> str:
        if isinstance(self.module, nn.Linear):
            return f"{self.module.in_features} to {self.module.out_features}"
        kernel = "×".join(map(str, self.module.kernel_size))
        return f"{kernel} max" if isinstance(self.module, nn.MaxPool3d) else f"{kernel}, {self.size[1]}"

    @property
    def stride(self) -> str:
        """Write the stride, if it is not 1."""
        stride = ",".join(map(str, getattr(self.module, "stride", ())))
        return "" if stride in ("", "1,1,1") else f"{stride} at {'×'.join(map(str, self.module.kernel_size))}"


@torch.no_grad()
def describe(backbone: Backbone, clip_frames: int, size_px: int = 224) -> list[Layer]:
    """Read Table 1 off a built network: run it on one blank clip and write down every layer that is called.

    A network built under `torch.device("meta")` has shapes without numbers and runs in no time.
    """
    check_clip_frames(clip_frames)
    network, calls = copy.deepcopy(backbone).eval(), []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.MaxPool3d | nn.Linear):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: calls.append(_Call(name, module, output.shape))
            )
    network(torch.zeros(1, 3, clip_frames, size_px, size_px, device=network.classifier.weight.device))
    return [_layer(name, list(group)) for name, group in itertools.groupby(calls, key=lambda call: call.layer)]


def _layer(name: str, calls: list[_Call]) -> Layer:
    shortcuts = [call for call in calls if ".shortcut." in call.name]
    main = [call for call in calls if ".shortcut." not in call.name]
    kernels = " → ".join(map(str, main))
    if name.startswith("res"):
        blocks = [list(block) for _, block in itertools.groupby(main, key=lambda call: call.name.split(".")[2])]
        equal = itertools.groupby(" → ".join(map(str, block)) for block in blocks)
        kernels = " + ".join(f"[{text}] × {len(list(same))}" for text, same in equal)
    strides = "; ".join(call.stride for call in main if call.stride)
    beside = "; ".join(f"{call}, stride {','.join(map(str, call.module.stride))}" for call in shortcuts)
    return Layer(name, kernels, strides, beside, "×".join(map(str, main[-1].size[2:])))
