"""What reading a whole video file shows: how many frames it has, and which decoder gives them rightly in any order."""

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from faster_lib.data.video import File, PyAVDecoder, VideoError, VideoReader, first_line

_LEAST_SHARE = 0.9  # of what a container announces, and of its packets, that must be there and decodable


def probe_video(path: Path, *, seen: Callable[[], Any] = lambda: None, with_decord: bool = True) -> File:
    """Read every frame of a video, say what it is, and find the decoder that reads it rightly in any order.

    Calls `seen` after each frame or few. decord need not be tried, which ends or hangs the process at some files.
    Raises: VideoError if no frame can be decoded, or more than a tenth of what should be there is not.
    """
    times, sums = [], []
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); generate or download it again")
    try:
        decoder = PyAVDecoder(path)
        for moment, frame in decoder.read_each():
            times.append(moment)
            sums.append(zlib.crc32(frame))
            seen()
    except MemoryError:
        raise
    except Exception as error:  # PyAV raises AttributeError where there is no stream of pictures, and more
        fault = f"it cannot be read on after {len(sums)} frames" if sums else "not a readable video"
        raise VideoError(f"{path}: {fault} ({first_line(error)})") from error
    _check_whole(path, decoder, len(sums))
    stream, size = decoder.stream, frame.shape[1::-1]
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    file = File(len(sums), round(rate, 3), *size, stream.codec_context.codec.canonical_name, "pyav_in_order")
    for name in ("decord", "pyav")[not with_decord :] if _has_frames_as_packets(decoder, times) else ():
        if _reads_rightly(path, better := file._replace(decoder=name), sums, seen):
            return better
    return file


@lru_cache(1024)
def probe_once(path: Path, *_as_long_as: int) -> File:
    """Probe a file without an index, once in this process as long as its size and time of change stay the same."""
    return probe_video(path)


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


def _has_frames_as_packets(decoder: PyAVDecoder, times: Sequence) -> bool:
    """Whether each packet is one frame with its time; elsewhere decord gives other frames now and then out of order."""
    try:
        return len(decoder.sizes) == 1 and [*PyAVDecoder(decoder.path, is_exact=True).times] == times
    except TypeError:  # packets without times
        return False


def _reads_rightly(path: Path, file: File, sums: Sequence[int], seen: Callable[[], Any]) -> bool:
    """Tell whether a decoder gives the frames of these sums: all in order, then about each key frame, up and down."""
    try:
        one, other, last = VideoReader(path, file), VideoReader(path, file), file.frames - 1
        near = sorted({min(max(key + d, 0), last) for key in [*one.key_frames, last // 2, last] for d in (-1, 0, 1)})
        orders = ((one, range(last + 1), one.at_once), (other, near, one.at_once), (one, near[::-1], 1))
        for reader, part in ((r, p[i : i + n]) for r, p, n in orders for i in range(0, len(p), n)):
            if [zlib.crc32(frame) for frame in reader.read(part).numpy()] != [sums[i] for i in part]:
                return False
            seen()
    except VideoError:
        return False
    return True
