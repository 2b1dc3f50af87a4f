"""Batch norm over the clips of all ranks on a CPU, where PyTorch has none: a double of its SyncBatchNorm, for tests."""

from typing import Any

import torch
from torch import distributed, nn


def synchronise(network: nn.Module) -> nn.Module:
    """Stand in for `faster_lib.training.loop.synchronise_batch_norm`."""
    for module in list(network.modules()):
        if type(module) is nn.BatchNorm3d:
            module.__class__ = RankedBatchNorm3d
    return network


class RankedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm whose mean and variance in training are those of all ranks' clips together.

    Shape: (B, C, L, H, W) -> the same; B may differ between ranks, and be 0 on some.
    Source: the form of PyTorch's SyncBatchNorm, for CPUs.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        x, dims = x.float(), (0, 2, 3, 4)  # as PyTorch's, where activations are bfloat16
        count = x.new_full((1,), x.numel() // x.shape[1])
        count, total = _SumOfRanks.apply(torch.cat([count, x.sum(dims)])).split([1, x.shape[1]])
        mean = total / count
        centred = x - mean.view(1, -1, 1, 1, 1)
        variance = _SumOfRanks.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)


class _SumOfRanks(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
