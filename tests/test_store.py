"""Tests of faster_lib.store: a result is whole or not there at all, and belongs to exactly what it depends on."""

import copy
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from faster_lib.paths import ROOT
from faster_lib.provenance import circumstances
from faster_lib.store import Entry, hash_of, write_whole

DEPENDS = {"recipe": 1, "network": "r2d_26", "training": {"rate": 0.005, "seeds": [0, 1], "flip": False}, "root": None}


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_hash_is_that_of_the_sorted_json_text():
    # printf '{"L": 16, "network": "r2d_26"}' | sha256sum
    assert hash_of({"network": "r2d_26", "L": 16}) == hash_of({"L": 16, "network": "r2d_26"}) == "d4b6ba2667623f9d"
    turned = {key: DEPENDS[key] for key in reversed(DEPENDS)}
    turned["training"] = {key: DEPENDS["training"][key] for key in reversed(DEPENDS["training"])}
    assert list(turned) != list(DEPENDS) and hash_of(turned) == hash_of(DEPENDS)


def test_a_hash_changes_with_any_value_key_or_order_of_a_list():
    def other(**training):
        changed = copy.deepcopy(DEPENDS)
        changed["training"].update(training)
        return changed

    variants = [
        *({**DEPENDS, key: "other"} for key in DEPENDS),
        *({k: v for k, v in DEPENDS.items() if k != key} for key in DEPENDS),
        *(other(**change) for change in ({"rate": 0.0050001}, {"seeds": [1, 0]}, {"seeds": [0]}, {"flip": 0})),
        *(other(**change) for change in ({"rate": "0.005"}, {"flip": None}, {"new": 1})),
        {**DEPENDS, "recipe": 2},
        {**DEPENDS, "recipe": "1"},
    ]
    hashes = [hash_of(variant) for variant in [DEPENDS, *variants]]
    assert len(set(hashes)) == len(hashes) and all(re.fullmatch("[0-9a-f]{16}", h) for h in hashes)
    with pytest.raises(TypeError):
        hash_of({"path": ROOT})


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place, error):
    path = tmp_path / "weights.bin"
    write_whole(path, b"old" * 1000)

    def fail(*_):
        raise error

    for target in (path, tmp_path / "new.bin"):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, fail)
            with pytest.raises(type(error)):
                write_whole(target, b"new" * 2000)
    assert names(tmp_path) == ["weights.bin"] and path.read_bytes() == b"old" * 1000
    write_whole(path, b"new")
    assert names(tmp_path) == ["weights.bin"] and path.read_bytes() == b"new"


def test_content_then_name_are_on_the_disk_when_a_write_returns(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def note_replace(source, target) -> None:
        done.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_whole(tmp_path / "checkpoint.pt", b"state")
    assert done == ["content", "name", "folder"]


def test_a_write_that_the_system_breaks_off_half_way_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"too large: '.*/video\.mp4'"):
            write_whole(tmp_path / "video.mp4", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_an_entry_is_complete_only_after_its_making_ended_without_error(tmp_path):
    entry = Entry("tiny", "networks", "r2d_26-L8", DEPENDS, tmp_path)
    assert entry.path == tmp_path / "tiny" / "networks" / f"r2d_26-L8-{hash_of(DEPENDS)}"
    assert not entry.is_complete and not entry.path.exists()

    def break_off() -> dict:
        (entry.path / "part.bin").write_bytes(b"kept")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        entry.complete(break_off)
    assert not entry.is_complete and names(entry.path) == ["begun.json", "part.bin"]  # parts stay, to go on from
    entry.complete(lambda: {"loss": 0.25})
    assert names(entry.path) == ["part.bin", "record.json"]
    assert entry.is_complete and entry.record["measures"] == {"loss": 0.25}
    entry.complete(lambda: pytest.fail("made a second time"))
    assert entry.record["measures"] == {"loss": 0.25}
    assert not Entry("tiny", "networks", "r2d_26-L8", {**DEPENDS, "recipe": 2}, tmp_path).is_complete


@pytest.mark.parametrize("name", ["begun.json", "record.json"])
def test_a_kill_at_the_end_leaves_a_beginning_or_a_record_and_never_both(tmp_path, monkeypatch, name):
    entry, replace = Entry("tiny", "networks", "r2d_26-L8", DEPENDS, tmp_path), os.replace

    def kill_after(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == name and json.loads(Path(target).read_bytes()).get("measures"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill_after)
        entry.complete(lambda: {"loss": 0.5})
    assert names(entry.path) == [name]
    entry.complete(lambda: {"loss": 0.5})
    assert names(entry.path) == ["record.json"] and entry.record["measures"] == {"loss": 0.5}
    assert entry.record["starts"] == (2 if name == "begun.json" else 1)


def test_what_a_killed_writer_left_half_written_is_removed_and_what_others_write_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    entry = Entry("tiny", "networks", "r2d_26-L8", DEPENDS, tmp_path)
    (entry.path / "UCF-101").mkdir(parents=True)
    here = platform.node()
    writers = {
        "gone": f"{here}.{ended.pid}",
        "running": f"{here}.{os.getpid()}",
        "elsewhere": f"not-{here}.{ended.pid}",
    }
    paths = {about: entry.path / "UCF-101" / f".v.avi.{writer}.partial" for about, writer in writers.items()}
    for path in paths.values():
        path.write_bytes(b"half")
    entry.complete(lambda: {"left": names(entry.path / "UCF-101")})
    assert entry.record["measures"]["left"] == sorted(paths[about].name for about in ("running", "elsewhere"))


def test_a_record_says_what_the_result_depends_on_and_where_and_when_it_was_made(tmp_path):
    entry = Entry("tiny", "videos", "train", DEPENDS, tmp_path)
    entry.complete(lambda: {"bytes": 12})
    record = json.loads((entry.path / "record.json").read_text(encoding="utf-8"))
    assert record == entry.record
    assert (
        record["profile"] == "tiny"
        and record["depends"] == DEPENDS
        and record["measures"] == {"bytes": 12}
        and record["seconds"] >= 0
    )
    assert {"python", "torch", "numpy", "av"} <= set(record["versions"]) and record["device"]
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished"])
    assert set(circumstances()) == {"device", "versions", "commit", "finished"}
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if git.returncode == 0:
        assert record["commit"].removesuffix("-dirty").endswith(git.stdout.strip())


def test_an_unfinished_entry_says_what_it_is_and_its_record_adds_up_what_all_its_starts_took(tmp_path):
    entry = Entry("tiny", "networks", "r2d_26-L8", DEPENDS, tmp_path)
    begun, part = entry.path / "begun.json", entry.path / "checkpoint.pt"

    def die_after_100_seconds() -> dict:
        assert json.loads(begun.read_text(encoding="utf-8"))["depends"] == DEPENDS
        part.write_bytes(b"half")
        os.utime(part, (begun.stat().st_mtime + 100,) * 2)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            entry.complete(die_after_100_seconds)
    first = json.loads(begun.read_text(encoding="utf-8"))
    assert first["starts"] == 2 and first["seconds"] == pytest.approx(100, abs=1)
    entry.complete(lambda: {})
    record = entry.record
    assert record["starts"] == 3 and record["seconds"] == pytest.approx(200, abs=2)
    assert record["started"] == first["started"] <= record["finished"]
    assert record["host"]["cpus"] == os.cpu_count() and record["processes"] == 1
    assert 50 < record["peak_mib"] < record["host"]["memory_mib"]  # torch alone takes more than 50 MiB


HOLDER = """
import sys
from pathlib import Path
from faster_lib.store import Entry
entry = Entry("tiny", "networks", "shared", {"a": 1}, Path(sys.argv[1]))
def make():
    print("held", flush=True)
    sys.stdin.readline()
    return {"maker": "the other process"}
entry.complete(make)
"""


@pytest.mark.parametrize("does_finish", [True, False], ids=["holder finishes", "holder is killed"])
def test_a_second_process_waits_says_for_whom_and_finds_what_the_first_one_left(tmp_path, does_finish, caplog):
    caplog.set_level("INFO")
    entry = Entry("tiny", "networks", "shared", {"a": 1}, tmp_path)
    seen = []

    def make():
        seen.append("made")
        return {"maker": "this process"}

    def want():
        entry.complete(make)

    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            waiting = threading.Thread(target=want)
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive() and not seen  # still outside
            assert f"{entry.path.name}: waiting for process {holder.pid} on {platform.node()}" in caplog.text
            if does_finish:
                holder.communicate("go on\n")
        finally:
            holder.kill()
    waiting.join(60)
    assert seen == ([] if does_finish else ["made"])
    assert entry.record["measures"]["maker"] == ("the other process" if does_finish else "this process")


DAMAGES = {
    "a flipped bit": lambda content: content.replace(b"0.25", b"0.21"),
    "cut": lambda content: content[:-9],
    "zeros": lambda content: content[:20] + bytes(len(content) - 20),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("name", ["record.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_refused_with_its_name_and_the_remedy(tmp_path, name, damage):
    entry = Entry("tiny", "networks", "r2d_26-L8", DEPENDS, tmp_path)

    def make() -> dict:
        write_whole(entry.path / "weights.safetensors", b"0.25" * 100)
        return {"loss": 0.25}

    entry.complete(make)
    assert entry.read() == b"0.25" * 100
    write_whole(entry.path / name, DAMAGES[damage]((entry.path / name).read_bytes()))
    for use in (entry.read, lambda: entry.complete(make)):
        with pytest.raises(ValueError, match=rf"{re.escape(str(entry.path / name))} is damaged.*remove the folder"):
            use()
    shutil.rmtree(entry.path)
    entry.complete(make)
    assert entry.record["measures"] == {"loss": 0.25}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_features_or_videos_is_made_again_and_a_damaged_beginning_forgotten(
    tmp_path, damage, caplog
):
    entry = Entry("tiny", "features", "r2d_26-L8", DEPENDS, tmp_path)
    entry.complete(lambda: {"loss": 0.25})
    record = entry.path / "record.json"
    record.write_bytes(DAMAGES[damage](record.read_bytes()))
    (entry.path / "begun.json").write_bytes(
        DAMAGES[damage](b'{"started": "then", "starts": 7, "seconds": 0.25, "m": 1}')
    )
    entry.complete(lambda: {"loss": 0.25})
    assert entry.record["measures"] == {"loss": 0.25} and f"{record} is damaged" in caplog.text
    assert entry.record["starts"] == (8 if damage == "a flipped bit" else 1)
    if damage != "a flipped bit":
        assert f"{entry.path / 'begun.json'} is damaged" in caplog.text


@pytest.mark.parametrize(("given", "wanted"), [("", ROOT / "runs"), ("~/r", Path.home() / "r"), ("/x", Path("/x"))])
def test_the_folder_of_results_may_be_empty_or_begin_at_home(given, wanted):
    command = [sys.executable, "-c", "from faster_lib.paths import RUNS; print(RUNS)"]
    done = subprocess.run(command, env={**os.environ, "FASTER_RUNS": given}, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(wanted)
