"""Reading and writing video files: the only place where decord and PyAV enter."""

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import torch


class VideoError(RuntimeError):
    """A video file that cannot be read; the message names the file and what is wrong with it."""


def open_video(path: str | Path) -> decord.VideoReader:
    """Open one video for random access.

    Raises: VideoError if the file is missing, empty, or holds no decodable video stream.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such video file; check the annotation file and the folder it is relative to")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); generate or download it again")
    try:
        reader = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
        num_frames = len(reader)
    except Exception as error:  # decord raises DECORDError, RuntimeError or AttributeError, by version
        raise VideoError(f"{path}: not a readable video ({_first_line(error)}); it may be truncated") from error
    if num_frames == 0:
        raise VideoError(f"{path}: the video stream holds no frame; generate or download it again")
    return reader


def read_frames(reader: decord.VideoReader, indices: Sequence[int], *, path: str | Path) -> torch.Tensor:
    """Decode the frames at `indices` (repeats allowed) from an open reader.

    Shape: -> (len(indices), H, W, 3) uint8, RGB
    Raises: VideoError if a frame cannot be decoded, naming `path`.
    """
    try:
        return torch.from_numpy(reader.get_batch(list(indices)).asnumpy())
    except Exception as error:
        raise VideoError(
            f"{path}: cannot decode frames {min(indices)} to {max(indices)} of {len(reader)} ({_first_line(error)}); "
            "the file may be truncated"
        ) from error


def encode_h264(frames: np.ndarray, *, fps: int, crf: int, gop_frames: int) -> bytes:
    """Encode frames as an H.264 `.mp4` held in memory, the same bytes for the same frames.

    The caller writes the bytes, so that a full disk is an ordinary error and never a half-written video.

    Shape: frames (T, H, W, 3) uint8, H and W even.
    Args:
        crf: x264's constant rate factor, 0 (lossless) to 51.
        gop_frames: at most this many frames between key frames; short groups make random access cheap.
    Raises: ValueError if the frames have another shape, type or an odd size.
    """
    options = {"crf": str(crf), "preset": "superfast", "tune": "fastdecode", "threads": "1"}
    options |= {"g": str(gop_frames), "keyint_min": "1"}
    return _encode(frames, fps=fps, container="mp4", codec="libx264", options=options)


def encode_mpeg4(frames: np.ndarray, *, fps: int) -> bytes:
    """Encode frames as MPEG-4 Part 2 in an `.avi`, the form in which UCF-101 and HMDB-51 come; as `encode_h264`."""
    options = {"qscale": "2", "g": "12", "threads": "1", "flags": "+bitexact"}
    return _encode(frames, fps=fps, container="avi", codec="mpeg4", options=options)


def _encode(frames: np.ndarray, *, fps: int, container: str, codec: str, options: dict[str, str]) -> bytes:
    if frames.ndim != 4 or len(frames) == 0 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (T, H, W, 3), not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{codec} with 4:2:0 chroma needs even sizes, not {height} x {width}")
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
