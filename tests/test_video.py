"""Tests of faster_lib.data.video: what is written comes back, and what cannot be read is named."""

import random
import subprocess
import sys

import av
import numpy as np
import pytest
import torch

from faster_lib.data.datasets import Video
from faster_lib.data.video import VideoError, encode_h264
from faster_lib.paths import ROOT
from workflow.scan import choose_decoder


def ramps(num_frames: int, height: int, width: int) -> np.ndarray:
    """Frames that brighten in red to the right, in green downwards and in blue over time: (T, H, W, 3) uint8."""
    axes = [np.linspace(40, 200, size) for size in (width, height, num_frames)]
    red, green, blue = axes[0][None, None, :], axes[1][None, :, None], axes[2][:, None, None]
    return np.stack(np.broadcast_arrays(red, green, blue), axis=-1).astype(np.uint8)


def write(path, frames, *, crf=18, gop_frames=8):
    path.write_bytes(encode_h264(frames, fps=25, crf=crf, gop_frames=gop_frames))
    return path


def read_all(path) -> torch.Tensor:
    reader = Video(path).open()
    return reader.read(range(len(reader)))


@pytest.fixture
def video(tmp_path):
    """A video of 40 frames, in five groups of pictures."""
    return write(tmp_path / "ramps.mp4", ramps(40, 40, 56))


@pytest.mark.parametrize("shape", [(1, 40, 40), (17, 40, 64), (40, 64, 40), (9, 34, 58)], ids=str)
def test_written_frames_come_back_in_number_order_size_and_colour(tmp_path, shape):
    frames = ramps(*shape)
    decoded = read_all(write(tmp_path / "video.mp4", frames))
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    error = np.abs(decoded.numpy().astype(int) - frames)
    assert error.mean(axis=(1, 2, 3)).max() < 4  # swapped colours or axes, or a shifted time, miss by far more


def test_frames_read_in_any_order_with_repeats_equal_those_read_in_a_row(video):
    in_a_row = read_all(video)
    assert len(in_a_row.flatten(1).unique(dim=0)) == 40  # no two frames are the same, so none can stand for another
    shuffled = random.Random(0).choices(range(40), k=60)
    reader = Video(video).open()
    for indices in ([39], [0], [16, 15, 17, 15], [39, 0, 39], shuffled, range(40)):
        assert torch.equal(reader.read(indices), in_a_row[list(indices)])
    for i in range(40):
        assert torch.equal(Video(video).open().read([i])[0], in_a_row[i])


def test_the_same_frames_give_the_same_bytes_and_groups_of_pictures_are_short(tmp_path):
    frames = ramps(40, 40, 56)
    contents = [encode_h264(frames.copy(), fps=25, crf=18, gop_frames=8) for _ in range(3)]
    assert contents[0] == contents[1] == contents[2]
    for gop_frames in (1, 8, 16):
        path = write(tmp_path / "video.mp4", frames, gop_frames=gop_frames)
        keys = Video(path, 0, choose_decoder(path)).open().key_frames
        assert keys[0] == 0 and np.diff([*keys, 40]).max() == min(gop_frames, 40)


def test_decord_and_pyav_decode_the_same_pixels_within_rounding(video):
    with av.open(video) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    difference = np.abs(read_all(video).numpy().astype(int) - expected)
    assert difference.shape == (40, 40, 56, 3) and difference.max() <= 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such video file"),
        (b"", "empty"),
        (b"path,label,split\na.mp4,left,train\n" * 40, "not a readable video"),
        (random.Random(0).randbytes(20_000), "not a readable video"),
    ],
    ids=["missing", "empty", "text", "random bytes"],
)
def test_a_file_that_is_no_video_is_an_error_that_names_it(tmp_path, content, fault):
    path = tmp_path / "holiday.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=f"holiday.mp4: .*{fault}"):
        Video(path).open()


def test_a_video_cut_short_anywhere_in_its_pictures_is_an_error_that_names_it_and_no_crash(tmp_path, video):
    content = video.read_bytes()
    end = content.rindex(b"moov")  # the index comes last, behind the pictures
    path = tmp_path / "short.mp4"
    for length in sorted({1, 7, 31, 50, *range(100, end, end // 20), end - 1, end + 8, end + 300}):
        path.write_bytes(content[:length])
        with pytest.raises(VideoError, match=r"short\.mp4"):
            read_all(path)
    assert len(read_all(video)) == 40  # a failure leaves the decoder usable


def test_frames_that_cannot_be_decoded_are_an_error_that_names_file_and_frames(tmp_path, video):
    with pytest.raises(VideoError, match=r"ramps.mp4: cannot decode frames 3 to 40 of 40"):
        Video(video).open().read([3, 40])
    content = bytearray(video.read_bytes())
    first, last = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    content[first:last] = bytes(last - first)
    broken = tmp_path / "zeros.mp4"
    broken.write_bytes(content)
    with pytest.raises(VideoError, match=r"zeros\.mp4"):
        read_all(broken)


@pytest.mark.parametrize(
    ("frames", "quoted"),
    [
        (np.zeros((2, 41, 40, 3), np.uint8), "41 x 40"),
        (np.zeros((2, 40, 57, 3), np.uint8), "40 x 57"),
        (np.zeros((2, 40, 40, 3), np.float32), "float32"),
        (np.zeros((2, 3, 40, 40), np.uint8), r"\(2, 3, 40, 40\)"),
        (np.zeros((40, 40, 3), np.uint8), r"\(40, 40, 3\)"),
    ],
    ids=["odd height", "odd width", "float", "channels first", "one frame"],
)
def test_frames_that_cannot_be_encoded_are_an_error_that_quotes_them(frames, quoted):
    with pytest.raises(ValueError, match=quoted):
        encode_h264(frames, fps=25, crf=18, gop_frames=8)


def test_a_process_that_reads_videos_first_can_still_train():
    """PyTorch's convolutions crash where decord was loaded before it."""
    program = (
        "from faster_lib.data import video\nimport torch\n"
        "network = torch.nn.Conv3d(3, 8, 3, padding=1)\n"
        "network(torch.randn(4, 3, 8, 16, 16, requires_grad=True)).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
