"""Reading and writing video files, by PyAV, whose frames from the first one on are the video's, and by decord.

decord is quicker out of order, but where it cannot decode it repeats other frames, so it reads those files only in
which a scan found PyAV's frames to the bit.
"""

import io
import os
import re
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch  # before decord: loaded after it, PyTorch's convolutions crash

# isort: split
import av
import decord
import numpy as np
from torch.utils.dlpack import from_dlpack

from faster_lib.store import has_hash, remembered
from faster_lib.workers import reading, reads_on

DECODER = f"decord2 {version('decord2')}"  # another version may give other frames
DECODERS = ("decord", "pyav", "pyav_in_order")
HELD_BYTES = 2**25  # of whole frames in memory at a time where clips are cut from them or a scan reads them
_LEAST_SHARE = 0.9  # of what a container announces, and of its packets, that must be there and decodable
_WAITS_SECONDS = (0.1, 1.0, 5.0)  # before a file is looked at again where a disk fails


class VideoError(RuntimeError):
    """A video file that cannot be read; the message names the file and what is wrong with it."""


class File(NamedTuple):
    """What reading a whole file showed; sizes are as decoded, turned upright where the file says so."""

    frames: int = 0
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    codec: str = ""
    decoder: str = ""  # "decord", "pyav", or "pyav_in_order" where a seek leads to other frames
    bytes: int = 0
    sha256: str = ""
    problem: str = ""  # empty, or "missing: ...", "corrupt: ...", or "unread: ..." where the machine failed


def look_at(path: Path) -> os.stat_result:
    """Give the state of a video file, after some more tries where a disk fails; raises VideoError if there is none."""
    for wait in (*_WAITS_SECONDS, None):
        try:
            return path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            fault = "no such video file; check the annotation file and the folder it is relative to"
            raise VideoError(f"{path}: {fault}") from error
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


class VideoReader:
    """One open video, read as its index, or probing the whole file, says.

    Raises: VideoError if the file cannot be opened, or is not the one that was indexed, by its hash and its length.
    """

    def __init__(self, path: Path, file: File):
        self.path, self.size_px = path, (file.height_px, file.width_px)
        self.at_once = max(1, HELD_BYTES // (3 * file.height_px * file.width_px))  # how many frames may be held
        try:
            with reading(path):
                if file.sha256 and not has_hash(path, file.sha256):
                    remedy = "bring it back, or touch it and index it again; a next start makes generated ones again"
                    raise VideoError(f"{path}: its bytes are not those that were indexed; {remedy}")
                is_decord = file.decoder == "decord"
                self._decoder = _Decord(path) if is_decord else PyAVDecoder(path, file.frames, file.decoder == "pyav")
        except VideoError:
            raise
        except Exception as error:  # decord raises DECORDError, RuntimeError or AttributeError, by version
            raise VideoError(f"{path}: not a readable video ({first_line(error)})") from error
        self.key_frames = self._decoder.key_frames
        if file.frames != len(self):
            raise VideoError(f"{path}: has {len(self)} frames, but {file.frames} when it was indexed; index it again")

    def __len__(self) -> int:
        return self._decoder.length

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """Decode frames, repeats allowed: (len(indices), H, W, 3) uint8, RGB; raises VideoError if one fails."""
        try:
            with reading(self.path):
                return self._decoder.read(list(indices))
        except Exception as error:
            where = f"{self.path}: cannot decode frames {min(indices)} to {max(indices)} of {len(self)}"
            raise VideoError(f"{where} ({first_line(error)}); the file may be truncated") from error

    def hold(self) -> "VideoReader":
        """Decode the whole video now, to read from memory from then on; raises VideoError if a frame fails."""
        frames = self.read(range(len(self)))
        self._decoder = SimpleNamespace(length=len(frames), read=lambda indices: frames[indices])
        return self


class _Decord:
    def __init__(self, path: Path):
        self._reader = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
        self.length, self.key_frames = len(self._reader), list(self._reader.get_key_indices())

    def read(self, indices: list[int]) -> torch.Tensor:
        return from_dlpack(self._reader.get_batch(indices).to_dlpack())  # where decord wrote them, no copy


class PyAVDecoder:
    """Frames by PyAV: those just read, or on from the last one, or from a key frame by its time, or the first frame."""

    def __init__(self, path: Path, length: int = 0, is_exact: bool = False):
        self.path, self.length, self.times, self.key_frames = path, length, {}, []
        self.packets, self.undecodable, self.end, self.sizes, self._last = 0, 0, 0, {}, {}
        if is_exact:
            self.length, self.times, self.key_frames = _number_packets(path)
        self._begin()

    def _begin(self) -> None:
        self.file = av.open(os.fspath(self.path), metadata_errors="replace")
        self.stream = self.file.streams.best("video")
        self.stream.codec_context.thread_count = 1
        self._scaler = av.video.reformatter.VideoReformatter()
        self._next, self._frames = 0, enumerate(self._decode())

    def read(self, indices: list[int]) -> torch.Tensor:
        """Give the frames of these numbers, repeats allowed: (len(indices), H, W, 3) uint8, RGB."""
        self._last = {i: self._last[i] if i in self._last else self._find(i) for i in sorted(set(indices))}
        return torch.from_numpy(np.stack([self._last[i] for i in indices]))

    def read_each(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Give the time of each frame, and the frame: (H, W, 3) uint8, RGB."""
        return ((frame.pts, self._picture(frame)) for _, frame in self._frames)

    def _find(self, wanted: int) -> np.ndarray:
        before, past = bisect(self.key_frames, wanted), bisect(self.key_frames, self._next)
        if before and (wanted < self._next or before > past):
            key = self.key_frames[before - 1]  # not the frame itself: a seek may end at the key frame after it
            self.file.seek([*self.times][key], stream=self.stream)
            self._frames = ((self.times[frame.pts], frame) for frame in self._decode())
        elif wanted < self._next:
            self._begin()
        number, frame = next(pair for pair in self._frames if pair[0] >= wanted)
        if number > wanted:
            raise LookupError(f"frame {wanted} is not found")
        self._next = wanted + 1
        return self._picture(frame)

    def _decode(self) -> Iterator[av.VideoFrame]:
        for packet in self.file.demux(self.stream):
            self.packets += packet.size > 0
            reads_on()
            if packet.pts is not None:
                self.end = max(self.end, packet.pts + (packet.duration or 0))
            try:
                for frame in packet.decode():
                    self.sizes[frame.width, frame.height] = None
                    yield frame
            except av.error.InvalidDataError:  # ffmpeg leaves such a packet out
                self.undecodable += 1

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to RGB in the size of the first one, upright."""
        picture = self._scaler.reformat(frame, *next(iter(self.sizes)), "rgb24").to_ndarray()
        if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
            a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32)  # x' = ax + cy, y' = bx + dy
            picture, signs = (picture, (d, a)) if a else (picture.swapaxes(0, 1), (b, c))
            picture = picture[:: np.sign(signs[0]) or 1, :: np.sign(signs[1]) or 1]
        return np.ascontiguousarray(picture)


def probe_video(path: Path, *, seen: Callable[[PyAVDecoder, int | None, np.ndarray], Any] = lambda *_: None) -> File:
    """Read every frame of a video by PyAV, in order, and say what it is; `seen` is told of each its time and picture.

    Raises: VideoError if no frame can be decoded, or more than a tenth of what should be there is not.
    """
    count = 0
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); generate or download it again")
    try:
        for moment, frame in (decoder := PyAVDecoder(path)).read_each():
            count += 1
            seen(decoder, moment, frame)
    except MemoryError:
        raise
    except Exception as error:  # PyAV raises AttributeError where there is no stream of pictures, and more
        fault = f"it cannot be read on after {count} frames" if count else "not a readable video"
        raise VideoError(f"{path}: {fault} ({first_line(error)})") from error
    _check_whole(path, decoder, count)
    rate, codec = decoder.stream.average_rate or decoder.stream.guessed_rate or 0, decoder.stream.codec_context.codec
    return File(count, round(float(rate), 3), *frame.shape[1::-1], codec.canonical_name, "pyav_in_order")


probe_once = remembered(1024)(probe_video)  # of files without an index


def _check_whole(path: Path, decoder: PyAVDecoder, frames: int) -> None:
    """Raise VideoError where too little of a video could be decoded, or less is there than its container announces."""
    stream, packets, size, announced = decoder.stream, decoder.packets, path.stat().st_size, _announced_bytes(path)
    if not frames or decoder.undecodable > (1 - _LEAST_SHARE) * packets:
        raise VideoError(f"{path}: {decoder.undecodable or packets} of its {packets} packets cannot be decoded")
    if size < _LEAST_SHARE * (announced or 0):
        raise VideoError(f"{path}: {size} of the {announced} bytes that the container announces; truncated")
    reached, duration = decoder.end - (stream.start_time or 0), stream.duration or float("inf")
    if announced is None and packets < _LEAST_SHARE * stream.frames and reached < _LEAST_SHARE * duration:
        raise VideoError(f"{path}: {packets} of the {stream.frames} frames that the container announces; truncated")


def _announced_bytes(path: Path) -> int | None:
    """Give the size that an AVI or Matroska file says it has, 0 where it was written as a stream; None for others."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"\x18\x53\x80\x67\x01") + 5  # before the size of all of Matroska's content
    if head.startswith(b"RIFF"):
        place, size, unknown = 8, int.from_bytes(head[4:8], "little"), 2**32 - 1
    elif head.startswith(b"\x1a\x45\xdf\xa3") and place > 4:
        place, size, unknown = place + 7, int.from_bytes(head[place : place + 7], "big"), 2**56 - 1
    else:
        return None
    return place + size if 0 < size < unknown else 0


@remembered(4096)  # about 20 kB for 300 frames
def _number_packets(path: Path) -> tuple[int, dict[int, int], list[int]]:
    """Go through all packets: how many frames there are, the number of each by its time, and those of key frames."""
    with av.open(os.fspath(path), metadata_errors="replace") as file:
        packets = [p for p in file.demux(file.streams.best("video")) if p.size and not p.is_discard]
        times = [p.dts if p.pts is None else p.pts for p in packets]
        numbers = {moment: i for i, moment in enumerate(sorted(times))}
        key_frames = sorted(numbers[moment] for moment, p in zip(times, packets, strict=True) if p.is_keyframe)
        return len(packets), numbers, key_frames


def read_stream(source: str | Path) -> Iterator[np.ndarray]:
    """Read frames one by one for as long as they come, (H, W, 3) uint8, RGB; VideoError where that fails."""
    try:
        yield from (frame for _, frame in PyAVDecoder(source).read_each())
    except Exception as error:
        raise VideoError(f"{source}: not a readable video ({first_line(error)})") from error


def encode_h264(frames: np.ndarray, *, fps: int, crf: int, gop_frames: int) -> bytes:
    """Encode frames (T, H, W, 3) uint8, H and W even, as an H.264 `.mp4` in memory: the same bytes for the same frames.

    Raises: ValueError if the frames have another shape, type or an odd size.
    """
    if frames.ndim != 4 or len(frames) == 0 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (T, H, W, 3), not {frames.dtype} {frames.shape}")
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with 4:2:0 chroma needs even sizes, not {height} x {width}")
    options = {"crf": str(crf), "preset": "superfast", "tune": "fastdecode", "threads": "1", "g": str(gop_frames)}
    with av.open(buffer := io.BytesIO(), mode="w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options=options | {"keyint_min": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def first_line(error: Exception) -> str:
    """Give the first line of a message, without the time and place in the source that decord puts in front."""
    line = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"^(\[[\d:]+\] \S+:\d+: )+", "", line) or type(error).__name__
