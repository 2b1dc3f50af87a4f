"""Tests of faster_lib.models.backbones against Table 1 typed by hand and a plain-torch twin of the networks."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from faster_lib.models.backbones import TABLE_1, Bottleneck, build_backbone, check_clips

# Every convolution as (how often, in, out, taps of the kernel), shortcuts last in each stage. Source: Table 1; the
# shortcuts and R3D-50 are not printed there: Tran et al. 2018.
CONVOLUTIONS = {
    "r2d_26": [
        *[(1, 3, 64, 392)],
        *[(1, 64, 64, 1), (1, 256, 64, 1), (2, 64, 64, 9), (2, 64, 256, 1), (1, 64, 256, 1)],
        *[(1, 256, 128, 1), (1, 512, 128, 1), (2, 128, 128, 9), (2, 128, 512, 1), (1, 256, 512, 1)],
        *[(1, 512, 256, 1), (1, 1024, 256, 1), (2, 256, 256, 9), (2, 256, 1024, 1), (1, 512, 1024, 1)],
        *[(1, 1024, 512, 1), (1, 2048, 512, 1), (2, 512, 512, 9), (2, 512, 2048, 1), (1, 1024, 2048, 1)],
    ],
    "r2plus1d_50": [
        *[(1, 3, 45, 49), (1, 45, 64, 3)],
        *[(1, 64, 64, 1), (2, 256, 64, 1), (3, 64, 144, 9), (3, 144, 64, 3), (3, 64, 256, 1), (1, 64, 256, 1)],
        *[(1, 256, 128, 1), (3, 512, 128, 1), (4, 128, 288, 9), (4, 288, 128, 3), (4, 128, 512, 1), (1, 256, 512, 1)],
        *[(1, 512, 256, 1), (5, 1024, 256, 1), (6, 256, 576, 9), (6, 576, 256, 3), (6, 256, 1024, 1)],
        *[(1, 512, 1024, 1)],
        *[(1, 1024, 512, 1), (2, 2048, 512, 1), (3, 512, 1152, 9), (3, 1152, 512, 3), (3, 512, 2048, 1)],
        *[(1, 1024, 2048, 1)],
    ],
    "r3d_50": [
        *[(1, 3, 64, 147)],
        *[(1, 64, 64, 1), (2, 256, 64, 1), (3, 64, 64, 27), (3, 64, 256, 1), (1, 64, 256, 1)],
        *[(1, 256, 128, 1), (3, 512, 128, 1), (4, 128, 128, 27), (4, 128, 512, 1), (1, 256, 512, 1)],
        *[(1, 512, 256, 1), (5, 1024, 256, 1), (6, 256, 256, 27), (6, 256, 1024, 1), (1, 512, 1024, 1)],
        *[(1, 1024, 512, 1), (2, 2048, 512, 1), (3, 512, 512, 27), (3, 512, 2048, 1), (1, 1024, 2048, 1)],
    ],
}
WEIGHTS_MILLIONS = {"r2d_26": 14.80, "r2plus1d_50": 46.91, "r3d_50": 46.93}  # convolutions and fc, which fit the costs

# (stride, padding) of the stem's convolutions, of the convolutions in the middle of a strided block, blocks per stage.
PLAIN = {
    "r2d_26": ([((8, 2, 2), (0, 3, 3))], [((1, 2, 2), (0, 1, 1))], (2, 2, 2, 2)),
    "r2plus1d_50": (
        [((1, 2, 2), (0, 3, 3)), ((1, 1, 1), (1, 0, 0))],
        [((1, 2, 2), (0, 1, 1)), ((2, 1, 1), (1, 0, 0))],
        (3, 4, 6, 3),
    ),
    "r3d_50": ([((1, 2, 2), (1, 3, 3))], [((2, 2, 2), (1, 1, 1))], (3, 4, 6, 3)),
}

every_network = pytest.mark.parametrize("name", TABLE_1)
small = partial(build_backbone, num_classes=5, width=1 / 16)


def full_size(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes without numbers
        return build_backbone(name)


def convolutions(network: nn.Module) -> list[nn.Conv3d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv3d)]


def unsettle(network: nn.Module, seed: int) -> None:
    """Give every batch norm statistics and weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm3d)):
        for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -0.5)):
            tensor.data.uniform_(low, low + 1, generator=generator)


def plain_forward(network: nn.Module, clips: torch.Tensor, name: str) -> torch.Tensor:
    """Table 1 once more, in functions only; the weights are taken in the order of the network's modules."""
    stem, middle, blocks = PLAIN[name]
    weights = iter([m for m in network.modules() if isinstance(m, nn.Conv3d | nn.BatchNorm3d)])

    def conv_bn(x, stride=(1, 1, 1), padding=(0, 0, 0)):
        x = F.conv3d(x, next(weights).weight, stride=stride, padding=padding)
        norm = next(weights)
        mean, var, scale, shift = (
            v[:, None, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    x = clips
    for stride, padding in stem:
        x = conv_bn(x, stride, padding).relu()
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    time_stride = 1 if name == "r2d_26" else 2
    for stage, number in enumerate(blocks):
        for block in range(number):
            is_strided = stage > 0 and block == 0
            y = conv_bn(x).relu()
            for stride, padding in middle:
                y = conv_bn(y, stride if is_strided else (1, 1, 1), padding).relu()
            y = conv_bn(y)
            if block == 0:
                x = conv_bn(x, (time_stride, 2, 2) if is_strided else (1, 1, 1))
            x = (x + y).relu()
    assert next(weights, None) is None
    return x.flatten(2).mean(2) @ network.classifier.weight.T + network.classifier.bias


def test_every_network_of_table_1_has_a_pinned_parameter_count():
    assert set(CONVOLUTIONS) == set(WEIGHTS_MILLIONS) == set(PLAIN) == set(TABLE_1)


@every_network
def test_the_parameters_at_full_size_are_those_of_table_1(name):
    network = full_size(name)
    listed = [(i, o, taps) for times, i, o, taps in CONVOLUTIONS[name] for _ in range(times)]
    built = [(c.in_channels, c.out_channels, c.kernel_size[0] * c.kernel_size[1] ** 2) for c in convolutions(network)]
    weights = sum(i * o * taps for i, o, taps in listed) + 2048 * 400
    assert sorted(built) == sorted(listed)
    assert round(weights / 1e6, 2) == WEIGHTS_MILLIONS[name]
    assert sum(p.numel() for p in network.parameters() if p.ndim > 1) == weights
    # beyond the weights: a scale and a shift per channel after each convolution (which has no bias), and the fc's bias
    assert sum(p.numel() for p in network.parameters()) == weights + 2 * sum(o for _, o, _ in listed) + 400
    assert all(convolution.bias is None for convolution in convolutions(network))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert [(norm.eps, norm.momentum) for norm in norms] == [(1e-3, 0.1)] * len(listed)  # VMZ's


@every_network
@pytest.mark.parametrize("clip_frames", [8, 32])
def test_the_output_sizes_at_224_px_are_those_of_table_1(name, clip_frames):
    network, sizes = full_size(name), []
    for module in (network.stem, network.pool, *network.stages):
        module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    clips = torch.zeros(2, 3, clip_frames, 224, 224, device="meta")
    assert network(clips).shape == (2, 400)
    reduced = [8] * 6 if name == "r2d_26" else [1, 1, 1, 2, 4, 8]
    sides, channels = [112, 56, 56, 28, 14, 7], [64, 64, 256, 512, 1024, 2048]
    assert sizes == [(c, clip_frames // by, side, side) for c, by, side in zip(channels, reduced, sides, strict=True)]


@every_network
@pytest.mark.parametrize("size", [(8, 35, 49), (16, 49, 33), (8, 65, 1)])
def test_odd_frame_sizes_give_maps_of_a_32nd_rounded_up_and_all_networks_agree(name, size):
    clip_frames, height, width = size
    network = small(name).eval()
    features = network.features(torch.rand(1, 3, *size))
    assert features.shape == (1, network.channels, clip_frames // 8, (height + 31) // 32, (width + 31) // 32)
    assert network.classify(features).shape == (1, 5)


@every_network
def test_a_small_network_computes_what_its_plain_twin_does(name):
    torch.manual_seed(1)
    network = small(name).double().eval()
    unsettle(network, seed=2)
    clips = torch.randn(2, 3, 16, 35, 49, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(clips), plain_forward(network, clips, name), rtol=1e-9, atol=1e-9)
        assert network(clips)[0].sub(network(clips)[1]).abs().max() > 1e-6  # the input matters


@pytest.mark.parametrize(
    ("block", "sizes"),
    [
        ("2d", [(8, 14, 14), (8, 7, 7), (8, 7, 7), (8, 7, 7)]),
        ("2plus1d", [(8, 14, 14), (8, 7, 7), (4, 7, 7), (4, 7, 7), (4, 7, 7)]),
        ("3d", [(8, 14, 14), (4, 7, 7), (4, 7, 7), (4, 7, 7)]),
    ],
)
def test_the_strides_of_a_block_sit_on_the_convolutions_in_the_middle(block, sizes):
    bottleneck, seen = Bottleneck(16, 8, stride=2, block=block), []
    for convolution in convolutions(bottleneck):  # in order, the shortcut's last
        convolution.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    bottleneck(torch.rand(1, 16, 8, 14, 14))
    assert seen == sizes


@every_network
def test_the_width_scales_every_channel_but_the_input_and_the_classes(name):
    whole, quarter = (convolutions(network) for network in (full_size(name), build_backbone(name, 7, 0.25)))
    for convolution, narrow in zip(whole, quarter, strict=True):
        expected = {45: 11}.get(convolution.out_channels, convolution.out_channels / 4)
        assert narrow.out_channels == expected
        assert narrow.in_channels == {3: 3, 45: 11}.get(convolution.in_channels, convolution.in_channels / 4)
    network = build_backbone(name, 7, 0.25)
    assert (network.channels, network.classifier.in_features, network.classifier.out_features) == (512, 512, 7)
    assert min(c.out_channels for c in convolutions(build_backbone(name, 7, 0.001))) == 1


def test_the_factorised_widths_are_those_printed_in_table_1():
    for width, factorised in ((64, 144), (128, 288), (256, 576), (512, 1152), (1, 2), (3, 6), (5, 11)):
        _, across, along, _ = convolutions(Bottleneck(4 * width, width, stride=1, block="2plus1d"))
        assert across.out_channels == along.in_channels == factorised
        # Tran et al. 2018: as many weights as a 3x3x3 convolution has, rounded down
        assert factorised == 27 * width * width // (9 * width + 3 * width)


@every_network
def test_a_seed_decides_the_weights_and_a_fresh_block_starts_as_its_shortcut(name):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(small(name).state_dict())
    equal = [all(torch.equal(states[0][key], other[key]) for key in other) for other in states[1:]]
    assert equal == [True, False]
    network, x = small(name).eval(), torch.randn(1, 4, 8, 7, 7)
    block = network.stages[0][0]
    assert torch.equal(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"name": "r2d_34"}, r"'r2d_34'.*r2d_26, r2plus1d_50, r3d_50"),
        *[({"num_classes": bad}, f"num_classes is {bad!r}") for bad in (0, -1, 2.5, "400")],
        *[({"width": bad}, f"width is {bad!r}") for bad in (0, -0.5, float("nan"), float("inf"), "1")],
    ],
)
def test_a_network_that_cannot_be_is_refused_with_the_value(arguments, quoted):
    with pytest.raises(ValueError, match=quoted):
        build_backbone(**{"name": "r2d_26", **arguments})


@pytest.mark.parametrize(
    ("shape", "quoted"),
    [
        ((1, 3, 12, 32, 32), "L is 12"),
        ((1, 3, 4, 32, 32), "L is 4"),
        ((1, 3, 0, 32, 32), "L is 0"),
        ((1, 8, 3, 32, 32), r"\(1, 8, 3, 32, 32\)"),
        ((3, 8, 32, 32), r"\(3, 8, 32, 32\)"),
        ((1, 2, 3, 8, 32, 32), r"\(1, 2, 3, 8, 32, 32\)"),
    ],
)
def test_clips_of_a_wrong_shape_are_refused_with_the_shape(shape, quoted):
    with pytest.raises(ValueError, match=quoted):
        check_clips(torch.zeros(shape))
    with pytest.raises(ValueError, match=quoted):
        small("r2d_26")(torch.zeros(shape))


@pytest.mark.parametrize("layers", [0, 2])
def test_the_classifier_and_the_last_layers_learn_and_all_else_keeps_its_weights_and_statistics(layers):
    torch.manual_seed(0)
    network = small("r2d_26")
    network.learn_last(layers)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):  # a fresh block's last batch norm is 0, so that its convolution learns from the second step on
        scores = network.train()(torch.randn(4, 3, 8, 33, 33))
        F.cross_entropy(scores, torch.arange(4)).backward()
        optimiser.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    last = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected = {"stages.3.1.residual.4.0.weight", *(f"stages.3.1.residual.4.1.{key}" for key in last)}
    assert changed == {"classifier.weight", "classifier.bias", *(expected if layers else ())}
    assert network.training and not network.eval().stem.training
