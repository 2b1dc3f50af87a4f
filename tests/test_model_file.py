"""Tests of a model that is taken along as one file: saved, loaded, predicting, watching."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from faster_lib.data.datasets import clip_starts
from faster_lib.data.transforms import cut_frames, draw_cut
from faster_lib.data.video import VideoError, encode_h264
from faster_lib.model_file import About, load, save_model
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster

ABOUT = About(
    "r2plus1d_50", "r2d_26", 1 / 32, "fast_gru", 4, "ECC", ("left", "right", "still"), 8, 40, 35, 0.25, {}, {}
)


def build(about: About) -> Faster:
    torch.manual_seed(0)
    expensive, cheap = (
        build_backbone(name, len(about.classes), about.width) for name in (about.expensive, about.cheap)
    )
    aggregator = build_aggregator(about.aggregator, expensive.channels, about.reduction)
    model = Faster(expensive, cheap, aggregator, about.schedule, len(about.classes), feature_scales=(0.5, 2.0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "my_model.faster"
    save_model(build(ABOUT), ABOUT, path)
    return path


def draw_frames(count: int, seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 255, (1, *size, 3))
    return np.clip(still + np.cumsum(rng.integers(-9, 10, (count, *size, 3)), 0), 0, 255).astype(np.uint8)


def score(frames: torch.Tensor, starts: list[int], about: About = ABOUT) -> torch.Tensor:
    """Score by the plain model, all clips at once."""
    clips = [frames[[(s + i) % len(frames) for i in range(about.clip_frames)]] for s in starts]
    cut = [cut_frames(clip, draw_cut(clip.shape[1:3], about)).movedim(-1, 0) for clip in clips]
    with torch.inference_mode():
        return build(about)(torch.stack(cut)[None]).softmax(-1)[0]


@pytest.mark.parametrize("length", [40, 5])
def test_a_file_predicts_what_the_trained_model_says_of_the_video(saved, tmp_path, length):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_h264(draw_frames(length), fps=25, crf=0, gop_frames=8))
    decoded = torch.stack([frame for frame in decode(path)])
    wanted = score(decoded, clip_starts(length, 8, 3))
    found = load(saved).predict(path)
    assert list(found.probabilities) == list(ABOUT.classes)
    torch.testing.assert_close(torch.tensor(list(found.probabilities.values())), wanted, atol=1e-4, rtol=0)
    assert found.label == ABOUT.classes[wanted.argmax()] and (found.clips_seen, found.gmacs) == (3, 0.25)
    assert found.seconds > 0


def decode(path):
    import av

    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def test_a_stream_says_after_every_clip_what_the_model_says_of_the_clips_so_far(saved):
    frames = torch.from_numpy(draw_frames(27))
    moments = list(load(saved).watch(iter(frames)))
    assert [(m.frame, m.clips_seen, m.dropped) for m in moments] == [(7, 1, 0), (15, 2, 0), (23, 3, 0)]
    for clips, moment in enumerate(moments, start=1):
        wanted = score(frames[: 8 * clips], [8 * i for i in range(clips)])
        torch.testing.assert_close(torch.tensor(list(moment.probabilities.values())), wanted, atol=1e-4, rtol=0)


def test_a_streams_schedule_begins_again_and_its_memory_does_not(saved):
    model, frames = load(saved), torch.from_numpy(draw_frames(8))
    seen = []
    for name in ("expensive", "cheap"):
        getattr(model.network, name).register_forward_hook(lambda *_, name=name: None)
        network, features = getattr(model.network, name), getattr(model.network, name).features
        network.features = lambda clips, name=name, features=features: (seen.append(name[0]), features(clips))[1]
    first, *_, last = list(model.watch(itertools.chain.from_iterable(itertools.repeat(frames, 7))))
    assert "".join(seen) == "eccecce" and last.clips_seen == 7
    assert first.probabilities != last.probabilities


def test_a_cut_or_a_call_begins_anew(saved):
    dark, bright = (
        torch.from_numpy(draw_frames(12, seed) // 4 + add).to(torch.uint8) for seed, add in ((1, 0), (2, 190))
    )
    model = load(saved)
    moments = list(model.watch([*dark, *bright], cut_at=0.5))
    assert [(m.frame, m.clips_seen) for m in moments] == [(7, 1), (19, 1)]
    alone = score(bright[:8], [0])
    torch.testing.assert_close(torch.tensor(list(moments[1].probabilities.values())), alone, atol=1e-4, rtol=0)
    stream, counts = model.watch([*dark, *bright, *dark]), []
    for moment in stream:
        counts.append(moment.clips_seen)
        if len(counts) == 2:
            stream.reset()
    assert counts == [1, 2, 1, 2] or counts == [1, 2, 1]


def test_a_short_stream_is_looped_and_a_live_one_counts_what_it_dropped(saved):
    model, frames = load(saved), torch.from_numpy(draw_frames(60))
    (moment,) = model.watch(frames[:3])
    wanted = score(frames[:3], [0])
    torch.testing.assert_close(torch.tensor(list(moment.probabilities.values())), wanted, atol=1e-4, rtol=0)
    many = itertools.chain.from_iterable(itertools.repeat(frames, 5))
    live = list(model.watch(many, is_live=True))
    assert live[-1].dropped > 0
    assert len(live) <= (300 - live[-1].dropped) // 8


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        ([np.zeros((4, 4), np.uint8)], r"frame 0 is torch.uint8 \(4, 4\)"),
        ([np.zeros((40, 40, 3), np.float32)], "frame 0 is torch.float32"),
        ([], "without a frame"),
    ],
)
def test_what_is_no_stream_is_refused(saved, frames, fault):
    with pytest.raises(ValueError, match=fault):
        list(load(saved).watch(frames))


def test_a_video_or_camera_that_is_not_there_is_named(saved, tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4"):
        load(saved).predict(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="/dev/video77"):
        list(load(saved).watch("/dev/video77"))


def test_a_damaged_newer_or_foreign_file_is_refused(saved, tmp_path):
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert json.loads(header["about"])["classes"] == list(ABOUT.classes)
    damaged = {
        "flipped": (content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:], "is damaged"),
        "short": (content[:-5], "is damaged"),
        "empty": (b"", "no model file"),
        "text": (b"hello, this is a text", "no model file"),
        "newer": (content.replace(b'"version":"1"', b'"version":"7"'), "format 7"),
    }
    for name, (bad, fault) in damaged.items():
        path = tmp_path / name
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=fault):
            load(path)
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no model file"):
        load(tmp_path / "other.safetensors")


def test_a_model_that_is_not_what_is_said_of_it_is_not_saved(tmp_path):
    model = build(ABOUT)
    with torch.no_grad():
        next(model.aggregator.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        save_model(model, ABOUT, tmp_path / "m")


def test_three_lines_work_in_a_plain_script_in_an_empty_folder(saved, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encode_h264(draw_frames(30), fps=25, crf=23, gop_frames=8))
    script = f'from faster_lib import load\nmodel = load("{saved}")\nprint(model.predict("clip.mp4").label)\n'
    script += 'import sys\nassert not {"torchvision", "torch._dynamo"} & {*sys.modules}, "three seconds of imports"\n'
    done = subprocess.run([sys.executable, "-"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ABOUT.classes
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
