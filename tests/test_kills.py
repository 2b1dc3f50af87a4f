"""Tests with real processes and a real full disk: whatever ends a run, the next start goes on and ends in the same."""

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills import finished, list_differences, list_lost
from faster_lib.data.index import load_videos
from faster_lib.models.faster import Schedule
from faster_lib.paths import ROOT
from faster_lib.profiles import Profile, load_profile
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import train_backbone
from workflow.scan import scan


def small(**stage_1) -> Profile:
    """Give the smoke profile with a class a video and all work in this process."""
    smoke = load_profile("smoke")
    changed = {
        "scene": {"videos": {"train": 16, "test": 16}},
        "backbone_training": {"batch_frames": 32, "iterations": 4, "checkpoint_iterations": 2, **stage_1},
        "aggregator_training": {"epochs": 1},
        "loading": {"workers": 0, "shard_videos": 4},
    }
    return smoke.model_copy(update={k: getattr(smoke, k).model_copy(update=v) for k, v in changed.items()})


def test_a_run_that_is_killed_or_damaged_in_every_stage_of_training_ends_in_the_same_files_or_names_one(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", tmp_path, "--kills", "3", "--workers", "1"]
    command += ["--damages", "10"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    stages = ["stage_1", "extraction", "stage_2"]
    done = subprocess.run(
        [*command, "--stages", *stages], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "kills.csv").open(newline="") as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    assert [stage for stage, row in rows.items() if row["kills"] == "1"] == stages
    assert {row["identical"] for row in rows.values()} == {"yes"}
    with (tmp_path / "damages.csv").open(newline="") as file:
        found = {row["file"]: row["outcome"] for row in csv.DictReader(file)}
    assert len(found) == 10 and set(found.values()) == {"mended", "refused"}
    assert found["weights of a network"] == "refused" and found["shard"] == found["generated video"] == "mended"


def test_the_comparison_sees_a_lost_a_repeated_and_a_changed_result(tmp_path):
    for folder in ("wanted", "found"):
        entry = tmp_path / folder / "smoke" / "features" / "r2d_26-0"
        entry.mkdir(parents=True)
        for name in ("shard_0.safetensors", "shard_1.safetensors", "shard_2.safetensors"):
            (entry / name).write_bytes(b"features")
    assert not list_differences(tmp_path / "wanted", tmp_path / "found", is_whole=True)
    (entry / "0.lock").write_bytes(b"")
    before = finished(tmp_path / "found")
    assert len(before) == 3 and not list_lost(before, finished(tmp_path / "found"))
    (entry / "shard_0.safetensors").unlink()
    os.utime(entry / "shard_1.safetensors")
    (entry / "shard_2.safetensors").write_bytes(b"featureX")
    (entry / ".shard_3.safetensors.partial").write_bytes(b"half")
    (entry / "0.lock").unlink()
    names = [f"smoke/features/r2d_26-0/{name}" for name in (".shard_3.safetensors.partial", "shard_0.safetensors")]
    changed = "smoke/features/r2d_26-0/shard_2.safetensors"
    assert len(list_lost(before, finished(tmp_path / "found"))) == 3
    assert list_differences(tmp_path / "wanted", tmp_path / "found", is_whole=True) == {"extraction": [*names, changed]}
    assert list_differences(tmp_path / "wanted", tmp_path / "found", is_whole=False) == {"extraction": [changed]}
    assert list_lost({"r2d_26: iteration": 4}, {"r2d_26: iteration": 2}) == ["r2d_26: iteration"]


TRAINING = """
import sys
from pathlib import Path
from faster_lib.profiles import Profile
from faster_lib.training.stage1 import train_backbone
train_backbone(Profile.model_validate_json(sys.argv[1]), "r2d_26", 8, runs=Path(sys.argv[2]))
"""


def test_a_training_that_gets_sigterm_keeps_its_state_says_so_and_is_gone_on_with(tmp_path):
    profile = small(batch_frames=16, iterations=80, checkpoint_iterations=1000)  # keeps nothing of its own accord
    load_videos(profile, "train", runs=tmp_path)
    for name in ("disturbed", "undisturbed"):
        (tmp_path / name / "smoke").mkdir(parents=True)
        (tmp_path / name / "smoke" / "videos").symlink_to(tmp_path / "smoke" / "videos")
    command = [sys.executable, "-c", TRAINING, profile.model_dump_json(), str(tmp_path / "disturbed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0.1"}
    environment.pop("TQDM_DISABLE", None)  # its bar says when it has begun
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as training:
        shown = ""
        while not re.search(r"[1-9]\d*/80", shown):
            shown += (read := training.stderr.read(1))
            assert read, shown  # it ended before
        training.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        training.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert training.returncode == 128 + signal.SIGTERM
    done = finished(tmp_path / "disturbed")
    (iteration,) = (value for name, value in done.items() if name.endswith(": iteration"))
    assert 0 < iteration < 80
    ends = [train_backbone(profile, "r2d_26", 8, runs=tmp_path / name) for name in ("disturbed", "undisturbed")]
    assert ends[0].entry.read() == ends[1].entry.read()


def test_a_training_that_is_stopped_between_its_weights_and_its_record_keeps_its_checkpoint(tmp_path, monkeypatch):
    replace, profile = os.replace, small()

    def stop_at_record(source: Path, target: Path) -> None:
        if target.name == "record.json" and target.parent.parent.name == "networks":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_record)
        with pytest.raises(KeyboardInterrupt):
            train_backbone(profile, "r2d_26", 8, runs=tmp_path)
    assert [value for name, value in finished(tmp_path).items() if name.endswith(": iteration")] == [4]
    train_backbone(profile, "r2d_26", 8, runs=tmp_path)
    assert not list(tmp_path.glob("smoke/networks/*/checkpoint*"))


@pytest.fixture
def disk(tmp_path):
    """Give a disk of its own, and a function that leaves room for so many bytes more on it."""
    place = tmp_path / "disk"
    place.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr}")

    def leave_room(num_bytes: int) -> None:
        stat = os.statvfs(place)
        size = (stat.f_blocks - stat.f_bfree) * stat.f_frsize + num_bytes
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    try:
        yield place, leave_room
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk, room: int, wanted: Path, runs: Path, work: Callable[[], object]) -> None:
    """Let work meet a full disk, check what it says and leaves, and let it go on with more room."""
    place, leave_room = disk
    before = finished(runs)
    leave_room(room)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{place}")) as failed:
        work()
    assert failed.value.errno == errno.ENOSPC
    assert not list_lost(before, finished(runs)) and not list(runs.rglob(".*.partial"))
    assert not list_differences(wanted, runs, is_whole=False)
    leave_room(32_000_000)
    work()


def test_a_full_disk_ends_every_stage_with_the_name_of_the_file_and_loses_nothing(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(
        "faster_lib.training.features.check_disk", lambda *_: None
    )  # as if others filled the disk meanwhile
    profile, cells = small(), [("fast_gru", Schedule.ratio(8, ratio)) for ratio in (3, 7)]

    def stages(runs: Path) -> list[Callable[[], object]]:
        networks = []

        def train() -> None:
            networks[:] = [train_backbone(profile, name, 8, runs=runs) for name in ("r2plus1d_50", "r2d_26")]

        return [
            lambda: [load_videos(profile, split, runs=runs) for split in ("train", "test")],
            train,
            lambda: [FeaturePair(profile, *networks, runs=runs).open(split) for split in ("train", "test")],
            lambda: measure_all(FeaturePair(profile, *networks, runs=runs), cells, seeds=[0], split="test"),
        ]

    wanted, found = tmp_path / "wanted", disk[0] / "runs"
    for work in stages(wanted):
        work()
    rooms = [100_000, 1_000_000, 100_000, 100_000]  # of 550 kB, 5 MB, 800 kB and 300 kB that the stages write
    for room, work in zip(rooms, stages(found), strict=True):
        fill(disk, room, wanted, found, work)
    assert not list_differences(wanted, found, is_whole=True)


def test_a_full_disk_ends_a_scan_with_the_name_of_its_memory_and_keeps_the_rows(tmp_path, disk):
    videos, runs = [tmp_path / f"no-video-{number:05d}.mp4" for number in range(200)], disk[0] / "runs"
    memory, kept = runs / "smoke" / "index.scan.csv", []
    memory.parent.mkdir(parents=True)
    for video in videos:
        video.touch()

    def work() -> None:
        kept.append(len(finished(runs)))
        scan(videos, tmp_path, memory, workers=1)

    fill(disk, 12_000, tmp_path / "none", runs, work)
    assert len(finished(runs)) == len(videos) and 10 < kept[1] < len(videos)
