"""Tests of faster_lib.data.scan and of decoding: whatever a file holds, the scan survives it and says what it is."""

import csv
import logging
import os
import struct
import time
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from faster_lib.data import scan as module
from faster_lib.data.datasets import RandomClips, VideoClips, VideoList, collate
from faster_lib.data.layouts import video_files
from faster_lib.data.scan import _read_table, index_path, scan, summarise
from faster_lib.paths import ROOT

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real videos, which are not in the repository")


def pictures(number: int, height: int = 64, width: int = 80) -> np.ndarray:
    """Frames of which no two are alike, with edges that move."""
    rng = np.random.default_rng(number)
    tile = rng.integers(0, 255, (height // 8 + 1, width // 10 + 1, 3)).repeat(8, 0).repeat(10, 1)[:height, :width]
    return np.stack([np.clip(np.roll(tile, i, 1) + i % 7 * 5, 0, 255) for i in range(number)]).astype(np.uint8)


def write(path, codec, frames, *, pixels="yuv420p", times_ms=None, **options) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={k.replace("_", "-"): v for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[i]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def write_audio(path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def turned(content: bytes) -> bytes:
    """Write a quarter turn into the track header of an MP4."""
    start = content.index(b"tkhd") + 44
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    return content[:start] + matrix + content[start + 36 :]


# name: frames and size (width, height) of the readable ones. All have 40 frames of 80 x 64 unless said otherwise.
READABLE = {
    **dict.fromkeys(["h264.mp4", "h264.mkv", "hevc.mp4", "av1.mp4", "av1.mkv", "vp9.webm"], (40, (80, 64))),
    **dict.fromkeys(["mpeg4.avi", "10bit.mp4", "variable.mp4", "really_an_mp4.avi", "MIXED é.MP4"], (40, (80, 64))),
    **{"odd.mp4": (40, (81, 63)), "one.mp4": (1, (80, 64)), "turned.mp4": (40, (64, 80))},
    "long.mp4": (6000, (40, 32)),
}
CORRUPT = {  # and what the reason says
    "cut.mp4": "not a readable video",
    "cut.avi": "of the 40 frames that the container announces",
    "cut.mkv": "of the 40 frames that the container announces",
    "empty.mp4": "0 bytes",
    "zeros.mp4": "not a readable video",
    "flipped.mp4": "not a readable video",
    "text.mp4": "not a readable video",
    "sound.mp4": "not a readable video",
}


TIMES_MS = np.cumsum(np.random.default_rng(0).integers(10, 90, 40))  # of the frames of variable.mp4


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Write one file of each kind."""
    folder, frames = tmp_path_factory.mktemp("odd"), pictures(40)
    for name in ("h264.mp4", "h264.mkv"):
        write(folder / name, "libx264", frames, g="12")
    write(folder / "hevc.mp4", "libx265", frames, x265_params="log-level=0")
    for name in ("av1.mp4", "av1.mkv"):
        write(folder / name, "libsvtav1", frames, svtav1_params="lp=1")
    write(folder / "vp9.webm", "libvpx-vp9", frames)
    write(folder / "mpeg4.avi", "mpeg4", frames, g="12")
    write(folder / "10bit.mp4", "libx264", frames, pixels="yuv420p10le")
    write(folder / "variable.mp4", "libx264", frames, times_ms=TIMES_MS)
    write(folder / "odd.mp4", "libx264", pictures(40, 63, 81), pixels="yuv444p")
    write(folder / "one.mp4", "libx264", frames[:1])
    write(folder / "long.mp4", "libx264", pictures(6000, 32, 40), preset="ultrafast")
    plain = (folder / "h264.mp4").read_bytes()
    (folder / "turned.mp4").write_bytes(turned(plain))
    for name in ("really_an_mp4.avi", "MIXED é.MP4"):
        (folder / name).write_bytes(plain)
    for ending, source in (("mp4", "h264.mp4"), ("avi", "mpeg4.avi"), ("mkv", "h264.mkv")):
        content = (folder / source).read_bytes()
        (folder / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "flipped.mp4").write_bytes(plain[:4] + bytes(byte ^ 0xFF for byte in plain[4:40]) + plain[40:])
    (folder / "text.mp4").write_text("404 Not Found")
    write_audio(folder / "sound.mp4")
    return folder


def as_list(rows) -> VideoList:
    """The readable videos of an index, all of one class."""
    kept = {path: row for path, row in rows.items() if row.status == "readable"}
    frames, is_seekable = zip(*((row.frames, row.is_seekable) for row in kept.values()), strict=True)
    return VideoList(tuple(kept), (0,) * len(kept), ("a",), frames, is_seekable)


@pytest.fixture(scope="module")
def rows(odd, tmp_path_factory):
    """The index of one file of each kind, and of one that is not there."""
    return scan([*video_files(odd), odd / "absent.mp4"], odd, workers=2, runs=tmp_path_factory.mktemp("runs"))


def test_every_kind_of_file_is_read_whole_or_marked_with_a_reason(rows):
    found = {row.path: (row.frames, (row.width_px, row.height_px)) for row in rows.values() if row.status == "readable"}
    assert found == READABLE
    reasons = {row.path: row.reason for row in rows.values() if row.status == "corrupt"}
    assert reasons.keys() == CORRUPT.keys()
    assert all(CORRUPT[name] in reason for name, reason in reasons.items()), reasons
    assert [row.path for row in rows.values() if row.status == "missing"] == ["absent.mp4"]
    by_name = {row.path: row for row in rows.values()}
    codecs = {name: by_name[name].codec for name in ("av1.mkv", "hevc.mp4", "vp9.webm", "mpeg4.avi", "10bit.mp4")}
    assert list(codecs.values()) == ["av1", "hevc", "vp9", "mpeg4", "h264"]
    assert by_name["h264.mp4"].fps == 25 and by_name["h264.mp4"].duration_seconds == 1.6
    assert by_name["variable.mp4"].duration_seconds == pytest.approx((TIMES_MS[-1] - TIMES_MS[0]) / 1000, abs=0.1)
    assert by_name["h264.mp4"].sha256 == by_name["MIXED é.MP4"].sha256 != by_name["turned.mp4"].sha256


def decode_with_pyav(path) -> np.ndarray:
    with av.open(str(path)) as file:
        frames = list(file.decode(file.streams.best("video")))
    reformatter = av.video.reformatter.VideoReformatter()
    upright = (np.rot90(reformatter.reformat(f, format="rgb24").to_ndarray(), f.rotation // 90) for f in frames)
    return np.stack(list(upright))


# decord and PyAV convert more than 8 bits a colour along other ways; the mean difference of 255, and its bound.
MOST_MEAN_DIFFERENCE = {"10bit.mp4": 6.0, "h264_10bits.mp4": 6.0, "h265_10bits.mp4": 6.0}


def check_against_pyav(videos: VideoList, *, longest: int = 700) -> None:
    """Compare every video's frames with PyAV's: all of them in order, then some of them in any order."""
    for i, (path, length) in enumerate(zip(videos.paths, videos.frames, strict=True)):
        if length > longest:
            continue
        theirs = decode_with_pyav(path)
        assert 0 <= length - len(theirs) <= 1, path  # of an AVI of packed frames, decord gives the last one twice
        common, most = min(length, len(theirs)), MOST_MEAN_DIFFERENCE.get(path.name, 0.0)
        rng = np.random.default_rng(i)
        orders = [range(common), *(rng.integers(0, common, 5).tolist() for _ in range(3)), [common - 1, 0]]
        for order in orders:
            difference = np.abs(videos.open(i).read(list(order)).numpy().astype(int) - theirs[list(order)])
            assert difference.mean() <= most, f"{path}: {order}"


def test_decord_gives_the_frames_that_pyav_gives_in_any_order(rows):
    check_against_pyav(as_list(rows))


def test_the_frames_of_a_long_video_are_those_that_were_drawn(odd, rows):
    videos = as_list(rows)
    i = videos.paths.index(odd / "long.mp4")
    places = [5999, 17, 3210]
    difference = np.abs(videos.open(i).read(places).numpy().astype(int) - pictures(6000, 32, 40)[places])
    assert difference.mean() < 25  # other frames are 60 and more away


def test_a_video_that_is_not_seekable_is_decoded_from_its_beginning(odd, rows):
    videos = as_list({odd / "h264.mp4": rows[odd / "h264.mp4"]._replace(is_seekable=False)})
    video, exact = videos.open(0), as_list(rows).open(as_list(rows).paths.index(odd / "h264.mp4"))
    video.reader.seek(30)
    for order in ([30, 31, 2, 2], [0], [39, 38]):
        assert torch.equal(video.read(order), exact.read(order))


MUTATIONS = 28


def mutate(content: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """Damage a file: flip bits, cut it, blank or repeat a stretch, swap two, or write over the header."""
    data, place, length = bytearray(content), int(rng.integers(len(content))), int(rng.integers(1, len(content) // 4))
    if kind == 0:
        for i in rng.integers(0, len(data), rng.integers(1, 40)):
            data[i] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[max(place, 1) :]
    elif kind == 2:
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == 3:
        data[place:place] = data[place : place + length]
    elif kind == 4:
        data = data[place:] + data[:place]
    else:
        for i in rng.integers(0, min(800, len(data)), 6):
            data[i] = int(rng.integers(256))
    return bytes(data)


def test_no_mutated_file_stops_the_scan_or_what_comes_after_it(odd, rows, tmp_path, make_data):
    folder = tmp_path / "mutated"
    folder.mkdir()
    for name in sorted(READABLE.keys() - {"long.mp4", "MIXED é.MP4", "really_an_mp4.avi"}):
        content = (odd / name).read_bytes()
        for number in range(MUTATIONS):
            changed = mutate(content, np.random.default_rng([number, len(content)]), number % 6)
            (folder / f"{number:02d}_{name}").write_bytes(changed)
    found = scan(video_files(folder), folder, workers=2, runs=tmp_path / "runs", time_limit=30)
    assert len(found) >= 300
    count = Counter(row.status for row in found.values())
    assert count.keys() == {"readable", "corrupt"} and min(count.values()) > 30, count
    assert all(row.reason for row in found.values() if row.status == "corrupt")
    videos = as_list(found)
    clips = dict(clip_frames=8, seed=0)
    for i in range(len(videos)):  # what training and evaluation do
        assert not collate([RandomClips(videos, make_data(), clips_per_video=2, **clips)[0, i]]).skipped
        VideoClips(videos, make_data(), num_clips=3, views=0, **clips)[i]


def read_or_die(path, row):
    """Stand in for the reading of a file, with a decoder that aborts, hangs or has no memory left."""
    if "abort" in path.name:
        os.abort()
    if "hang" in path.name:
        time.sleep(600)
    if "memory" in path.name:
        raise MemoryError
    return row._replace(status="readable", frames=9, sha256="0" * 16)


def test_a_decoder_that_aborts_or_hangs_marks_its_file_and_no_other(tmp_path, monkeypatch):
    names = [f"{i}{kind}.mp4" for i in range(3) for kind in ("abort", "fine", "hang")]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(module, "_read_file", read_or_die)
    start = time.perf_counter()
    found = scan([tmp_path / name for name in names], tmp_path, workers=2, runs=tmp_path / "runs", time_limit=1.0)
    assert time.perf_counter() - start < 300  # the hanging ones would take 1800 s
    for path, row in found.items():
        wanted = {"a": ("corrupt", "aborted (exit code -6)"), "f": ("readable", ""), "h": ("corrupt", "more than 1 s")}
        status, reason = wanted[path.name[1]]
        assert row.status == status and reason in row.reason


def test_a_row_cut_off_at_any_byte_is_read_again(tmp_path):
    folder, runs = tmp_path / "videos", tmp_path / "runs"
    folder.mkdir()
    paths = [folder / "0.mp4", folder / "1.mp4"]
    write(paths[0], "libx264", pictures(8))
    paths[1].write_bytes(b"no video")
    wanted = scan(paths, folder, workers=1, runs=runs)
    table = index_path(folder, runs)
    whole = table.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole)):
        table.write_bytes(whole[:end])
        assert _read_table(table) == {"0.mp4": wanted[paths[0]]}
    table.write_bytes(whole)
    assert _read_table(table) == {row.path: row for row in wanted.values()}


def test_an_interrupted_scan_goes_on_and_only_changed_files_are_read_again(tmp_path, monkeypatch):
    folder, runs = tmp_path / "videos", tmp_path / "runs"
    folder.mkdir()
    paths = [folder / f"{i}.mp4" for i in range(4)]
    for path in paths:
        write(path, "libx264", pictures(8))
    scan(paths[:2], folder, workers=1, runs=runs)
    with index_path(folder, runs).open("a") as file:
        file.write("3.mp4,readable,,8,25")  # an interruption in the middle of a line
    for path in paths[:2]:  # what is known is not read again: the file says other things now, under the same time
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = scan(paths, folder, workers=1, runs=runs)
    assert {row.status for row in found.values()} == {"readable"} and found[paths[3]].frames == 8
    with index_path(folder, runs).open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header[0] == "path" and [line[0] for line in lines] == [path.name for path in paths]
    os.utime(paths[0])
    paths[1].unlink()
    found = scan(paths, folder, workers=1, runs=runs)
    assert [found[path].status for path in paths] == ["corrupt", "missing", "readable", "readable"]
    monkeypatch.setattr(module, "ProcessPool", None)  # no process is needed where all is known
    assert scan(paths, folder, workers=1, runs=runs) == found


def test_the_summary_counts_each_split_and_names_what_is_missing_corrupt_or_in_two_splits(odd, rows):
    train = VideoList((odd / "h264.mp4", odd / "one.mp4", odd / "absent.mp4"), (0, 0, 0), ("a",))
    test = VideoList((odd / "MIXED é.MP4", odd / "cut.avi"), (0, 0), ("a",))
    said = summarise({"train": train, "test": test}, {path: rows[path] for path in (*train.paths, *test.paths)})
    lines = {line.split()[0]: line.split() for line in said.splitlines()}
    assert lines["train"] == ["train", "3", "2", "1", "0", "1,", "1,", "1"]
    assert lines["test"] == ["test", "2", "1", "0", "1", "0,", "0,", "0"]
    assert "codec: h264 (3)" in said and "unreadable: 2" in said
    assert "  missing: absent.mp4: no such file" in said and "  corrupt: cut.avi: " in said
    assert "the same content in two splits: 1\n  train: h264.mp4, test: MIXED é.MP4" in said


def test_the_command_indexes_a_profile_s_videos_and_says_what_there_is(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    with pytest.raises(SystemExit, match=r"tiny.yaml is of generated videos"):
        module.main(["--profile", "tiny"])
    monkeypatch.setattr(module, "folder_of", lambda root: tmp_path / root)
    with pytest.raises(SystemExit, match="tank_state"):
        module.main(["--profile", "tank_state"])


@needs_shared
def test_every_real_file_at_hand_is_indexed_and_decoded_as_pyav_decodes_it(tmp_path):
    found = {}
    for folder in ("ucf101_samples", "hmdb51_samples", "odd_files"):
        found |= scan(video_files(SHARED / folder), SHARED, workers=2, runs=tmp_path)
    assert len(found) == 15 + 5 + 25 and {row.status for row in found.values()} == {"readable"}
    inexact = Counter(row.codec for row in found.values() if not row.is_seekable)
    assert inexact == {"mpeg4": 15 + 5 + 14, "msmpeg4v3": 2, "hevc": 1}
    check_against_pyav(as_list({path: row for path, row in found.items() if row.width_px < 1000}))
