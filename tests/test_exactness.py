"""Tests that the kit reads what ffmpeg shows, over codecs, containers and what their files say that is not so."""

import io
import struct

import av
import numpy as np
import pytest

from faster_lib.data.datasets import Video
from tests.test_index import as_list, check_against_pyav, pictures, write
from workflow.lists import video_files
from workflow.scan import scan

FRAMES, SIZE = 30, (48, 64)  # height, width
B, OPEN = {"bf": "3", "g": "8"}, {"x264_params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}
X265 = {"x265_params": "log-level=0:keyint=8"}
# The name of each file, and how it is written: codec, options of codec and container, pixels, frames and size.
FILES = {
    **{f"h264{ending}": ("libx264", B) for ending in (".mp4", ".mov", ".mkv", ".avi", ".flv", ".ts", ".MTS", ".h264")},
    **{f"open{ending}": ("libx264", OPEN) for ending in (".mp4", ".mkv", ".ts")},
    **{f"hevc{ending}": ("libx265", X265) for ending in (".mp4", ".mkv", ".ts")},
    "hevc_open.mp4": ("libx265", {"x265_params": "log-level=0:keyint=8:open-gop=1:bframes=3"}),
    **{f"av1{ending}": ("libsvtav1", {"svtav1_params": "lp=1"}) for ending in (".mp4", ".webm")},
    "vp8.webm": ("libvpx", {"g": "8"}),
    **{f"vp9{ending}": ("libvpx-vp9", {"g": "8"}) for ending in (".webm", ".mp4")},
    **{f"mpeg1{ending}": ("mpeg1video", {"bf": "2", "g": "8"}) for ending in (".mpg", ".m1v")},
    **{f"mpeg2{ending}": ("mpeg2video", {"bf": "2", "g": "8"}) for ending in (".VOB", ".ts", ".mkv")},
    **{f"mpeg4{ending}": ("mpeg4", {"g": "8"}) for ending in (".avi", ".mp4", ".3g2")},
    "mpeg4_b.avi": ("mpeg4", {"bf": "2", "g": "8"}),
    "mjpeg.avi": ("mjpeg", {}, {}, "yuvj420p"),
    "prores.mov": ("prores_ks", {}, {}, "yuv422p10le"),
    "theora.ogv": ("libtheora", {}),
    "wmv2.wmv": ("wmv2", {"g": "8"}),
    "loop.gif": ("gif", {}, {}, "rgb8"),
    "fragments.mp4": ("libx264", B, {"movflags": "frag_keyframe+empty_moov"}),
    "ten_bits.mkv": ("libx264", B, {}, "yuv420p10le"),
    **{f"wide_{width}.mp4": ("libx264", B, {}, "yuv420p", FRAMES, (48, width)) for width in (32, 48, 96)},
    "odd.mp4": ("libx264", B, {}, "yuv444p", FRAMES, (63, 81)),
    **{f"only_{number}.mp4": ("libx264", B, {}, "yuv420p", number) for number in (1, 2, 3)},
}


def remux(source, target, *, first: int = 0, ticks=None, container=None) -> None:
    """Copy packets, with frame `first` at time 0, or at other times; into a pipe where a container is named."""
    out = Pipe(target) if container else str(target)
    with av.open(str(source)) as given, av.open(out, "w", format=container) as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        step = int(1 / (stream.time_base * stream.average_rate))
        for packet in given.demux(stream):
            if packet.dts is not None:
                for name in ("pts", "dts"):
                    at = getattr(packet, name)
                    setattr(packet, name, at - first * step if ticks is None else ticks[round(at / step)] * step)
                packet.stream = copy
                made.mux(packet)


class Pipe(io.RawIOBase):
    """What cannot be gone back in, so that the container does not know its size."""

    def __init__(self, path):
        self.path = path

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        with self.path.open("ab") as file:
            return file.write(bytes(content))


def put_matrix(content: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Write how an MP4 is to be turned and mirrored into the header of its track."""
    start = content.index(b"tkhd") + 44
    return (
        content[:start]
        + struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
        + content[start + 36 :]
    )


TURNS = {"quarter": (0, 1, -1, 0), "half": (-1, 0, 0, -1), "back": (0, -1, 1, 0)}
MIRRORS = {"mirrored": (-1, 0, 0, 1), "upside_down": (1, 0, 0, -1), "transposed": (0, 1, 1, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write one file of each kind that this build of PyAV can write."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, (codec, options, *more) in FILES.items():
        file_options, pixels, number, size = (*more, *({}, "yuv420p", FRAMES, SIZE)[len(more) :])
        if codec in av.codecs_available:
            write(folder / name, codec, pictures(number, *size), pixels=pixels, file_options=file_options, **options)
    plain = (folder / "h264.mp4").read_bytes()
    for name, matrix in TURNS.items():
        (folder / f"{name}.mp4").write_bytes(put_matrix(plain, *matrix))
    remux(folder / "h264.mp4", folder / "trimmed.mp4", first=11)
    remux(folder / "h264.mp4", folder / "late.mkv", first=-2500)
    remux(folder / "mpeg4.avi", folder / "piped.avi", container="avi")
    remux(folder / "h264.ts", folder / "wrapped.ts", first=20 - round(2**33 / 90000 * 25))
    write(folder / "plain.mp4", "libx264", pictures(FRAMES, *SIZE), bf="0", g="8")
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, FRAMES)).tolist()
    for source, ending in (("plain.mp4", ".mkv"), ("plain.mp4", ".mp4"), ("plain.mp4", ".flv"), ("mpeg4.avi", ".avi")):
        remux(folder / source, folder / f"variable{ending}", ticks=times)
    return folder


def test_every_kind_of_file_is_read_to_the_bit_as_ffmpeg_shows_it_in_any_order(folder, tmp_path):
    found = scan(video_files(folder), folder, tmp_path / "memory.csv", workers=2)
    assert {path.name for path in found} == {path.name for path in folder.iterdir()}
    assert {path.name: file.problem for path, file in found.items() if file.problem} == {}
    check_against_pyav(as_list(found))
    frames = {path.name: file.frames for path, file in found.items()}
    assert frames["trimmed.mp4"] == FRAMES - 11 and [frames[f"only_{i}.mp4"] for i in (1, 2, 3)] == [1, 2, 3]
    assert {name: number for name, number in frames.items() if number != FRAMES}.keys() == {
        "trimmed.mp4", "only_1.mp4", "only_2.mp4", "only_3.mp4"
    }  # fmt: skip
    decoders = {path.name: file.decoder for path, file in found.items()}
    some = {"h264.mp4": "decord", "open.mp4": "pyav", "trimmed.mp4": "pyav", "h264.h264": "pyav_in_order"}
    assert some.items() <= decoders.items()


def test_a_file_that_says_so_is_shown_turned_or_mirrored(folder, tmp_path):
    plain = Video(folder / "h264.mp4").open().read([0]).numpy()[0]
    wanted = {"quarter": np.rot90(plain, -1), "half": np.rot90(plain, 2), "back": np.rot90(plain)}
    wanted |= {"mirrored": plain[:, ::-1], "upside_down": plain[::-1], "transposed": plain.swapaxes(0, 1)}
    for name, matrix in (TURNS | MIRRORS).items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(put_matrix((folder / "h264.mp4").read_bytes(), *matrix))
        assert np.array_equal(Video(path).open().read([0]).numpy()[0], wanted[name]), name
