"""Fast forms of the aggregators of Table 3, beside their equations; they share weights and agree to rounding."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from faster_lib.models.aggregators import FASTGRU, GRU, LSTM, Aggregator, Concat, pool_globally


class _Fast(Aggregator):
    """What fast forms share: `advance` projects (N, B, C, l, h, w) at once, then takes in one clip after the other."""

    def step(self, feature: torch.Tensor, state: Any) -> Any:
        return self.advance(feature[None], state)

    def run(self, features: torch.Tensor, state: Any = None) -> Any:
        self._check(features[0])
        if state is None:
            state, features = self.start(features[0]), features[1:]
        return self.advance(features, state) if len(features) else state  # joining weights costs, even for no clip


class _FastConcat(_Fast, Concat):
    def advance(self, features: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        for projected in self.U(features.flatten(0, 1)).unflatten(0, features.shape[:2]):
            state = torch.relu(self.bn(self.W(state) + projected))
        return state


class _FastLSTM(_Fast, LSTM):
    def advance(self, features: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        output, memory = state
        for projected in F.linear(pool_globally(features), self.cell.weight_ih, self.cell.bias_ih):
            gates = projected + F.linear(output, self.cell.weight_hh, self.cell.bias_hh)
            i, f, g, o = gates.chunk(4, dim=1)  # torch's order
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            output = torch.sigmoid(o) * torch.tanh(memory)
        return output, memory


class _FastGRU(_Fast, GRU):
    def advance(self, features: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, o = pool_globally(features), state
        gates_x, (G_o, _) = F.linear(x, *_side_by_side(self.G_rx, self.G_zx)), _side_by_side(self.G_ro, self.G_zo)
        for gates, candidate in zip(gates_x, self.V_x(x), strict=True):
            r, z = torch.sigmoid(torch.addmm(gates, o, G_o.t())).chunk(2, dim=1)
            candidate = torch.tanh(torch.addmm(candidate, r * o, self.V_o.weight.t()))
            o = torch.addcmul(o, z, candidate - o)
        return o


class _FastFASTGRU(_Fast, FASTGRU):
    def advance(self, features: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x, o = (maps.movedim(1, -1).flatten(0, -2) for maps in (features.flatten(0, 1), state))  # (rows, C)
        size = (len(features), len(o))
        gates_x = _multiply(x, *_side_by_side(self.U_rx, self.U_zx)).unflatten(0, size)
        candidate_x = _multiply(x, self.V_x.weight.flatten(1), self.V_x.bias).unflatten(0, size)
        U_o, _ = _side_by_side(self.U_ro, self.U_zo)
        for gates, candidate in zip(gates_x, candidate_x, strict=True):
            r, z = torch.relu(_multiply(o, U_o, gates)).chunk(2, dim=1)
            r, z = (torch.sigmoid(_multiply(y, W.weight.flatten(1), W.bias)) for y, W in ((r, self.W_r), (z, self.W_z)))
            candidate = torch.tanh(_multiply(r * o, self.V_o.weight.flatten(1), candidate))
            o = torch.addcmul(o, z, candidate - o)
        return o.view(len(state), *state.shape[2:], self.channels).movedim(-1, 1)


_FAST_FORMS = {Concat: _FastConcat, LSTM: _FastLSTM, GRU: _FastGRU, FASTGRU: _FastFASTGRU}


def fast_form(aggregator: Aggregator) -> Aggregator:
    """Give an aggregator that computes the same to rounding, faster, and shares the given one's parameters."""
    fast = copy.copy(aggregator)  # of the object alone: parameters, statistics and layers are shared
    fast.__class__ = _FAST_FORMS.get(type(aggregator), type(aggregator))
    return fast


def _side_by_side(*layers: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Join layers of the same input into one: its weight (all outputs, inputs) and its bias, if they have any."""
    weight = torch.cat([layer.weight.flatten(1) for layer in layers])
    return weight, None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])


def _multiply(rows: torch.Tensor, weight: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Multiply rows by a weight and add a bias or other rows: (R, inputs), (outputs, inputs) -> (R, outputs)."""
    # Compiled for a CPU it is a convolution, since that goes to oneDNN, faster than MKL on an AMD EPYC at paper size.
    if not (rows.is_cpu and torch.compiler.is_compiling()):
        return torch.addmm(added, rows, weight.t())
    is_bias = added.ndim == 1
    product = F.conv2d(rows.t()[None, ..., None], weight[..., None, None], added if is_bias else None)[0, ..., 0].t()
    return product if is_bias else product + added
