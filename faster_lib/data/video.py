"""Reading and writing video files: the only place where decord and PyAV enter."""

import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch  # before decord: loaded after it, PyTorch's convolutions crash

# isort: split
import av
import decord
import numpy as np
from torch.utils.dlpack import from_dlpack

DECODER = f"decord2 {version('decord2')}"  # another version may give other frames
BATCH_BYTES = 2**25  # of frames decoded at a time where a whole video is read
_SEEKS = 6  # places of a video at which random access is tried, those near key frames first
# Where these were read out of order, decord gave other frames now and then, not always the same ones: never rely on it.
_NEVER_SEEKABLE = ("h263", "mpeg4", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2")
_LEAST_SHARE = 0.9  # of the frames that a container announces; containers are off by one or two now and then


class VideoError(RuntimeError):
    """A video file that cannot be read; the message names the file and what is wrong with it."""


class File(NamedTuple):
    """What reading a whole file showed; sizes are as decoded, turned upright where the file says so."""

    frames: int = 0
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    codec: str = ""
    decoder: str = ""  # "decord", or "decord_in_order" where frames read out of order are not those read in order
    bytes: int = 0
    sha256: str = ""
    problem: str = ""  # empty, or "missing: ..." or "corrupt: ..."


def open_video(path: str | Path) -> decord.VideoReader:
    """Open one video for random access; raises VideoError if it is missing, empty, or holds no decodable stream."""
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


def read_frames(
    reader: decord.VideoReader, indices: Sequence[int], *, path: str | Path, is_seekable: bool = True
) -> torch.Tensor:
    """Decode the frames at `indices` (repeats allowed) from an open reader: (len(indices), H, W, 3) uint8, RGB.

    Args:
        is_seekable: whether the video's decoder is "decord"; others decode from the beginning, in a fresh reader.
    Raises: VideoError if a frame cannot be decoded, naming `path`.
    """
    try:
        if is_seekable:
            return from_dlpack(reader.get_batch(list(indices)).to_dlpack())  # where decord wrote them, no copy
        wanted = set(indices)
        kept = {i: frame for i, frame in enumerate(_in_order(reader, max(wanted) + 1)) if i in wanted}
        return torch.from_numpy(np.stack([kept[i] for i in indices]))
    except Exception as error:
        where = f"{path}: cannot decode frames {min(indices)} to {max(indices)} of {len(reader)}"
        raise VideoError(f"{where} ({_first_line(error)}); the file may be truncated") from error


def probe_video(path: str | Path) -> File:
    """Read every frame of a video, then some of them out of order, and say what it is.

    Raises: VideoError if it or a frame cannot be read, or a tenth of the frames that it announces is not there.
    """
    reader = open_video(path)
    codec, fps, announced = _read_header(path)
    sums, size = [], (0, 0)
    try:
        for frame in _in_order(reader):
            sums.append(zlib.crc32(frame))
            size = frame.shape[:2]
    except Exception as error:
        where = f"{path}: frame {len(sums)} or one soon after"
        raise VideoError(f"{where} cannot be decoded ({_first_line(error)})") from error
    if not sums or len(sums) < _LEAST_SHARE * announced:
        raise VideoError(f"{path}: {len(sums)} of the {announced} frames that the container announces; truncated")
    fps = fps or float(reader.get_avg_fps())
    is_seekable = codec not in _NEVER_SEEKABLE and _is_seekable(path, sums, reader.get_key_indices())
    return File(len(sums), round(fps, 3), size[1], size[0], codec, "decord" if is_seekable else "decord_in_order")


def _read_header(path: str | Path) -> tuple[str, float, int]:
    """Give the codec, the frames a second, and how many frames the container announces, 0 where it does not."""
    try:
        with av.open(os.fspath(path)) as file:
            stream = file.streams.best("video")
            fps = float(stream.average_rate or 0)
            seconds = float(stream.duration * stream.time_base) if stream.duration else (file.duration or 0) / 1e6
            return stream.codec_context.codec.canonical_name, fps, stream.frames or int(fps * seconds)
    except Exception as error:
        raise VideoError(f"{path}: no video stream is found ({_first_line(error)})") from error


def _in_order(reader: decord.VideoReader, stop: int | None = None) -> Iterator[np.ndarray]:
    """Decode all frames from the first on, or those before `stop`, some at a time: (H, W, 3) uint8."""
    try:
        frame = reader.next().asnumpy()
    except StopIteration:
        return
    yield frame
    step = max(1, BATCH_BYTES // frame.nbytes)
    stop = len(reader) if stop is None else stop
    for first in range(1, stop, step):
        yield from reader.get_batch(list(range(first, min(first + step, stop)))).asnumpy()


def _is_seekable(path: str | Path, sums: Sequence[int], key_frames: Sequence[int]) -> bool:
    """Compare frames read out of order with those read in order: after, at and before key frames, going backwards."""
    last = len(sums) - 1
    spread = [key_frames[i * len(key_frames) // _SEEKS] for i in range(_SEEKS)] if len(key_frames) else []
    places = sorted({min(max(k + d, 0), last) for k in [*spread, last // 2, last] for d in (-1, 0, 1)}, reverse=True)
    one_by_one, at_once = open_video(path), open_video(path)
    try:
        found = [zlib.crc32(one_by_one.get_batch([i]).asnumpy()) for i in places]
        found += [zlib.crc32(frame) for frame in at_once.get_batch(places[::-1]).asnumpy()]
    except Exception:
        return False
    return found == [sums[i] for i in [*places, *places[::-1]]]


def encode_h264(frames: np.ndarray, *, fps: int, crf: int, gop_frames: int) -> bytes:
    """Encode frames (T, H, W, 3) uint8, H and W even, as an H.264 `.mp4` in memory: the same bytes for the same frames.

    Args:
        crf: x264's constant rate factor, 0 (lossless) to 51.
        gop_frames: at most this many frames between key frames; short groups make random access cheap.
    Raises: ValueError if the frames have another shape, type or an odd size.
    """
    if frames.ndim != 4 or len(frames) == 0 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (T, H, W, 3), not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with 4:2:0 chroma needs even sizes, not {height} x {width}")
    options = {"crf": str(crf), "preset": "superfast", "tune": "fastdecode", "threads": "1"}
    options |= {"g": str(gop_frames), "keyint_min": "1"}
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    """Give the first line of a message, without the time and place in the source that decord puts in front."""
    line = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"^(\[[\d:]+\] \S+:\d+: )+", "", line) or type(error).__name__
