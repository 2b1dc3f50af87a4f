"""Tests of faster_lib.models.aggregators against Eqs. 2-5 written out with explicit matrices in float64."""

import pytest
import torch
from torch import nn

from faster_lib.models.aggregators import AGGREGATORS, build_aggregator

CHANNELS = 8
RECURRENT = ("concat", "lstm", "gru", "fast_gru")  # all that learn
KEEP_RESOLUTION = {"concat": True, "lstm": False, "gru": False, "fast_gru": True}


def make(name: str, seed: int = 0) -> nn.Module:
    """Build an aggregator whose every parameter and statistic is far from its initial value."""
    aggregator = build_aggregator(name, CHANNELS).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in aggregator.parameters():
        parameter.data.normal_(std=0.6, generator=generator)
    for norm in (module for module in aggregator.modules() if isinstance(module, nn.BatchNorm3d)):
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.01, 2, generator=generator)
    return aggregator


def clips(num_clips: int, seed: int = 1, size: tuple[int, ...] = (2, 3, 5)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num_clips, 2, CHANNELS, *size, dtype=torch.float64, generator=generator))


def run(aggregator: nn.Module, features: list[torch.Tensor]):
    state = None
    for feature in features:
        state = aggregator(feature, state)
    return state


def pooled(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).mean(2)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def at_each_position(convolution: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    out_channels, in_channels = convolution.weight.shape[:2]
    return torch.einsum("oc,bclhw->bolhw", convolution.weight.reshape(out_channels, in_channels), x)


def along_channels(vector: torch.Tensor) -> torch.Tensor:
    return vector[None, :, None, None, None]


def concat_by_hand(a, x, o):
    y = at_each_position(a.W, o) + at_each_position(a.U, x)  # Eq. 5
    mean, var, scale, shift = map(along_channels, (a.bn.running_mean, a.bn.running_var, a.bn.weight, a.bn.bias))
    return ((y - mean) / torch.sqrt(var + 1e-3) * scale + shift).clamp(min=0)


def lstm_by_hand(a, x, state):
    (h, c), cell = state, a.cell
    gates = pooled(x) @ cell.weight_ih.T + h @ cell.weight_hh.T + cell.bias_ih + cell.bias_hh
    i, f, g, o = gates.split(CHANNELS, dim=1)  # torch's order
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(c), c


def gru_by_hand(a, x, o):
    x = pooled(x)
    r = sigmoid(x @ a.G_rx.weight.T + o @ a.G_ro.weight.T + a.G_rx.bias)  # Eq. 2
    z = sigmoid(x @ a.G_zx.weight.T + o @ a.G_zo.weight.T + a.G_zx.bias)
    candidate = torch.tanh(x @ a.V_x.weight.T + (r * o) @ a.V_o.weight.T + a.V_x.bias)  # Eq. 3
    return (1 - z) * o + z * candidate


def fast_gru_by_hand(a, x, o):
    bias = {name: along_channels(getattr(a, name).bias) for name in ("U_rx", "U_zx", "W_r", "W_z", "V_x")}
    r_ = (at_each_position(a.U_rx, x) + at_each_position(a.U_ro, o) + bias["U_rx"]).clamp(min=0)  # Eq. 4
    z_ = (at_each_position(a.U_zx, x) + at_each_position(a.U_zo, o) + bias["U_zx"]).clamp(min=0)
    r = sigmoid(at_each_position(a.W_r, r_) + bias["W_r"])
    z = sigmoid(at_each_position(a.W_z, z_) + bias["W_z"])
    candidate = torch.tanh(at_each_position(a.V_x, x) + at_each_position(a.V_o, r * o) + bias["V_x"])  # Eq. 3
    return (1 - z) * o + z * candidate


BY_HAND = {"concat": concat_by_hand, "lstm": lstm_by_hand, "gru": gru_by_hand, "fast_gru": fast_gru_by_hand}


def test_every_aggregator_of_table_3_and_the_control_are_tested_here():
    assert set(AGGREGATORS) == {"avg_pool", "mean", *RECURRENT} == {"avg_pool", "mean", *BY_HAND}
    assert [name for name in AGGREGATORS if AGGREGATORS[name].aggregates_scores] == ["avg_pool"]


@pytest.mark.parametrize("name", RECURRENT)
def test_six_clips_one_by_one_or_at_once_give_the_equations_states_and_no_argument_is_written_to(name):
    aggregator, features = make(name), clips(6)
    kept = [feature.clone() for feature in features]
    start = features[0] if KEEP_RESOLUTION[name] else pooled(features[0])  # o_0 = x_0
    by_hand = (start, start) if name == "lstm" else start
    state = aggregator(features[0])
    torch.testing.assert_close(state, by_hand, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        for feature in features[1:]:
            state, by_hand = aggregator(feature, state), BY_HAND[name](aggregator, feature, by_hand)
            torch.testing.assert_close(state, by_hand, rtol=1e-12, atol=1e-12)
            read = by_hand[0] if name == "lstm" else pooled(by_hand) if KEEP_RESOLUTION[name] else by_hand
            torch.testing.assert_close(aggregator.read(state), read, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(aggregator.run(torch.stack(features)), state, rtol=1e-12, atol=1e-12)
        first_two = aggregator.run(torch.stack(features[:2]))
        torch.testing.assert_close(aggregator.run(torch.stack(features[2:]), first_two), state, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(*pair) for pair in zip(features, kept, strict=True))


@pytest.mark.parametrize("num_clips", range(1, 8))
def test_averaging_gives_the_mean_of_all_scores_so_far(num_clips):
    scores = torch.rand(num_clips, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(num_clips))
    aggregator = build_aggregator("avg_pool", CHANNELS)
    mean = aggregator.read(run(aggregator, list(scores)))
    torch.testing.assert_close(mean, torch.mean(scores, dim=0), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("num_clips", [1, 2, 7])
def test_the_control_gives_the_mean_of_all_maps_so_far_in_any_order_at_once_or_step_by_step(num_clips):
    aggregator, features = build_aggregator("mean", CHANNELS), torch.stack(clips(num_clips))
    expected = features.mean(dim=(0, -3, -2, -1))
    for order in (features, features.flip(0)):
        for state in (run(aggregator, list(order)), aggregator.run(order)):
            torch.testing.assert_close(aggregator.read(state), expected, rtol=1e-13, atol=1e-13)
    assert list(aggregator.parameters()) == []


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_clip_alone_is_read_as_its_own_pooled_feature(name):
    (feature,) = clips(1)
    if name == "avg_pool":
        feature = pooled(feature)
    aggregator = make(name)
    expected = feature if name == "avg_pool" else pooled(feature)
    torch.testing.assert_close(aggregator.read(aggregator(feature)), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", RECURRENT)
def test_no_videos_give_no_states_and_gradients_of_zero_as_a_process_without_a_share_of_a_batch_needs(name):
    aggregator = make(name)
    read = aggregator.read(aggregator.run(torch.empty(3, 0, CHANNELS, 2, 2, 2, dtype=torch.float64)))
    assert read.shape == (0, CHANNELS)
    read.sum().backward()
    assert all(not p.grad.any() for p in aggregator.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_first_clip_still_matters_at_the_end_and_so_does_the_order(name):
    aggregator, features = make(name), clips(4)
    last = aggregator.read(run(aggregator, features))
    other_first = aggregator.read(run(aggregator, [-features[0], *features[1:]]))
    other_order = aggregator.read(run(aggregator, [features[0], features[2], features[1], features[3]]))
    assert (last - other_first).abs().max() > 1e-3
    assert (last - other_order).abs().max() > 1e-3


@pytest.mark.parametrize("name", RECURRENT)
def test_positions_are_told_apart_exactly_where_the_state_keeps_its_resolution(name):
    aggregator, features = make(name), clips(3)
    order = torch.randperm(2 * 3 * 5, generator=torch.Generator().manual_seed(2))

    def permute(x):
        return x.flatten(2)[:, :, order].reshape(x.shape)

    state = run(aggregator, features)
    all_moved = run(aggregator, [permute(feature) for feature in features])
    expected = permute(state) if KEEP_RESOLUTION[name] else state
    torch.testing.assert_close(all_moved, expected, rtol=1e-12, atol=1e-12)
    last_moved = run(aggregator, [*features[:-1], permute(features[-1])])
    difference = (aggregator.read(last_moved) - aggregator.read(state)).abs().max()
    assert difference > 1e-3 if KEEP_RESOLUTION[name] else difference < 1e-12


@pytest.mark.parametrize("name", RECURRENT)
def test_two_clips_send_a_gradient_to_every_parameter_and_to_both_clips(name):
    aggregator, features = make(name), [feature.requires_grad_() for feature in clips(2)]
    aggregator.read(run(aggregator, features)).square().sum().backward()
    without = [key for key, parameter in aggregator.named_parameters() if not parameter.grad.abs().sum() > 1e-6]
    assert without == []
    assert all(feature.grad.abs().sum() > 1e-6 for feature in features)


def test_fast_gru_at_full_size_has_the_parameters_of_its_printed_cost():
    with torch.device("meta"):
        fast_gru = build_aggregator("fast_gru", 2048)
        halves = build_aggregator("fast_gru", 2048, 2)
    weights = {key: tuple(p.shape[:2]) for key, p in fast_gru.named_parameters() if key.endswith("weight")}
    assert weights == {
        **{f"U_{gate}.weight": (512, 2048) for gate in ("rx", "ro", "zx", "zo")},
        **{f"W_{gate}.weight": (2048, 512) for gate in "rz"},
        **{f"V_{side}.weight": (2048, 2048) for side in "xo"},
    }
    total = sum(p.numel() for p in fast_gru.parameters())
    assert total == 14_680_064 + 2 * 512 + 3 * 2048  # the weights, and one bias for each sum of products
    assert halves.U_rx.out_channels == 1024


def test_a_fresh_lstm_remembers_through_its_forget_gate():
    cell = build_aggregator("lstm", 3).cell
    assert (cell.bias_ih + cell.bias_hh).tolist() == [0] * 3 + [1] * 3 + [0] * 6  # input, forget, cell, output


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (("fast-gru", 8), r"'fast-gru'.*avg_pool, concat, lstm, gru, fast_gru, mean"),
        (("gru", 0), "channels is 0"),
        (("gru", 2.5), r"channels is 2\.5"),
        (("fast_gru", 8, 3), "8 channels cannot be reduced by 3"),
        (("fast_gru", 8, 0), "8 channels cannot be reduced by 0"),
    ],
)
def test_an_aggregator_that_cannot_be_is_refused_with_the_value(arguments, quoted):
    with pytest.raises(ValueError, match=quoted):
        build_aggregator(*arguments)


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("shape", [(2, CHANNELS + 1, 1, 2, 2), (2, CHANNELS, 2, 2)])
def test_a_feature_of_a_wrong_shape_is_refused_with_the_shape_at_every_clip(name, shape):
    aggregator = build_aggregator(name, CHANNELS)
    good = torch.rand(2, CHANNELS) if name == "avg_pool" else torch.rand(2, CHANNELS, 1, 2, 2)
    for state in (None, aggregator(good)):
        with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            aggregator(torch.zeros(shape), state)
