"""What a GPU makes of the kit: checked against float64 on the CPU, and timed, by torch and this checkout alone.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--small] [--output runs/gpu]

It writes gpu.json and gpu.md, line by line, so that a run cut short keeps what it has. Every line says pass or fail, by
its value beside a limit. A line that cannot run says why and what would work; the others go on. What does not fit into
the minutes is named as not run. `--small` is for CPUs and tests: narrow networks, nothing compiled, times not judged.
Times are medians of nine rounds in turn, each synchronised, after a warm-up; beside them the second and the eighth.
"""

import argparse
import contextlib
import copy
import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # where the kit is not installed

from checks import LIMITS, TYPES, Check, Outcome, Scale, Table, explain, short  # noqa: E402

from faster_lib.inference import TOLERANCE, fast_form, prepare_for_inference  # noqa: E402
from faster_lib.models.aggregators import AGGREGATORS, build_aggregator  # noqa: E402
from faster_lib.models.backbones import TABLE_1, Backbone, build_backbone  # noqa: E402
from faster_lib.models.clips import normalise  # noqa: E402
from faster_lib.models.faster import Faster, Schedule  # noqa: E402
from faster_lib.paper import reported  # noqa: E402

ROWS = {"All E": "All E (Avg pool)", "All C": "All C (Avg pool)", "FASTER32": "FASTER32"}  # of Table 5
CLASSES = 400


def count_macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the multiply-accumulates of convolutions and products in one call, without computing."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(module).to("meta").eval()(*(value.to("meta") for value in inputs))
    return counter.get_total_flops() // 2


def unsettle(module: nn.Module) -> nn.Module:
    """Give batch norms values far from their first ones, as after training; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm3d)):
        for values, least in (
            (norm.running_var, 0.5),
            (norm.weight, 0.5),
            (norm.running_mean, -0.5),
            (norm.bias, -0.5),
        ):
            values.data.uniform_(least, least + 1, generator=generator)
    return module.eval()


def build(scale: Scale, name: str, width: float | None = None) -> Backbone:
    """Build an unsettled network of Table 1 on the device, always with the same weights."""
    torch.manual_seed(0)
    return unsettle(build_backbone(name, CLASSES, width or scale.width)).to(scale.device)


def build_faster(scale: Scale, aggregator: str, schedule: str, width: float | None = None) -> Faster:
    """Build a model of R(2+1)D-50 and R2D-26."""
    parts = [build(scale, name, width) for name in ("r2plus1d_50", "r2d_26")]
    built = unsettle(build_aggregator(aggregator, parts[0].channels))
    return Faster(*parts, built, schedule, CLASSES).to(scale.device).eval()


def share(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Give the largest difference as a share of the largest value."""
    return ((found.detach().double().cpu() - exact).abs().max() / exact.abs().max()).item()


def compare(
    exact: nn.Module,
    found: nn.Module,
    inputs: torch.Tensor,
    scale: Scale,
    kind: str,
    call: Callable = nn.Module.__call__,
) -> list[Outcome]:
    """Compare outputs and gradients of a module, in a type, with those of another in float64 on the CPU."""
    results = []
    for module, x, computing in (
        (exact.double(), inputs.double(), contextlib.nullcontext()),
        (found.to(scale.device), inputs.to(scale.device, copy=True), scale.computing(kind)),
    ):
        x.requires_grad_()
        with computing:
            output = call(module, x)
        (output.double().sin().mean() * 1024).backward()  # far from fp16's least number
        gradients = [
            g.double().cpu().flatten() for g in (x.grad, *(p.grad for p in module.parameters())) if g is not None
        ]
        results += [output.detach(), torch.cat(gradients)]
    error = ((results[3] - results[1]).norm() / results[1].norm()).item()
    forward, backward = LIMITS[kind]
    return [Outcome(share(results[2], results[0]), forward, what="outputs"), Outcome(error, backward, what="gradients")]


def numerics(scale: Scale) -> Iterator[Check]:
    """Hold the device's results against float64 on the CPU, steps against whole videos, prepared against plain."""
    width, px = (1 / 64, 32) if scale.is_small else (1 / 4, 64)
    clips = torch.randn(2, 3, 8, px, px, generator=torch.Generator().manual_seed(1))

    def network(name: str, kind: str) -> list[Outcome]:
        exact = build(Scale(torch.device("cpu"), scale.is_small), name, width)
        return compare(exact, copy.deepcopy(exact), clips, scale, kind)

    def aggregator(name: str, kind: str, form: Callable) -> list[Outcome]:
        torch.manual_seed(0)
        plain = unsettle(build_aggregator(name, 32 if scale.is_small else 512))
        features = torch.randn((4, 2, 10) if plain.aggregates_scores else (4, 2, plain.channels, 1, 3, 3))
        found = form(copy.deepcopy(plain))
        return compare(plain, found, features, scale, kind, lambda module, x: module.read(module.run(x)))

    @torch.no_grad()
    def whole(name: str) -> list[Outcome]:
        model, state = build_faster(scale, name, "EC", width), None
        videos = torch.stack([clips, clips.flip(0)], 1).to(scale.device)
        with scale.computing("float32"):
            exact = copy.deepcopy(model).double()(videos.double()).cpu()
            for clip in videos.unbind(1):
                state, streamed = model.step(clip, state)
            found = [Outcome(share(streamed, exact), LIMITS["float32"][0], what="step by step")]
            for dtype, limit in TOLERANCE.items():
                prepared = prepare_for_inference(model, dtype=dtype, is_compiled=False)
                found.append(Outcome(share(prepared(videos), exact), limit, what=f"prepared, {dtype}"))
        return found

    for kind in TYPES:
        for name in TABLE_1:
            yield f"{name}, {kind}", functools.partial(network, name, kind)
        for name in AGGREGATORS:
            for form, make in (("plain", copy.copy), ("fast", fast_form)):
                yield f"{name}, {form} form, {kind}", functools.partial(aggregator, name, kind, make)
    for name in ("avg_pool", "fast_gru") if scale.is_small else AGGREGATORS:
        yield f"a model with {name}", functools.partial(whole, name)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a .safetensors file by torch alone: the length of a JSON header, the header, the numbers."""
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    content, tensors = path.read_bytes(), {}
    start = 8 + int.from_bytes(content[:8], "little")
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = (start + place for place in about["data_offsets"])
            numbers = torch.frombuffer(bytearray(content[first:last]), dtype=types[about["dtype"]])
            tensors[name] = numbers.view(about["shape"])
    return tensors


def moving_clips(number: int, clip_frames: int, size_px: int) -> torch.Tensor:
    """Draw the same clips of moving waves each time: (number, 3, L, H, W) uint8."""
    draw = functools.partial(torch.rand, generator=torch.Generator().manual_seed(0))
    t, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (clip_frames, size_px, size_px)), indexing="ij")
    speed, height, width, phase = (draw(number, 3, 1, 1, 1) for _ in range(4))
    waves = (speed * t + 0.7 * height * y + 0.7 * width * x + 6.3 * phase).sin()
    return ((waves + 1) * 120 + 15 * draw(waves.shape)).byte()


def trained_weights(scale: Scale) -> Iterator[Check]:
    """Score the same clips by each shipped network on the CPU in float64 and on the device."""

    @torch.no_grad()
    def scores(path: Path) -> list[Outcome]:
        name, length, _ = path.stem.split("-")
        weights, found = read_tensors(path), []
        network = build_backbone(name, len(weights["classifier.bias"]), weights["classifier.weight"].shape[1] / 2048)
        network.eval().load_state_dict({key: value.float() for key, value in weights.items()})
        clips = moving_clips(8, int(length[1:]), 35)
        exact = copy.deepcopy(network).double()(normalise(clips).double())
        for dtype, limit in TOLERANCE.items():
            prepared = prepare_for_inference(network, dtype=dtype, device=scale.device, is_compiled=False)
            with scale.computing("float32"):
                logits = prepared(clips.to(scale.device)).cpu()
            same = int((logits.argmax(1) == exact.argmax(1)).sum())
            is_right = same == len(clips) or dtype == torch.bfloat16  # in which two nearly level classes may swap
            value = share(logits, exact) if is_right else math.inf
            found.append(Outcome(value, limit, what=str(dtype), figures={"same class": f"{same} of {len(clips)}"}))
        return found

    for path in sorted((ROOT / "params" / "weights").glob("*.safetensors")):
        yield path.stem, functools.partial(scores, path)


def table_5(scale: Scale) -> Iterator[Check]:
    """Time All C, All E and FASTER32 on one video of 8 clips of 32 frames."""
    patterns = {"All E": ("avg_pool", "E" * 8), "All C": ("avg_pool", "C" * 8)}
    patterns["FASTER32"] = ("fast_gru", Schedule.ratio(8, 1))
    seconds = {name: reported(5, row, "seconds").value for name, row in ROWS.items()}

    @torch.no_grad()
    def ratios(kind: str, is_prepared: bool) -> list[Outcome]:
        video, calls, macs, found = scale.clips(32, 1, 8), {}, {}, []
        options = {"dtype": TYPES[kind], "is_compiled": not scale.is_small}
        for name, (aggregator, schedule) in patterns.items():
            model = build_faster(scale, aggregator, schedule)
            macs[name] = count_macs(model, video)
            if is_prepared:
                ready = prepare_for_inference(model, **options)
                first = calls.setdefault("All E", ready)  # whose networks serve all, so that each is compiled once
                ready.expensive, ready.cheap, model = first.expensive, first.cheap, ready
            calls[name] = model
        with scale.computing("float32" if is_prepared else kind):
            times = scale.time({name: functools.partial(model, video) for name, model in calls.items()})
        for name in ("All C", "FASTER32"):
            counted, printed = macs[name] / macs["All E"], seconds[name] / seconds["All E"]
            figures = {"ratio of MACs": short(counted), "paper's ratio of times": short(printed), "milliseconds": times}
            limit = scale.judged(1.25 * max(counted, printed))
            found.append(Outcome(times[name][0] / times["All E"][0], limit, what=f"{name} / All E", figures=figures))
        return found

    for kind, form in (("bf16", "prepared"), ("tf32", "eager"), ("float32", "eager"), ("bf16", "eager")):
        yield f"{kind}, {form}", functools.partial(ratios, kind, form == "prepared")


def checkpointed(network: Backbone, clips: torch.Tensor) -> torch.Tensor:
    """Score clips and keep the first map of each stage alone; the others are computed again for the gradients."""
    maps = network.pool(network.stem(clips))
    for stage in network.stages:
        maps = checkpoint(stage, maps, use_reentrant=False)
    return network.classify(maps)


def stage_1(scale: Scale) -> Iterator[Check]:
    """Train both networks on one batch of noise, whose loss must fall."""

    def train(name: str, clip_frames: int, batch: int, kind: str, form: str) -> Outcome:
        torch.manual_seed(0)
        network, batch, losses = build_backbone(name, CLASSES, scale.width), 2 if scale.is_small else batch, []
        clips, targets = scale.clips(clip_frames, batch), torch.arange(batch, device=scale.device)
        macs, score = 3 * batch * count_macs(network, clips[:1]), network.to(scale.device).train()
        if "plain layout" not in form:
            network, clips = (x.to(memory_format=torch.channels_last_3d) for x in (network, clips))
        if "checkpoints" in form:
            score = functools.partial(checkpointed, network)
        elif "compiled" in form and not scale.is_small:
            score = torch.compile(network, dynamic=False)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

        def step() -> None:
            with scale.computing(kind):
                losses.append(cross_entropy(score(clips), targets))
            optimiser.zero_grad()
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
            optimiser.step()

        scale.peak_mib()
        milliseconds, start = scale.time({"": step})[""], scale.now()
        step()
        launched, ended = time.perf_counter() - start, scale.now() - start
        rate = macs / milliseconds[0] / 1e6
        figures = {"milliseconds": milliseconds, "clips a second": short(1000 * batch / milliseconds[0])}
        figures |= {"GMAC/s": short(rate), "peak MiB": scale.peak_mib()}
        figures |= {"launching, share": short(launched / ended), "waiting, share": short(1 - launched / ended)}
        figures["share of the matrix product"] = short(rate / scale.product_gmacs(kind))
        return Outcome((losses[-1] / losses[0]).item(), 1.0, what="last loss / first", figures=figures)

    def recomputed() -> list[Outcome]:
        exact = build(Scale(torch.device("cpu"), scale.is_small), "r2plus1d_50", min(scale.width, 1 / 8))
        return compare(exact, copy.deepcopy(exact), scale.clips(8, 2).cpu(), scale, "float32", checkpointed)

    pair = ("r2plus1d_50", "r2d_26")
    rows = [(name, L, 32, "bf16", "channels last") for L in (8, 32) for name in pair]
    rows.insert(1, ("r2plus1d_50", 32, 32, "bf16", "channels last, checkpoints"))
    forms = ((32, "bf16", "plain layout"), (32, "tf32", "channels last"), (8, "bf16", "channels last"))
    forms += ((32, "float32", "channels last"), (32, "bf16", "channels last, compiled"))
    rows += [(name, 8, *form) for form in forms for name in pair]
    yield "checkpoints, against float64 without", recomputed
    for row in rows:
        yield "{}, L = {}, {} clips, {}, {}".format(*row), functools.partial(train, *row)


def replayed(scale: Scale, call: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Record a call as a CUDA graph; give what runs it again."""
    stream, current = torch.cuda.Stream(scale.device), torch.cuda.current_stream(scale.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def build_peers(name: str) -> Iterator[tuple[str, nn.Module]]:
    """Build other projects' networks for clips of 8 x 224 x 224, where they are installed."""
    with contextlib.suppress(ImportError, KeyError):
        peer = {"r2plus1d_50": "torchvision/r2plus1d_18", "r3d_50": "torchvision/r3d_18"}[name]
        network = build_backbone(peer, CLASSES)
        network.input_px = 224  # so that nothing is resized
        yield peer, network.eval()
    with contextlib.suppress(ImportError):
        if name == "r2plus1d_50":
            from pytorchvideo.models.r2plus1d import create_r2plus1d

            options = {"model_depth": 50, "model_num_class": CLASSES, "head_pool_kernel_size": (1, 7, 7)}
            yield "pytorchvideo r2plus1d_50", create_r2plus1d(**options).eval()


def inference(scale: Scale) -> Iterator[Check]:
    """Time prepared networks beside eager ones, torchvision's, pytorchvideo's, and a matrix product."""

    @torch.no_grad()
    def contest(name: str, kind: str, batch: int) -> list[Outcome]:
        plain, dtype, clips = build(scale, name), TYPES[kind], scale.clips(8, 1 if scale.is_small else batch)
        prepared = prepare_for_inference(plain, dtype=dtype, is_compiled=not scale.is_small)
        networks = {"prepared": plain, "eager": copy.deepcopy(plain)} | dict(
            () if scale.is_small else build_peers(name)
        )
        macs = {who: len(clips) * count_macs(network, clips[:1]) for who, network in networks.items()}
        networks = {who: network.to(scale.device, dtype) for who, network in networks.items() if who != "prepared"}
        calls = {who: functools.partial(network, clips.to(dtype)) for who, network in networks.items()}
        calls = {"prepared": functools.partial(prepared, clips)} | calls
        with scale.computing("tf32" if kind == "tf32" else "float32"):
            error = share(prepared(clips), plain(clips).double().cpu())
            scale.peak_mib()
            prepared(clips)
            figures = {"peak MiB": scale.peak_mib()}
            if batch == 1 and scale.device.type == "cuda":
                try:
                    calls["CUDA graph"], macs["CUDA graph"] = replayed(scale, calls["prepared"]), macs["prepared"]
                except RuntimeError as error:
                    figures["CUDA graph"] = explain(error)
            times = scale.time(calls)
        figures |= {f"{who}, GMAC/s": short(macs[who] / times[who][0] / 1e6) for who in calls}
        figures |= {"matrix product, GMAC/s": scale.product_gmacs(kind), "milliseconds": times}
        ratio, limit = times["eager"][0] / times["prepared"][0], max(LIMITS[kind][0], TOLERANCE[dtype])
        fast = Outcome(ratio, scale.judged(1.0), is_least=True, what="times as fast as eager", figures=figures)
        return [fast, Outcome(error, limit, what="largest error")]

    for kind, batches in (("bf16", (8, 1, 32)), ("tf32", (8,)), ("float32", (8, 1, 32)), ("tf32", (1, 32))):
        for batch in batches:
            for name in ("r2plus1d_50", "r2d_26", "r3d_50"):
                yield f"{name}, L = 8, batch {batch}, {kind}", functools.partial(contest, name, kind, batch)


def stage_2(scale: Scale) -> Iterator[Check]:
    """Time both passes of each aggregator over 32 videos in its plain and its fast form."""

    def forms(name: str, num_clips: int) -> Outcome:
        channels, batch = (32, 4) if scale.is_small else (2048, 32)
        plain = build_aggregator(name, channels).to(scale.device).train()
        features = torch.randn(num_clips, batch, 1, 7, 7, channels, device=scale.device).movedim(-1, 2)
        targets = torch.arange(batch, device=scale.device)

        def step(form: nn.Module) -> None:
            form.zero_grad()
            cross_entropy(form.read(form.run(features)), targets).backward()

        with scale.computing("tf32" if scale.has("tf32") else "float32"):
            pair = (("plain", plain), ("fast", fast_form(plain)))
            times = scale.time({who: functools.partial(step, form) for who, form in pair})
        figures, ratio = {"milliseconds": times, "peak MiB": scale.peak_mib()}, times["plain"][0] / times["fast"][0]
        what = "fast form, times as fast as plain"
        return Outcome(ratio, scale.judged(0.9), is_least=True, what=what, figures=figures)

    for num_clips in (8, 16, 32):
        for name in ("fast_gru", "gru", "lstm", "concat"):  # averaging has nothing to train
            yield f"{name}, N = {num_clips}", functools.partial(forms, name, num_clips)


SECTIONS = {  # in order of worth, each with its share of the minutes
    "numerics": (numerics, 0.15),
    "trained weights": (trained_weights, 0.05),
    "table 5": (table_5, 0.25),
    "stage 1": (stage_1, 0.25),
    "inference": (inference, 0.22),
    "stage 2": (stage_2, 0.08),
}
SMALL = 2  # checks of a section at small size; numerics has all


def run(scale: Scale, table: Table, minutes: float) -> None:
    """Make all lines: each section in its share of the time, then what is left over, as long as there is time."""
    start, so_far, later = time.perf_counter(), 0.0, []
    for section, (make, share_of_time) in SECTIONS.items():
        so_far += share_of_time
        for check in list(make(scale))[: SMALL if scale.is_small and section != "numerics" else None]:
            if time.perf_counter() - start < 60 * minutes * so_far:
                table.try_out(section, check)
            else:
                later.append((section, check))
    for section, check in later:
        if time.perf_counter() - start < 60 * minutes:
            table.try_out(section, check)
        else:
            table.add(section, check[0], "not run", why=f"{minutes:g} minutes are over; --minutes allows more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table; give 1 if a line failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu")
    given = parser.parse_args(arguments)
    try:
        device, missing = torch.zeros(1, device=given.device).device, None
    except Exception as error:  # torch has many for this
        device, missing = torch.device("cpu"), f"{explain(error)}; cpu works, and what follows ran there, at small size"
    scale = Scale(device, given.small or missing is not None)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    about = {"device": f"{device}, {name}", "torch": torch.__version__, "python": platform.python_version()}
    about |= {
        "threads": torch.get_num_threads(),
        "small": scale.is_small,
        "begun": time.strftime("%FT%TZ", time.gmtime()),
    }
    table = Table(given.output, about)
    if missing:
        table.add("device", given.device, "fail", why=missing)
    run(scale, table, given.minutes)
    failed = sum(line["status"] == "fail" for line in table.lines)
    print(f"{failed} of {len(table.lines)} lines failed; see {table.markdown}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
