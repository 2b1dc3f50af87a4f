"""Networks and aggregators at the paper's size against peers and against a matrix product, in one run.

    python benchmarks/networks.py OUT.csv [--part networks aggregators] [--lengths 8 16 32] [--batches 1 8]

Peers: torchvision's r2plus1d_18 and r3d_18, and pytorchvideo's R(2+1)D-50 where `pip install -e ".[bench]"` brought it.
Each speed is by the network's own multiply-accumulates. Compiled peers are compiled as the kit's, with frozen weights.
All run in float32, and again in bfloat16 where the processor multiplies it.
"""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from side_by_side import KIT, LIMIT, Peer, Speed, contend, write_table
from torch import nn
from torch.nn import functional as F

from faster_lib.flops import count_macs, step_macs
from faster_lib.inference import TOLERANCE, fastest_type, prepare_for_inference
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone

SIZE_PX, CHANNELS, MAP = 224, 2048, (4, 7, 7)
PLAIN = "the kit, plain"
PEERS = {"r2plus1d_50": ("pytorchvideo r2plus1d_50", "torchvision/r2plus1d_18"), "r3d_50": ("torchvision/r3d_18",)}
log = logging.getLogger(__name__)


def matrix_product(dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """Give a call that multiplies matrices for a while and says how many GMAC that was."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)

    def call() -> float:
        for _ in range(8):
            a @ b
        return 8 * 2048**3 / 1e9

    return call


def build_peer(name: str, clip_frames: int) -> nn.Module | None:
    """Build another project's network for clips of 224 x 224; None where it is not installed."""
    if name.startswith("torchvision/"):
        network = build_backbone(name, 400)
        network.input_px = SIZE_PX  # so that nothing is resized
        return network.eval()
    try:
        from pytorchvideo.models.r2plus1d import create_r2plus1d
    except ImportError:
        log.warning('%s is left out: install it by pip install -e ".[bench]"', name)
        return None
    pool = (clip_frames // 8, 7, 7)
    return create_r2plus1d(model_depth=50, model_num_class=400, head_pool_kernel_size=pool).eval()


def compiled(network: nn.Module) -> Callable:
    """Compile a peer as the kit compiles its own networks: fixed shapes, frozen weights."""
    from torch._inductor import config

    fast = torch.compile(network, dynamic=False)

    def call(x: torch.Tensor) -> torch.Tensor:
        with config.patch(freezing=True):
            return fast(x)

    return call


def forward(network: Callable, clips: torch.Tensor, gmacs: float) -> Callable[[], float]:
    """Give a call that runs a network once and says how many GMAC that was."""

    def call() -> float:
        network(clips)
        return gmacs

    return call


def in_type(dtype: torch.dtype) -> str:
    """Give what the name of a contest says of its type: nothing of float32."""
    return "" if dtype == torch.float32 else f", {dtype}".replace("torch.", "")


def lacking(part: str, contest: str, dtype: torch.dtype) -> Speed:
    """Give the row of a contest that this processor cannot enter."""
    return Speed(part, contest, KIT, f"not measured: this processor does not multiply {dtype}", ())


def rounds_for(gmacs: float) -> int:
    """Give how often calls of so many GMAC are timed."""
    return 5 if gmacs < 100 else 3 if gmacs < 300 else 1


def compare_networks(name: str, clip_frames: int, batch: int, dtype: torch.dtype = torch.float32) -> list[Speed]:
    """Time one network and its peers on the same clips in one type."""
    contest = f"{name}, L = {clip_frames}, batch {batch}{in_type(dtype)}"
    if dtype not in (torch.float32, fastest_type("cpu")):
        return [lacking("networks", contest, dtype)]
    torch.compiler.reset()  # else what was compiled in other contests counts towards a limit, past which nothing is
    clips = torch.randn(batch, 3, clip_frames, SIZE_PX, SIZE_PX, dtype=dtype)
    plain = build_backbone(name, 400).eval()
    gmacs = batch * count_macs(plain, clips[:1].float()) / 1e9
    kit = prepare_for_inference(plain, dtype=dtype)
    contenders = {KIT: forward(kit, clips, gmacs), PLAIN: Peer(forward(plain.to(dtype), clips, gmacs))}
    for peer in PEERS.get(name, ()):
        network = build_peer(peer, clip_frames)
        if network is not None:
            own = batch * count_macs(network, clips[:1].float()) / 1e9
            network = network.to(dtype)
            contenders[f"{peer}, eager"] = Peer(forward(network, clips, own))
            contenders[f"{peer}, compiled"] = Peer(forward(compiled(network), clips, own))
    contenders[LIMIT] = matrix_product(dtype)
    return contend("networks", contest, gmacs, "GMAC/s", contenders, rounds=rounds_for(gmacs))


class ConvGRU(nn.Module):
    """A ConvGRU of the usual kind, with 1x1x1 kernels: gates and candidate from x and h put one after the other.

    Shape: (B, N, C, l, h, w) -> (B, C, l, h, w)
    Source: Ballas et al. 2016.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gates = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.candidate = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        state = features[:, 0]
        for x in features[:, 1:].unbind(1):
            r, z = self.gates(torch.cat([x, state], 1)).sigmoid().chunk(2, 1)
            candidate = self.candidate(torch.cat([x, r * state], 1)).tanh()
            state = (1 - z) * state + z * candidate
        return state


def plain_fast_gru(aggregator: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """FAST-GRU as its equations are written: six convolutions a step, one clip after the other."""

    def conv(layer: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, layer.weight, layer.bias)

    a, state = aggregator, features[:, 0]
    for x in features[:, 1:].unbind(1):
        r = conv(a.W_r, (conv(a.U_rx, x) + conv(a.U_ro, state)).relu()).sigmoid()
        z = conv(a.W_z, (conv(a.U_zx, x) + conv(a.U_zo, state)).relu()).sigmoid()
        state = (1 - z) * state + z * (conv(a.V_x, x) + conv(a.V_o, r * state)).tanh()
    return state


def compare_aggregators(num_clips: int, batch: int, *, is_training: bool) -> list[Speed]:
    """Time FAST-GRU over N clips' maps beside its plain form and other recurrent units; training is both passes."""
    features = torch.randn(batch, num_clips, CHANNELS, *MAP)
    in_order = features.movedim(1, 0).contiguous().movedim(2, -1).contiguous().movedim(-1, 2)  # as Faster gives it
    fast = build_aggregator("fast_gru", CHANNELS)
    gmacs = batch * (num_clips - 1) * step_macs(fast, MAP) / 1e9
    pooled = features.mean((-3, -2, -1))
    units = {"nn.GRU, pooled": nn.GRU(CHANNELS, CHANNELS), "nn.LSTM, pooled": nn.LSTM(CHANNELS, CHANNELS)}
    conv_gru = ConvGRU(CHANNELS)
    kit = fast if is_training else prepare_for_inference(fast)
    calls = {KIT: lambda: kit.run(in_order), "plain convolutions": lambda: plain_fast_gru(fast, features)}
    calls |= {name: lambda unit=unit: unit(pooled.transpose(0, 1))[0][-1] for name, unit in units.items()}
    calls["ConvGRU"] = lambda: conv_gru(features)
    position = batch * (num_clips - 1) * MAP[0] * MAP[1] * MAP[2]
    work = dict.fromkeys(calls, gmacs) | {"ConvGRU": position * 6 * CHANNELS**2 / 1e9}
    work |= {"nn.GRU, pooled": batch * num_clips * 6 * CHANNELS**2 / 1e9}
    work |= {"nn.LSTM, pooled": batch * num_clips * 8 * CHANNELS**2 / 1e9}

    def timed(name: str) -> Callable[[], float]:
        def call() -> float:
            with torch.set_grad_enabled(is_training):
                found = calls[name]()
                if is_training:
                    found.square().mean().backward()
            return (3 if is_training else 1) * work[name]

        return call

    contest = f"FAST-GRU, N = {num_clips}, batch {batch}, {'training' if is_training else 'forward'}"
    contenders = {name: timed(name) if name == KIT else Peer(timed(name)) for name in calls}
    contenders[LIMIT] = matrix_product()
    return contend("aggregators", contest, gmacs, "GMAC/s", contenders, rounds=rounds_for(gmacs))


def contests(parts: list[str], lengths: list[int], batches: list[int]) -> Iterator[list[Speed]]:
    """Run all contests, one after the other."""
    if "aggregators" in parts:
        for is_training in (False, True):
            for num_clips in (8, 32):
                for batch in batches[: 1 if is_training else None]:
                    yield compare_aggregators(num_clips, batch, is_training=is_training)
    if "networks" in parts:
        with torch.no_grad():
            for batch in batches:
                for name in ("r2plus1d_50", "r3d_50", "r2d_26"):
                    for clip_frames, dtype in itertools.product(lengths, TOLERANCE):
                        yield compare_networks(name, clip_frames, batch, dtype)


def main() -> None:
    """Measure, log the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", nargs="+", default=["networks", "aggregators"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_table(given.out, contests(given.part, given.lengths, given.batches))


if __name__ == "__main__":
    main()
