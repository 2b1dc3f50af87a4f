"""Tests of the index, of workflow.scan and of decoding: an index says what each file is, or why it is unused."""

import errno
import logging
import os
import signal
import struct
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from faster_lib.data.datasets import Census, RandomClips, Video, VideoClips, VideoList
from faster_lib.data.index import Indexed, clips_key_facts, load_videos, read_index, videos_key, write_index
from faster_lib.data.video import File, VideoError, VideoReader
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile, parse_profile
from workflow import index as command
from workflow import scan as module
from workflow.index import index_videos, summarise
from workflow.lists import video_files
from workflow.scan import _read_memory, scan

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real videos, which are not in the repository")


def pictures(number: int, height: int = 64, width: int = 80) -> np.ndarray:
    """Frames of which no two are alike, with edges that move."""
    rng = np.random.default_rng(number)
    tile = rng.integers(0, 255, (height // 8 + 1, width // 10 + 1, 3)).repeat(8, 0).repeat(10, 1)[:height, :width]
    return np.stack([np.clip(np.roll(tile, i, 1) + i % 7 * 5, 0, 255) for i in range(number)]).astype(np.uint8)


def write(path, codec, frames, *, pixels="yuv420p", times_ms=None, file_options=None, **options) -> None:
    with av.open(str(path), "w", options=file_options or {}) as file:
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
    "cut.avi": "bytes that the container announces; truncated",
    "cut.mkv": "bytes that the container announces; truncated",
    "cut_front.mp4": "of the 40 frames that the container announces; truncated",
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
    write(folder / "cut_front.mp4", "libx264", frames, file_options={"movflags": "faststart"})
    content = (folder / "cut_front.mp4").read_bytes()
    (folder / "cut_front.mp4").write_bytes(content[: len(content) * 2 // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "flipped.mp4").write_bytes(plain[:4] + bytes(byte ^ 0xFF for byte in plain[4:40]) + plain[40:])
    (folder / "text.mp4").write_text("404 Not Found")
    write_audio(folder / "sound.mp4")
    return folder


def as_list(files: dict) -> VideoList:
    """The readable files of a scan, all of one class."""
    kept = {path: file for path, file in files.items() if not file.problem}
    return VideoList(tuple(Video(path, 0, file) for path, file in kept.items()), ("a",))


def read(video: Video, indices) -> torch.Tensor:
    return video.open().read(list(indices))


@pytest.fixture(scope="module")
def files(odd, tmp_path_factory):
    """What a scan says of one file of each kind, and of one that is not there."""
    memory = tmp_path_factory.mktemp("runs") / "memory.csv"
    return scan([*video_files(odd), odd / "absent.mp4"], odd, memory, workers=2)


def test_every_kind_of_file_is_read_whole_or_marked_with_a_reason(files):
    by_name = {path.name: file for path, file in files.items()}
    found = {n: (file.frames, (file.width_px, file.height_px)) for n, file in by_name.items() if not file.problem}
    assert found == READABLE
    reasons = {name: file.problem for name, file in by_name.items() if file.problem.startswith("corrupt: ")}
    assert reasons.keys() == CORRUPT.keys()
    assert all(CORRUPT[name] in reason for name, reason in reasons.items()), reasons
    assert by_name["absent.mp4"] == File(problem="missing: no such file")
    codecs = {name: by_name[name].codec for name in ("av1.mkv", "hevc.mp4", "vp9.webm", "mpeg4.avi", "10bit.mp4")}
    assert list(codecs.values()) == ["av1", "hevc", "vp9", "mpeg4", "h264"]
    decoders = {name: by_name[name].decoder for name in ("h264.mp4", "10bit.mp4", "cut.mp4")}
    assert list(decoders.values()) == ["decord", "pyav", ""]  # the two convert 10 bits to other colours
    assert by_name["h264.mp4"].fps == 25
    seconds = (TIMES_MS[-1] - TIMES_MS[0]) / 1000
    assert 40 / by_name["variable.mp4"].fps == pytest.approx(seconds, abs=0.1)
    assert by_name["h264.mp4"].sha256 == by_name["MIXED é.MP4"].sha256 != by_name["turned.mp4"].sha256
    assert all(file.bytes == path.stat().st_size for path, file in files.items() if path.name != "absent.mp4")


def decode_with_pyav(path) -> np.ndarray:
    with av.open(str(path)) as file:
        frames = list(file.decode(file.streams.best("video")))
    reformatter = av.video.reformatter.VideoReformatter()
    upright = (np.rot90(reformatter.reformat(f, format="rgb24").to_ndarray(), f.rotation // 90) for f in frames)
    return np.stack(list(upright))


def check_against_pyav(videos: VideoList, *, longest: int = 700) -> None:
    """Compare every video's frames with PyAV's, to the bit: all of them in order, then some of them in any order."""
    for i, video in enumerate(videos.videos):
        path, length = video.path, video.file.frames
        if length > longest:
            continue
        theirs, rng = decode_with_pyav(path), np.random.default_rng(i)
        assert length == len(theirs), path
        for order in [range(length), *(rng.integers(0, length, 5).tolist() for _ in range(3)), [length - 1, 0]]:
            assert np.array_equal(read(video, order), theirs[list(order)]), f"{path}: {order} by {video.file.decoder}"


def test_frames_are_those_of_pyav_in_any_order(files):
    check_against_pyav(as_list(files))


def test_the_frames_of_a_long_video_are_those_that_were_drawn(odd, files):
    (video,) = as_list({odd / "long.mp4": files[odd / "long.mp4"]}).videos
    places = [5999, 17, 3210]
    difference = np.abs(read(video, places).numpy().astype(int) - pictures(6000, 32, 40)[places])
    assert difference.mean() < 25  # other frames are 60 and more away


@pytest.mark.parametrize("decoder", ["pyav", "pyav_in_order"])
def test_either_way_of_pyav_reads_the_frames_asked_for_from_a_reader_in_any_state(odd, files, decoder):
    path = odd / "h264.mp4"
    file, exact = files[path], Video(path, 0, files[path]).open()
    reader = Video(path, 0, file._replace(decoder=decoder)).open()
    for order in ([30, 31, 2, 2], [0], [39, 38], range(40), [12], [11, 12, 13], [5]):
        assert torch.equal(reader.read(order), exact.read(order))
    with pytest.raises(VideoError, match=r"cannot decode frames 39 to 40 of 40"):
        reader.read([39, 40])


def test_large_frames_are_cut_a_few_at_a_time_with_the_same_result(odd, files, make_data, monkeypatch):
    data = make_data(train_short_side_px=(40, 58), flip=True, crop_px=33)
    videos = as_list({path: files[path] for path in (odd / "h264.mp4", odd / "10bit.mp4")})
    sets = [RandomClips(videos, data, clip_frames=16, clips_per_video=2, seed=0)]
    sets += [VideoClips(videos, data, clip_frames=16, num_clips=4, views=views, seed=0) for views in (0, 2)]
    whole = [[clips[(0, i) if clips is sets[0] else i] for i in range(2)] for clips in sets]
    monkeypatch.setattr("faster_lib.data.video.HELD_BYTES", 3 * 80 * 64 * 3)
    asked, read_some = [], VideoReader.read
    monkeypatch.setattr(VideoReader, "read", lambda self, ask: (asked.append(len(ask)), read_some(self, ask))[1])
    for clips, items in zip(sets, whole, strict=True):
        for i, item in enumerate(items):
            assert torch.equal(clips[(0, i) if clips is sets[0] else i].clips, item.clips)
    assert max(asked) == 3


def test_the_packets_of_a_file_are_gone_through_once_in_a_process_and_again_once_it_changes(
    odd, files, tmp_path, monkeypatch
):
    path, opened, open_file = tmp_path / "any.mp4", [], av.open
    path.write_bytes((odd / "10bit.mp4").read_bytes())
    video, demuxed = Video(path, 0, files[odd / "10bit.mp4"]), []

    class Watched:
        def __init__(self, *arguments, **options):
            self.file = open_file(*arguments, **options)
            opened.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            demuxed.extend([path] * (name == "demux"))
            return getattr(self.file, name)

    monkeypatch.setattr(av, "open", Watched)
    readers = [video.open() for _ in range(3)]  # a reader goes through packets of its own only when it reads
    assert (len(opened), len(demuxed)) == (1 + 3, 1)
    assert torch.equal(readers[0].read([30, 5]), readers[2].read([30, 5])) and len(demuxed) > 1
    demuxed.clear()
    os.utime(path)
    assert len(video.open()) == len(video.open()) == 40 and len(demuxed) == 1


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


def test_no_mutated_file_stops_the_scan_or_what_comes_after_it(odd, tmp_path, make_data):
    folder = tmp_path / "mutated"
    folder.mkdir()
    for name in sorted(READABLE.keys() - {"long.mp4", "MIXED é.MP4", "really_an_mp4.avi"}):
        content = (odd / name).read_bytes()
        for number in range(MUTATIONS):
            changed = mutate(content, np.random.default_rng([number, len(content)]), number % 6)
            (folder / f"{number:02d}_{name}").write_bytes(changed)
    found = scan(video_files(folder), folder, tmp_path / "memory.csv", workers=2, limit_seconds=30)
    assert len(found) >= 300
    count = Counter(file.problem.split(": ")[0] for file in found.values())
    few = count.pop("unread", 0)  # where damage makes a file ask for more memory than there is
    assert count.keys() == {"", "corrupt"} and min(count.values()) > 30 and few < 10, count
    assert all(len(file.problem) > len("corrupt: ") for file in found.values() if file.problem)
    videos = as_list(found)
    clips = dict(clip_frames=8, seed=0)
    for i in range(len(videos)):  # what training and evaluation do
        assert not RandomClips(videos, make_data(), clips_per_video=2, **clips).load_batch([(0, i)]).skipped
        VideoClips(videos, make_data(), num_clips=3, views=0, **clips)[i]


READ_FILE = module._read_file


def probe_or_die(path, *, seen, with_decord):
    """Stand in for the reading of a file, with a decoder that aborts, hangs or has no memory left."""
    kind = path.stem[1:]
    time.sleep(0.3)  # Pebble 5.2.3 loses a task whose process ends before it has noted who has it
    if kind == "abort" or (kind == "decord" and with_decord):
        os.abort()
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        raise MemoryError
    for _ in range(6 if kind == "slow" else 1):  # it takes longer than the limit, and a frame comes in time
        time.sleep(600 if kind == "hang" else 0.6)
        seen()
    return File(9)


def read_or_die(*arguments):
    module.choose_decoder = probe_or_die
    return READ_FILE(*arguments)


def test_a_decoder_that_dies_or_hangs_marks_its_file_alone_and_verdicts_of_the_machine_are_not_kept(
    tmp_path, monkeypatch
):
    wanted = {
        **{"fine": "", "slow": "", "decord": "", "abort": "corrupt: the decoder aborted (exit code -6)"},
        **{"hang": "unread: no frame came in time", "memory": "unread: MemoryError"},
        "killed": "unread: the system ended its decoder, as it does where memory is short",
    }
    paths = [tmp_path / f"{i}{kind}.mp4" for i in range(2) for kind in wanted]
    for path in paths:
        path.write_bytes(b"x")
    monkeypatch.setattr(module, "_read_file", read_or_die)
    found = scan(paths, tmp_path, tmp_path / "memory.csv", workers=2, limit_seconds=3.0)
    assert {path: file.problem for path, file in found.items()} == {path: wanted[path.stem[1:]] for path in paths}
    kept = {path.name for path in paths if not wanted[path.stem[1:]].startswith("unread")}
    assert _read_memory(tmp_path / "memory.csv").keys() == kept
    monkeypatch.setattr(module, "_read_file", READ_FILE)
    again = scan(paths, tmp_path, tmp_path / "memory.csv", workers=2)
    assert all("not a readable video" in again[path].problem for path in paths if path.name not in kept)


def test_a_failing_disk_is_not_a_missing_file(tmp_path, monkeypatch):
    path, tries, look = tmp_path / "a.mp4", [], Path.stat
    write(path, "libx264", pictures(8))

    def stat(self, **options):
        if self.suffix == ".mp4":
            tries.append(self)
            if len(tries) <= failures:
                raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return look(self, **options)

    monkeypatch.setattr("faster_lib.data.video._WAITS_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(Path, "stat", stat)
    failures = 2
    assert scan([path], tmp_path, tmp_path / "memory.csv", workers=1)[path].frames == 8
    tries.clear()
    failures = 99
    with pytest.raises(OSError, match=r"Stale file handle: .*a.mp4"):
        scan([path], tmp_path, tmp_path / "memory.csv", workers=1)
    assert len(tries) == 3


def test_a_row_cut_off_at_any_byte_is_read_again(tmp_path):
    paths, memory = [tmp_path / "0.mp4", tmp_path / "1.mp4"], tmp_path / "memory.csv"
    write(paths[0], "libx264", pictures(8))
    paths[1].write_bytes(b"no video")
    wanted = scan(paths, tmp_path, memory, workers=1)
    whole = memory.read_bytes()
    rows = {path.name: (path.stat().st_mtime_ns, wanted[path]) for path in paths}
    assert _read_memory(memory) == rows
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    assert whole[:last].startswith(b"0.mp4") or whole[:last].startswith(b"1.mp4")
    kept = whole[:last].decode().split(",")[0]
    for end in range(last, len(whole)):
        memory.write_bytes(whole[:end])
        assert _read_memory(memory) == {kept: rows[kept]}
    for place in range(len(whole)):  # a flipped bit anywhere: its row is lost, or a bit more, and none is read wrongly
        memory.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert _read_memory(memory).items() <= rows.items()


def test_an_interrupted_scan_goes_on_and_only_changed_files_are_read_again(tmp_path, monkeypatch):
    paths, memory = [tmp_path / f"{i}.mp4" for i in range(4)], tmp_path / "memory.csv"
    for path in paths:
        write(path, "libx264", pictures(8))
    scan(paths[:2], tmp_path, memory, workers=1)
    with memory.open("a") as file:
        file.write("3.mp4,17,8,25")  # an interruption in the middle of a line
    for path in paths[:2]:  # what is known is not read again: the file says other things now, under the same time
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = scan(paths, tmp_path, memory, workers=1)
    assert not any(file.problem for file in found.values()) and found[paths[3]].frames == 8
    assert sorted(_read_memory(memory)) == [path.name for path in paths]
    os.utime(paths[0])
    paths[1].unlink()
    found = scan(paths, tmp_path, memory, workers=1)
    assert [found[path].problem.split(":")[0] for path in paths] == ["corrupt", "missing", "", ""]
    monkeypatch.setattr(module, "ProcessPool", None)  # no process is needed where all is known
    assert scan(paths, tmp_path, memory, workers=1) == found


def test_the_summary_counts_each_split_and_names_what_is_missing_corrupt_or_in_two_splits(odd, files):
    of_split = {"train": ("h264.mp4", "one.mp4", "absent.mp4"), "test": ("MIXED é.MP4", "cut.avi")}
    rows = [Indexed(name, "a", 0, split, files[odd / name]) for split, names in of_split.items() for name in names]
    said = summarise(rows)
    lines = {line.split()[0]: line.split() for line in said.splitlines()}
    assert lines["train"] == ["train", "3", "2", "1", "0", "1,", "1,", "1"]
    assert lines["test"] == ["test", "2", "1", "0", "1", "0,", "0,", "0"]
    assert "codec: h264 read by decord (3)" in said and "unreadable: 2" in said
    assert "  absent.mp4: missing: no such file" in said and "  cut.avi: corrupt: " in said
    assert said.endswith("classes without a readable video: 0")
    bare = [Indexed("", "b", 1, ""), Indexed("x.mp4", "c", 2, "train", File(problem="unread: no frame within 60 s"))]
    assert summarise([*rows, *bare]).endswith("classes without a readable video: 2\n  b\n  c")
    assert "the same content in two splits: 1\n  train: h264.mp4, test: MIXED é.MP4" in said
    folds = [
        row._replace(split=words) for row, words in zip(rows, ["train test -"] * 3 + ["train - test"] * 2, strict=True)
    ]
    said = summarise(folds)
    assert "\ntrain, fold 1         5        3       1       1  1, 1, 1\ntest, fold 2" in said
    assert "the same content in two splits: 0" in said
    folds[3] = folds[3]._replace(split="test - test")
    assert "splits: 1\n  train test -: h264.mp4, test - test: MIXED é.MP4" in summarise(folds)


def test_the_command_indexes_a_profile_s_videos_and_says_what_there_is(odd, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    with pytest.raises(SystemExit, match=r"tiny.yaml is of generated videos"):
        command.main(["--profile", "tiny"])
    monkeypatch.setattr("faster_lib.data.index.DATA", tmp_path)
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    with pytest.raises(SystemExit, match=r"data.root is 'tank_state', but .*tank_state is no folder"):
        command.main(["--profile", "tank_state"])
    for split, name in (("train", "h264.mp4"), ("val", "cut.avi"), ("val", "odd.mp4")):
        place = tmp_path / "tank_state" / split / "up" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((odd / name).read_bytes())
    command.main(["--profile", "tank_state"])
    assert "unreadable: 1" in caplog.text and "index: " in caplog.text
    assert "index.csv has 1 classes, but data.num_classes is 4" in caplog.text
    rows = read_index(tmp_path / "runs" / "tank_state" / "index.csv")
    assert [row[:4] for row in rows] == [
        ("train/up/h264.mp4", "up", 0, "train"), ("val/up/cut.avi", "up", 0, "val"), ("val/up/odd.mp4", "up", 0, "val")
    ]  # fmt: skip


def test_an_index_is_read_once_however_often_it_is_asked_for_and_again_once_it_changes(tmp_path, monkeypatch):
    table, opened, read = tmp_path / "index.csv", [], Path.read_bytes
    write_index(table, [Indexed("a.mp4", "a", 0, "train", File(8))], ["a"])
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path), read(path))[1])
    assert [read_index(table) for _ in range(3)] == 3 * [[Indexed("a.mp4", "a", 0, "train", File(8))]]
    assert opened == [table]
    write_index(table, [Indexed("a.mp4", "a", 0, "train", File(9))], ["a"])
    assert read_index(table)[0].file.frames == 9 and opened == [table, table]


def small_profile(make_scene, make_data, *, fold=None, **changes):
    """Give a profile of generated videos of 64 frames."""
    content = load_profile("smoke").model_dump(mode="json")
    content["data"] = make_data(fold=fold).model_dump(mode="json")
    content["scene"] = make_scene(**changes).model_dump(mode="json")
    return parse_profile(content, source="a test")


def test_generated_videos_have_an_index_of_all_classes_and_their_key_needs_none_of_them(
    make_scene, make_data, tmp_path, monkeypatch
):
    profile = small_profile(make_scene, make_data)
    keys = [videos_key(profile, split, runs=tmp_path) for split in ("train", "test")]
    assert not list(tmp_path.iterdir()) and len({*keys}) == 2
    videos = load_videos(profile, "train", runs=tmp_path)
    assert videos.census == Census(expected=6, used=6, missing=0, corrupt=0) and len(videos.classes) == 16
    (table,) = tmp_path.glob("smoke/videos/train-*/index.csv")
    for row in [row for row in read_index(table) if row.path]:
        assert (
            row.file
            == scan([table.parent / row.path], table.parent, tmp_path / "memory", workers=1)[table.parent / row.path]
        )
        break  # one is enough: all are written by the same line
    assert [videos_key(profile, split, runs=tmp_path) for split in ("train", "test")] == keys
    others = [small_profile(make_scene, make_data, seed=1), small_profile(make_scene, make_data, videos={"train": 7})]
    assert len({keys[0], *(videos_key(other, "train", runs=tmp_path) for other in others)}) == 3
    uncut = profile.model_copy(update={"data": make_data(crop_px=32)})
    assert videos_key(uncut, "train", runs=tmp_path) == keys[0]
    assert clips_key_facts(uncut) != clips_key_facts(profile)


def test_generated_folds_are_one_pool_of_which_each_tests_another_third(make_scene, make_data, tmp_path):
    profile = small_profile(make_scene, make_data, fold=1, videos={"train": 8, "test": 4, "val": 2})
    tests, pools, keys = [], [], set()
    for fold in (1, 2, 3):
        train, test = (load_videos(profile.in_fold(fold), split, runs=tmp_path) for split in ("train", "test"))
        assert (len(train), len(test)) == (8, 4)
        names = [{video.path for video in side.videos} for side in (train, test)]
        assert not names[0] & names[1]
        tests.append(names[1])
        pools.append(names[0] | names[1])
        keys |= {videos_key(profile.in_fold(fold), split, runs=tmp_path) for split in ("train", "test")}
    assert pools[0] == pools[1] == pools[2] == set.union(*tests) and len(keys) == 6
    assert len(load_videos(profile.in_fold(3), "val", runs=tmp_path)) == 2
    assert {path.name for path in tests[0]} == {f"test_0000{i}.mp4" for i in range(4)}
    assert len(list(tmp_path.glob("smoke/videos/*/index.csv"))) == 2


@needs_shared
def test_every_real_file_at_hand_is_indexed_and_decoded_as_pyav_decodes_it(tmp_path):
    found = {}
    for folder in ("ucf101_samples", "hmdb51_samples", "odd_files"):
        found |= scan(video_files(SHARED / folder), SHARED, tmp_path / "memory.csv", workers=2)
    assert len(found) == 15 + 5 + 25 and not any(file.problem for file in found.values())
    others = Counter((file.codec, file.decoder) for file in found.values() if file.decoder != "decord")
    wanted = {("mpeg4", "pyav_in_order"): 5 + 5, ("msmpeg4v3", "pyav"): 2, ("hevc", "pyav"): 2, ("h264", "pyav"): 1}
    assert others == wanted
    check_against_pyav(as_list({path: file for path, file in found.items() if file.width_px < 1000}))


@needs_shared
def test_a_real_set_is_indexed_once_and_loaded_from_its_index(tmp_path, monkeypatch):
    monkeypatch.setattr("faster_lib.data.index.DATA", SHARED)
    profile = load_profile("tank_state")
    rows = index_videos(profile, runs=tmp_path)
    assert len(rows) == 496 and rows == read_index(tmp_path / "tank_state" / "index.csv")
    train, val = (load_videos(profile, split, runs=tmp_path, is_training=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (320, 176) and train.classes[1] == "bridge_up"
    assert Counter(video.target for video in train.videos + val.videos) == {0: 306, 1: 75, 3: 66, 2: 49}
