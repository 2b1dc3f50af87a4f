"""The five aggregators of Table 3, as one step, (x_t, state) -> state, and as all steps of a video by the same code."""

import torch
from torch import nn
from torch.nn import functional as F

from faster_lib.models.backbones import BN_EPS


class Aggregator(nn.Module):
    """What all aggregators share: one step as `forward`, all steps as `run`, the start o_0 = x_0, how a state is read.

    A step is a projection of x_t, which knows no state, and an advance of the state by what came out. `run` projects
    all clips at once and then advances as `forward` does. A state may be a tensor or a tuple of tensors; only the
    aggregator looks inside.

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

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute what steps need of their clips alone, for any number of clips, their first axis."""
        return (features,)

    def joined(self) -> tuple[torch.Tensor, ...]:
        """Give weights put side by side that all steps use."""
        return ()

    def advance(self, projected: tuple[torch.Tensor, ...], state, joined: tuple[torch.Tensor, ...]):
        """Make the state o_t out of the projection of x_t and o_{t-1}."""
        raise NotImplementedError

    def read(self, state) -> torch.Tensor:
        """Pool a state globally: -> (B, C), the input of the classifier."""
        return state.mean(dim=(-3, -2, -1))

    def forward(self, feature: torch.Tensor, state=None):
        return self.run(feature[None], state)

    def run(self, features: torch.Tensor, state=None):
        """Take in one clip after the other, projecting all of them at once; without a state, the first one makes it.

        Shape: (N, B, C, l, h, w) -> the state after the last clip; channels last in memory is fastest
        """
        self._check(features[0])
        if state is None:
            state, features = self.start(features[0]), features[1:]
        if len(features):
            projected = self.project(features.flatten(0, 1))
            joined = self.joined()
            for step in zip(*(part.unflatten(0, features.shape[:2]).unbind(0) for part in projected), strict=True):
                state = self.advance(step, state, joined)
        return state

    def _check(self, feature: torch.Tensor) -> None:
        if feature.ndim != 5 or feature.shape[1] != self.channels:
            raise ValueError(f"feature has shape {tuple(feature.shape)}; it must be (B, {self.channels}, l, h, w)")


class AveragePool(Aggregator):
    """Average the clips' classification scores, whichever network gave them; nothing is learned.

    Scores are probabilities (ours; the paper does not say). The state is their mean so far and the number of clips.

    Shape: scores (B, num_classes), state or None -> state; read -> (B, num_classes)
    Source: FASTER (AAAI 2020), "Average pooling".
    """

    aggregates_scores = True

    def start(self, scores: torch.Tensor) -> tuple[torch.Tensor, int]:
        return scores, 1

    def advance(
        self, projected: tuple[torch.Tensor, ...], state: tuple[torch.Tensor, int], joined: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, int]:
        (scores,), (mean, count) = projected, state
        return mean + (scores - mean) / (count + 1), count + 1

    def read(self, state: tuple[torch.Tensor, int]) -> torch.Tensor:
        return state[0]

    def _check(self, scores: torch.Tensor) -> None:
        if scores.ndim != 2:
            raise ValueError(f"scores have shape {tuple(scores.shape)}; they must be (B, num_classes)")


class Concat(Aggregator):
    """Concatenate x_t with o_{t-1} and project: ReLU(BN(W o_{t-1} + U x_t)).

    Shape: feature (B, C, l, h, w), state (B, C, l, h, w) -> state (B, C, l, h, w)
    Source: FASTER (AAAI 2020), Eq. 5, Fig. 2a.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.W = Pointwise(channels, channels)
        self.U = Pointwise(channels, channels)
        self.bn = nn.BatchNorm3d(channels, eps=BN_EPS)

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.U(features),)

    def advance(
        self, projected: tuple[torch.Tensor, ...], state: torch.Tensor, joined: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        return torch.relu(self.bn(self.W(state) + projected[0]))


class LSTM(Aggregator):
    """An LSTM cell on globally pooled features; its output and its memory both start as x_0 pooled.

    Shape: feature (B, C, l, h, w), state (output (B, C), memory (B, C)) -> the same
    Source: FASTER (AAAI 2020), "LSTM": three gates and a memory; torch's cell, which has no peepholes. The start of the
        memory and a forget-gate bias of 1 are ours.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.cell = nn.LSTMCell(channels, channels)
        with torch.no_grad():
            self.cell.bias_ih.zero_()
            self.cell.bias_hh.zero_()
            self.cell.bias_ih[channels : 2 * channels] = 1.0  # torch orders the gates input, forget, cell, output

    def start(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = super().read(feature)
        return pooled, pooled

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (F.linear(super().read(features), self.cell.weight_ih, self.cell.bias_ih),)

    def advance(
        self,
        projected: tuple[torch.Tensor, ...],
        state: tuple[torch.Tensor, torch.Tensor],
        joined: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, memory = state
        gates = projected[0] + F.linear(output, self.cell.weight_hh, self.cell.bias_hh)
        i, f, g, o = gates.chunk(4, dim=1)  # torch's order
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory

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
        return super().read(feature)

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = super().read(features)
        return F.linear(pooled, *_side_by_side(self.G_rx, self.G_zx)), self.V_x(pooled)

    def joined(self) -> tuple[torch.Tensor, ...]:
        return _side_by_side(self.G_ro, self.G_zo)[:1]

    def advance(
        self, projected: tuple[torch.Tensor, ...], state: torch.Tensor, joined: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        gates, candidate = projected
        r, z = torch.sigmoid(torch.addmm(gates, state, joined[0].t())).chunk(2, dim=1)
        return update_state(state, z, torch.tanh(torch.addmm(candidate, r * state, self.V_o.weight.t())))

    def read(self, state: torch.Tensor) -> torch.Tensor:
        return state


class FASTGRU(Aggregator):
    """Gate clip features without pooling them, through bottlenecked 1x1x1 convolutions.

    Shape: feature (B, C, l, h, w), state (B, C, l, h, w) -> state (B, C, l, h, w)
    Args:
        reduction: factor r by which the gates compress channels.
    Raises: ValueError if channels is not divisible by reduction.
    Source: FASTER (AAAI 2020), Eq. 3-4, Fig. 2b. Two candidate matrices: Eq. 3 prints one symbol, its cost needs two
        products. Biases are ours: one for each sum of products.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__(channels)
        if not isinstance(reduction, int) or reduction < 1 or channels % reduction:
            raise ValueError(
                f"{channels} channels cannot be reduced by {reduction!r}; it must be a whole number that divides them"
            )
        reduced = channels // reduction
        self.U_rx, self.U_zx = Pointwise(channels, reduced, bias=True), Pointwise(channels, reduced, bias=True)
        self.U_ro, self.U_zo = Pointwise(channels, reduced), Pointwise(channels, reduced)
        self.W_r, self.W_z = Pointwise(reduced, channels, bias=True), Pointwise(reduced, channels, bias=True)
        self.V_x, self.V_o = Pointwise(channels, channels, bias=True), Pointwise(channels, channels)

    def project(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = _rows(features)
        gates = _multiply(rows, *_side_by_side(self.U_rx, self.U_zx))
        candidate = _multiply(rows, self.V_x.weight.flatten(1), self.V_x.bias)
        size = (len(features), features.shape[2:].numel())
        return gates.unflatten(0, size), candidate.unflatten(0, size)

    def joined(self) -> tuple[torch.Tensor, ...]:
        return _side_by_side(self.U_ro, self.U_zo)[:1]

    def advance(
        self, projected: tuple[torch.Tensor, ...], state: torch.Tensor, joined: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        gates, candidate = (part.flatten(0, 1) for part in projected)  # (B * l * h * w, channels)
        before = _rows(state)
        r, z = torch.relu(_multiply(before, joined[0], gates)).chunk(2, dim=1)
        r, z = (torch.sigmoid(_multiply(x, W.weight.flatten(1), W.bias)) for x, W in ((r, self.W_r), (z, self.W_z)))
        candidate = torch.tanh(_multiply(r * before, self.V_o.weight.flatten(1), candidate))
        after = update_state(before, z, candidate)
        return after.view(len(state), *state.shape[2:], self.channels).movedim(-1, 1)


AGGREGATORS = {"avg_pool": AveragePool, "concat": Concat, "lstm": LSTM, "gru": GRU, "fast_gru": FASTGRU}


def build_aggregator(name: str, channels: int, reduction: int = 4) -> Aggregator:
    """Build an aggregator with fresh weights.

    Args:
        name: "avg_pool", "concat", "lstm", "gru" or "fast_gru".
        channels: of the feature maps.
        reduction: FAST-GRU's r; the others have none.

    Raises: ValueError for an unknown name, fewer than one channel, or channels that `reduction` does not divide.
    """
    if name not in AGGREGATORS:
        raise ValueError(f"unknown aggregator {name!r}; choose one of {', '.join(AGGREGATORS)}")
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels is {channels!r}; it must be a whole number of at least 1")
    return FASTGRU(channels, reduction) if name == "fast_gru" else AGGREGATORS[name](channels)


def update_state(state: torch.Tensor, z: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Move the state towards the candidate by the update gate: (1 - z) * state + z * candidate (Eq. 3)."""
    return torch.addcmul(state, z, candidate - state)


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """Write the channels of each position as a row: (B, C, l, h, w) -> (B * l * h * w, C), a view of channels last."""
    return maps.movedim(1, -1).flatten(0, -2)


def _side_by_side(*layers: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Join layers of the same input into one product: its weight (all outputs, inputs) and its bias, if they have."""
    weight = torch.cat([layer.weight.flatten(1) for layer in layers])
    return weight, None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])


def _multiply(rows: torch.Tensor, weight: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Multiply rows by a weight and add a bias or other rows: (R, inputs), (outputs, inputs) -> (R, outputs).

    Compiled for a CPU it is a convolution over the rows: torch.compile gives products to MKL and convolutions to
    oneDNN, which was faster where we measured (an AMD EPYC, paper size).
    """
    if not (rows.is_cpu and torch.compiler.is_compiling()):
        return torch.addmm(added, rows, weight.t())
    is_bias = added.ndim == 1
    product = F.conv2d(rows.t()[None, ..., None], weight[..., None, None], added if is_bias else None)[0, ..., 0].t()
    return product if is_bias else product + added


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution, computed as a product over channels: faster, most of all where they come last in memory.

    Shape: (B, in_channels, l, h, w) -> (B, out_channels, l, h, w), channels last
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.linear(maps.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
