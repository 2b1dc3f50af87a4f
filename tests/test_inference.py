"""Tests of faster_lib.inference: prepared models against plain ones in float64, at odd sizes."""

import copy
import logging
import os
import pickle
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from faster_lib.data.datasets import Video, VideoClips, VideoList
from faster_lib.data.video import encode_h264
from faster_lib.inference import (
    TOLERANCE,
    _FramesAsChannels,
    _sizes_of_calls,
    fast_form,
    fastest_type,
    fold_batch_norm,
    prepare_for_inference,
    score_videos,
)
from faster_lib.models.aggregators import AGGREGATORS, build_aggregator
from faster_lib.models.backbones import TABLE_1, build_backbone
from faster_lib.models.clips import normalise
from faster_lib.models.faster import Faster
from faster_lib.profiles import load_profile

CLASSES = 5
AVERAGES = ("avg_pool", "mean")
LEARNED = [name for name in AGGREGATORS if name not in AVERAGES]


def network(name: str, width: float, seed: int = 0) -> nn.Module:
    """Build a network whose every statistic of batch norm is far from its initial value."""
    torch.manual_seed(seed)
    built = build_backbone(name, CLASSES, width).eval()
    for norm in (module for module in built.modules() if isinstance(module, nn.BatchNorm3d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return built


def model(aggregator: str) -> Faster:
    expensive, cheap = (network("r2d_26", 1 / 64, seed) for seed in (0, 1))
    return Faster(expensive, cheap, build_aggregator(aggregator, expensive.channels), "ECCE", CLASSES).eval()


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Give the largest difference as a share of the largest value."""
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [*TABLE_1, "torchvision/mc3_18"])
def test_a_prepared_network_computes_what_the_plain_one_does_in_double_precision(name, dtype):
    plain = network(name, 1.0 if "/" in name else 1 / 16)
    plain.input_px = 16  # of torchvision's alone, whose 3D convolutions in bf16 take minutes where it is emulated
    kept = copy.deepcopy(plain.state_dict())
    clips = torch.randn((1, 3, 8, 21, 27) if "/" in name else (3, 3, 16, 37, 51))  # bf16 may be emulated, and slow
    prepared = prepare_for_inference(plain, dtype=dtype, is_compiled=False)
    assert [module for module in prepared.modules() if isinstance(module, nn.BatchNorm3d)] == [] or "/" in name
    features, scores = prepared.features(clips), prepared(clips)
    assert features.dtype == scores.dtype == torch.float32
    assert all(torch.equal(value, kept[key]) for key, value in plain.state_dict().items())
    exact = plain.double()
    assert distance(features, exact.features(clips.double())) < TOLERANCE[dtype]
    assert distance(scores, exact(clips.double())) < TOLERANCE[dtype]


@torch.no_grad()
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_prepared_model_gives_the_scores_of_the_plain_one_for_whole_videos_and_clip_by_clip(name):
    plain, clips = model(name), torch.randn(2, 4, 3, 8, 33, 41)
    prepared = prepare_for_inference(plain, is_compiled=False)
    state = None
    exact = plain.double()(clips.double())
    for clip in clips.unbind(1):
        state, streamed = prepared.step(clip, state)
    assert max(distance(found, exact) for found in (prepared(clips), streamed)) < TOLERANCE[torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("is_prepared", [False, True])
def test_clips_of_bytes_are_normalised_on_the_way_into_each_network(is_prepared):
    plain = model("fast_gru")
    found = prepare_for_inference(plain, is_compiled=False) if is_prepared else plain
    frames = torch.randint(256, (2, 4, 8, 33, 41, 3), dtype=torch.uint8)  # as decoded, colours last
    clips = frames.movedim(-1, 2)
    exact = plain.double()(normalise(clips).double())
    assert distance(found.float()(clips), exact) < TOLERANCE[torch.float32]
    other = build_backbone("torchvision/mc3_18", 16).eval()
    assert torch.equal(other.features(clips[:, 0]), other.features(normalise(clips[:, 0])))


@torch.no_grad()
def test_a_compiled_network_out_of_a_pickle_gives_the_scores_of_the_plain_one(caplog):
    plain, clips = network("r2d_26", 1 / 64), torch.randn(2, 3, 8, 33, 41)
    plain.stages, plain.classifier = plain.stages[:1], nn.Linear(4, CLASSES)  # what follows is compiled alike
    prepared = pickle.loads(pickle.dumps(prepare_for_inference(plain)))
    assert type(prepared.network.stem[0][0]) is _FramesAsChannels  # of 8 frames, as 24 channels
    assert distance(prepared(clips), plain.double()(clips.double())) < TOLERANCE[torch.float32]
    assert not [record for record in caplog.records if "cannot be compiled" in record.message]


@torch.no_grad()
@pytest.mark.parametrize("name", LEARNED)
def test_a_compiled_aggregator_computes_what_the_plain_one_does_at_once_and_step_by_step(name):
    plain, features = build_aggregator(name, 20).eval(), torch.randn(4, 3, 20, 1, 3, 5)
    prepared, state = prepare_for_inference(plain), None
    for feature in features:
        state = prepared(feature, state)
    exact = plain.double()
    exact = exact.read(exact.run(features.double()))
    for found in (state, prepared.run(features)):
        assert distance(prepared.read(found), exact) < TOLERANCE[torch.float32]
    assert prepared.step.compiled is not None
    assert logging.getLogger("torch.utils.cpp_extension").level == logging.NOTSET
    assert prepared.train().training is prepared.aggregator.training is False
    assert torch.equal(prepared.run(features)[0], found[0])  # statistics of batch norm as they were
    with pytest.raises(RuntimeError, match="PreparedAggregator takes no other weights; load a plain model"):
        prepared.load_state_dict(prepared.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_prepared_as_it_is(name):
    plain = build_aggregator(name, 8)
    clips = torch.rand(3, 2, 5) if name == "avg_pool" else torch.rand(3, 2, 8, 1, 2, 2)
    prepared = prepare_for_inference(plain, dtype="auto")
    assert type(prepared) is type(plain) and prepared is not plain
    assert torch.equal(prepared.read(prepared.run(clips)), plain.read(plain.run(clips)))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")  # by the setting that this test makes
def test_without_a_compiler_a_warning_names_it_and_the_scores_are_the_same(caplog):
    from torch._inductor import config

    plain, clips = network("r2d_26", 1 / 64), torch.randn(1, 3, 8, 35, 35)
    with config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        prepared = prepare_for_inference(plain)
        found = prepared(clips)
        prepared(clips)
    warned = [record.message for record in caplog.records if "cannot be compiled" in record.message]
    assert len(warned) == 1
    assert "no-such-compiler" in warned[0] and "g++" in warned[0]
    assert distance(found, plain.double()(clips.double())) < TOLERANCE[torch.float32]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")  # by the setting that this test makes
def test_a_compiler_that_fails_is_quoted_and_not_called_missing(tmp_path, caplog):
    from torch._inductor import config

    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "at first\na fatal error: no space" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    with config.patch({"cpp.cxx": (None, str(compiler)), "force_disable_caches": True}):
        prepare_for_inference(network("r2d_26", 1 / 64))(torch.randn(1, 3, 8, 34, 35))
    (warned,) = [record.message for record in caplog.records if "cannot be compiled" in record.message]
    assert "(a fatal error: no space)" in warned and "needs" not in warned


@pytest.mark.parametrize(
    ("features", "expected"),
    [((), torch.float32), (("amx_tile",), torch.bfloat16), (("avx512_bf16",), torch.bfloat16)],
)
def test_auto_takes_the_fastest_type_that_the_processor_has_and_says_so(features, expected, monkeypatch, caplog):
    for feature in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda feature=feature: feature in features)
    plain, clips = model("fast_gru"), torch.randn(1, 2, 3, 8, 33, 33)
    with caplog.at_level(logging.INFO):
        prepared = prepare_for_inference(plain, dtype="auto", is_compiled=False)
    assert [str(expected) in record.message for record in caplog.records] == [True]
    assert prepared.dtype == prepared.cheap.dtype == prepared.cheap.network.stem[0][0].weight.dtype == expected
    assert prepared.aggregator.dtype == prepared.classifier.weight.dtype == torch.float32
    assert distance(prepared(clips), plain.double()(clips.double())) < TOLERANCE[expected]
    caplog.clear()
    explicit = prepare_for_inference(model("fast_gru"), dtype=torch.bfloat16, is_compiled=False)
    assert explicit.dtype == torch.bfloat16
    emulated = [record for record in caplog.records if "only emulates torch.bfloat16" in record.message]
    assert len(emulated) == (expected == torch.float32)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)])
def test_auto_takes_bf16_on_a_gpu_that_multiplies_it(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest_type("cuda") == fastest_type(torch.device("cuda", 1)) == expected
    assert fastest_type("mps") == torch.float32


@torch.no_grad()
def test_a_prepared_model_stays_in_evaluation_mode_and_takes_no_other_weights():
    plain, clips = model("concat"), torch.randn(2, 4, 3, 8, 33, 33)
    prepared = prepare_for_inference(plain, is_compiled=False)
    expected = prepared(clips)
    outer = nn.Sequential(prepared).train()
    assert outer.training and not any(part.training for part in prepared.modules())
    assert torch.equal(outer(clips), expected)
    for part in (prepared, prepared.cheap, Faster(prepared.cheap, plain.cheap, plain.aggregator, "EC", CLASSES)):
        with pytest.raises(RuntimeError, match=r"Prepared\w+ takes no other weights; .* prepare it anew"):
            part.load_state_dict(part.state_dict())
    assert isinstance(pickle.loads(pickle.dumps(prepared)), Faster)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_clips_of_whole_numbers_other_than_bytes_are_refused(is_prepared, dtype):
    whole = model("gru")
    whole = prepare_for_inference(whole, is_compiled=False) if is_prepared else whole
    clips = torch.ones(1, 2, 3, 8, 33, 33, dtype=dtype)
    for call in (lambda: whole(clips), lambda: whole.step(clips[:, 0]), lambda: whole.cheap.features(clips[0])):
        with pytest.raises(ValueError, match=rf"clips are {dtype}; they must be torch\.uint8, or floats"):
            call()


@given(num_clips=st.integers(0, 300), pixels=st.sampled_from([35 * 35 * 8, 8 * 112 * 112, 8 * 224 * 224, 2**22]))
def test_clips_are_cut_into_few_sizes_that_hold_all_of_them(num_clips, pixels):
    sizes = _sizes_of_calls(num_clips, pixels)
    assert sum(sizes) == num_clips
    assert all(size & (size - 1) == 0 for size in sizes)
    assert all(size == 1 or size * pixels <= 32 * 224 * 224 for size in sizes)
    assert len(set(sizes)) <= 10


@pytest.mark.parametrize("workers", [0, 1])
def test_videos_are_scored_from_their_files_in_order_whatever_the_batch(tmp_path, workers):
    paths = []
    for number in range(3):
        frames = torch.randint(0, 255, (20, 40, 52, 3), generator=torch.Generator().manual_seed(number))
        paths.append(tmp_path / f"{number}.mp4")
        paths[-1].write_bytes(encode_h264(frames.byte().numpy(), fps=25, crf=20, gop_frames=8))
    videos = VideoList(tuple(Video(path, target) for path, target in zip(paths, (2, 0, 1), strict=True)), tuple("abc"))
    clips = VideoClips(videos, load_profile("tiny").data, clip_frames=8, num_clips=4, views=0, seed=0)
    plain = model("gru")
    found = list(score_videos(plain, clips, batch_videos=2, workers=workers))
    assert [len(scores) for scores, _ in found] == [2, 1]
    assert torch.cat([targets for _, targets in found]).tolist() == [2, 0, 1]
    with torch.no_grad():
        alone = torch.cat([plain(normalise(clips[i][0])).softmax(-1) for i in range(3)])
    torch.testing.assert_close(torch.cat([scores for scores, _ in found]), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_clips", [1, 2, 8])
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("name", LEARNED)
def test_a_fast_form_computes_what_the_equations_say_and_gives_their_gradients(name, batch, num_clips):
    torch.manual_seed(0)
    plain = build_aggregator(name, 8).double().eval()
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.9).mul_(torch.randint_like(tensor, 2) * 2 - 1)
    if name == "concat":
        plain.bn.running_var.abs_()
    fast, features = fast_form(plain), torch.randn(num_clips, batch, 8, 2, 3, 5, dtype=torch.float64)
    found = []
    for aggregator in (plain, fast):
        inputs = features.clone().requires_grad_()
        aggregator.zero_grad(set_to_none=True)
        read = aggregator.read(aggregator.run(inputs))
        read.sin().sum().backward()
        found.append([read, inputs.grad, *(p.grad for p in plain.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-12)
    if batch:
        state = None
        for feature in features:
            state = fast(feature, state)
        torch.testing.assert_close(fast.read(state), found[0][0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_fast_form_has_the_very_parameters_of_the_readable_one_and_refuses_what_that_refuses(name):
    plain = build_aggregator(name, 8)
    fast = fast_form(plain)
    assert isinstance(fast, type(plain)) and type(fast_form(fast)) is type(fast)
    assert (type(fast) is type(plain)) == (name in AVERAGES)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert all(one is other for one, other in zip(plain.parameters(), fast.parameters(), strict=True))
    twin = copy.deepcopy(fast).double()
    assert all(p.dtype == torch.float32 for p in plain.parameters()) and type(twin) is type(fast)
    good = torch.rand(2, 5) if name == "avg_pool" else torch.rand(2, 8, 1, 2, 2)
    for state in (None, fast(good)):
        with pytest.raises(ValueError, match=r"\(2, 9, 1, 2\)"):
            fast(torch.zeros(2, 9, 1, 2), state)


def test_what_cannot_be_prepared_is_refused_with_the_value():
    with pytest.raises(ValueError, match=r"torch\.float16.*torch\.float32 or torch\.bfloat16"):
        prepare_for_inference(model("gru"), dtype=torch.float16)
    with pytest.raises(TypeError, match=r"a Linear cannot be prepared"):
        prepare_for_inference(nn.Linear(2, 2))
    for plain in (network("r2d_26", 1 / 64), build_aggregator("gru", 8), model("gru")):
        with pytest.raises(TypeError, match=r"a Prepared(Backbone|Aggregator|Faster) cannot be prepared"):
            prepare_for_inference(prepare_for_inference(plain, is_compiled=False))


@pytest.mark.parametrize("name", TABLE_1)
def test_folding_batch_norm_changes_nothing_but_rounding_and_leaves_the_network_alone(name):
    torch.manual_seed(0)
    network = build_backbone(name, 5, 1 / 16).eval()
    for key, value in network.state_dict().items():
        if "running" in key or ("weight" in key and value.ndim == 1):
            value.uniform_(0.5, 2.0)  # as after training; zeros would hide the residual branches
    before = {key: value.clone() for key, value in network.state_dict().items()}
    clips = torch.randn(2, 3, 8, 33, 40)
    folded = fold_batch_norm(network)
    assert not any(isinstance(part, torch.nn.BatchNorm3d) for part in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded.double()(clips.double()), network.double()(clips.double()))
    assert all(torch.equal(value.to(before[key].dtype), before[key]) for key, value in network.state_dict().items())


FAULTS = """
import resource, torch
from faster_lib.inference import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(2**24)  # 64 MiB, in 16,384 pages of 4 KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), faults(), faults())
"""


def count_faults(**environment: str) -> tuple[str, int, int]:
    """Let a process of its own say whether it keeps memory, and count its page faults, twice."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True, timeout=300)
    kept, first, again = printed.stdout.split()
    return kept, int(first), int(again)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_is_used_again_unless_the_environment_sets_the_allocator():
    kept, first, again = count_faults()
    assert kept == "True" and again < 20_000  # of 262,144; blocks find their places in the first round
    kept, first, again = count_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False" and min(first, again) > 250_000
