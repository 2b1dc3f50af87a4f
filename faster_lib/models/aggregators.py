"""The five aggregators of Table 3, each as the paper's equation of one step, (x_t, o_{t-1}) -> o_t; and a control."""

import torch
from torch import nn
from torch.nn import functional as F

from faster_lib.models.backbones import BN_EPS
from faster_lib.models.clips import check_whole


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution, computed as a product over channels: faster, most of all where they come last in memory.

    Shape: (B, in_channels, l, h, w) -> (B, out_channels, l, h, w), channels last
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.linear(maps.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class Aggregator(nn.Module):
    """Take in a video's clips one after the other: o_0 = x_0, then o_t = f(o_{t-1}, x_t).

    Only the aggregator looks inside a state. `fast_form` in `fast_aggregators` computes the same faster.

    Shape: feature (B, C, l, h, w), state or None -> state
    Source: FASTER (AAAI 2020), Eq. 1.
    """

    aggregates_scores = False  # True: x_t is a clip's scores (B, num_classes) instead of its feature map

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def start(self, feature: torch.Tensor):
        """Make the state after the first clip, o_0 = x_0."""
        return feature

    def step(self, feature: torch.Tensor, state):
        """Make the state o_t out of x_t and o_{t-1}."""
        raise NotImplementedError

    def read(self, state) -> torch.Tensor:
        """Pool a state globally: -> (B, C), the input of the classifier."""
        return pool_globally(state)

    def forward(self, feature: torch.Tensor, state=None):
        return self.run(feature[None], state)

    def run(self, features: torch.Tensor, state=None):
        """Take in one clip after the other; without a state, the first one makes it.

        Shape: (N, B, C, l, h, w) -> the state after the last clip
        """
        self._check(features[0])
        if state is None:
            state, features = self.start(features[0]), features[1:]
        for feature in features:
            state = self.step(feature, state)
        return state

    def _check(self, feature: torch.Tensor) -> None:
        if feature.ndim != 5 or feature.shape[1] != self.channels:
            raise ValueError(f"feature has shape {tuple(feature.shape)}; it must be (B, {self.channels}, l, h, w)")


class Mean(Aggregator):
    """Average the feature maps, whatever their order. The state is (mean, how many clips).

    Shape: feature (B, C, l, h, w), state or None -> state
    Source: ours; a control that the paper lacks: order-free, so what a recurrent unit gains over it is recurrence.
    """

    def start(self, feature: torch.Tensor) -> tuple[torch.Tensor, int]:
        return feature, 1

    def step(self, feature: torch.Tensor, state: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, int]:
        mean, count = state
        return mean + (feature - mean) / (count + 1), count + 1

    def read(self, state: tuple[torch.Tensor, int]) -> torch.Tensor:
        return pool_globally(state[0])


class AveragePool(Mean):
    """Average the clips' scores, as probabilities (ours; the paper does not say), in the same way.

    Shape: scores (B, num_classes), state or None -> state; read -> (B, num_classes)
    Source: FASTER (AAAI 2020), "Average pooling".
    """

    aggregates_scores = True

    def read(self, state: tuple[torch.Tensor, int]) -> torch.Tensor:
        return state[0]

    def _check(self, scores: torch.Tensor) -> None:
        if scores.ndim != 2:
            raise ValueError(f"scores have shape {tuple(scores.shape)}; they must be (B, num_classes)")


class Concat(Aggregator):
    """Concatenate x_t with o_{t-1}, project them, normalise and rectify.

    Shape: feature (B, C, l, h, w), state (B, C, l, h, w) -> state (B, C, l, h, w)
    Source: FASTER (AAAI 2020), Eq. 5, Fig. 2a.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.W, self.U = Pointwise(channels, channels), Pointwise(channels, channels)
        self.bn = nn.BatchNorm3d(channels, eps=BN_EPS)

    def step(self, feature: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, o = feature, state
        return torch.relu(self.bn(self.W(o) + self.U(x)))


class LSTM(Aggregator):
    """An LSTM cell on globally pooled features; its output and its memory both start as x_0 pooled.

    Shape: feature (B, C, l, h, w), state (output (B, C), memory (B, C)) -> the same
    Source: FASTER (AAAI 2020), "LSTM": torch's cell, without peepholes. Memory's start and forget bias of 1 are ours.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.cell = nn.LSTMCell(channels, channels)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.ones_(self.cell.bias_ih[channels : 2 * channels])  # torch's order: input, forget, cell, output

    def start(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = pool_globally(feature)
        return pooled, pooled

    def step(self, feature: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return self.cell(pool_globally(feature), state)

    def read(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return state[0]


class GRU(Aggregator):
    """A GRU on globally pooled features, with the reset before the product as in Eq. 3.

    Shape: feature (B, C, l, h, w), state (B, C) -> state (B, C)
    Source: FASTER (AAAI 2020), Eq. 2-3. Two candidate matrices: Eq. 3 prints one symbol, its cost needs two products.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.G_rx, self.G_zx, self.V_x = (nn.Linear(channels, channels) for _ in range(3))
        self.G_ro, self.G_zo, self.V_o = (nn.Linear(channels, channels, bias=False) for _ in range(3))

    def start(self, feature: torch.Tensor) -> torch.Tensor:
        return pool_globally(feature)

    def step(self, feature: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, o = pool_globally(feature), state
        r = torch.sigmoid(self.G_rx(x) + self.G_ro(o))  # Eq. 2
        z = torch.sigmoid(self.G_zx(x) + self.G_zo(o))
        candidate = torch.tanh(self.V_x(x) + self.V_o(r * o))  # Eq. 3
        return (1 - z) * o + z * candidate

    def read(self, state: torch.Tensor) -> torch.Tensor:
        return state


class FASTGRU(Aggregator):
    """Gate clip features without pooling them, through bottlenecked 1x1x1 convolutions.

    Shape: feature (B, C, l, h, w), state (B, C, l, h, w) -> state (B, C, l, h, w)
    Args:
        reduction: factor r by which the gates compress channels.
    Raises: ValueError if channels is not divisible by reduction.
    Source: FASTER (AAAI 2020), Eq. 3-4, Fig. 2b. Two candidate matrices as in `GRU`. Biases are ours, one a sum.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__(channels)
        if not isinstance(reduction, int) or reduction < 1 or channels % reduction:
            raise ValueError(f"{channels} channels cannot be reduced by {reduction!r}; choose a whole divisor of them")
        reduced = channels // reduction
        self.U_rx, self.U_zx = Pointwise(channels, reduced, bias=True), Pointwise(channels, reduced, bias=True)
        self.U_ro, self.U_zo = Pointwise(channels, reduced), Pointwise(channels, reduced)
        self.W_r, self.W_z = Pointwise(reduced, channels, bias=True), Pointwise(reduced, channels, bias=True)
        self.V_x, self.V_o = Pointwise(channels, channels, bias=True), Pointwise(channels, channels)

    def step(self, feature: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, o = feature, state
        compressed_r = torch.relu(self.U_rx(x) + self.U_ro(o))  # Eq. 4, r' and z'
        compressed_z = torch.relu(self.U_zx(x) + self.U_zo(o))
        r = torch.sigmoid(self.W_r(compressed_r))
        z = torch.sigmoid(self.W_z(compressed_z))
        candidate = torch.tanh(self.V_x(x) + self.V_o(r * o))  # Eq. 3
        return (1 - z) * o + z * candidate


AGGREGATORS = {"avg_pool": AveragePool, "concat": Concat, "lstm": LSTM, "gru": GRU, "fast_gru": FASTGRU, "mean": Mean}


def build_aggregator(name: str, channels: int, reduction: int = 4) -> Aggregator:
    """Build one of AGGREGATORS for feature maps of so many channels, with fresh weights; `reduction` is FAST-GRU's r.

    Raises: ValueError for an unknown name, fewer than one channel, or channels that `reduction` does not divide.
    """
    if name not in AGGREGATORS:
        raise ValueError(f"unknown aggregator {name!r}; choose one of {', '.join(AGGREGATORS)}")
    check_whole("channels", channels)
    return FASTGRU(channels, reduction) if name == "fast_gru" else AGGREGATORS[name](channels)


def pool_globally(maps: torch.Tensor) -> torch.Tensor:
    """Average each channel over all positions: (B, C, l, h, w) -> (B, C)."""
    return maps.mean(dim=(-3, -2, -1))
