"""What reading a whole video file from its beginning shows: its frames, and whether it is all there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faster_lib.data.video import File, PyAVDecoder, VideoError, first_line
from faster_lib.store import remembered

_LEAST_SHARE = 0.9  # of what a container announces, and of its packets, that must be there and decodable


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
