"""Tests of workflow/status.py: every result is listed with its state and size, and nothing else is."""

import json
import runpy

import pytest
from filelock import FileLock

from faster_lib.paths import ROOT

status = runpy.run_path(str(ROOT / "workflow" / "status.py"))
KEY = "0123456789abcdef"


def make(runs, name, content="record.json"):
    entry = runs / name
    entry.mkdir(parents=True)
    (entry / content).write_text(json.dumps({"finished": "2026-01-02T03:04:05Z"}))
    (entry / "part").mkdir()
    (entry / "part" / "weights.bin").write_bytes(bytes(2_500_000))
    return entry


def test_each_result_is_listed_with_its_profile_kind_state_size_and_time(tmp_path):
    make(tmp_path, f"tiny/networks/r2d_26-L8-{KEY}")
    make(tmp_path, f"smoke/features/r2d_26-L8-N8-train-{KEY}", "begun.json")
    make(tmp_path, "index/files/no-entry")
    lines = [line.split() for line in status["list_entries"](tmp_path)]
    assert lines[0] == ["smoke", "features", "begun", "2.5", "MB", f"r2d_26-L8-N8-train-{KEY}"]
    assert lines[1] == ["tiny", "networks", "complete", "2.5", "MB", "2026-01-02T03:04:05Z", f"r2d_26-L8-{KEY}"]
    assert lines[2] == ["2", "results", "in", f"{tmp_path},", "5.0", "MB"] and len(lines) == 3


@pytest.mark.parametrize("is_held", [True, False])
def test_an_unfinished_result_is_running_only_while_its_lock_is_held(tmp_path, is_held):
    entry = make(tmp_path, f"tiny/networks/r2d_26-L8-{KEY}", "begun.json")
    with FileLock(entry.with_name(f"{entry.name}.lock")) as lock:
        if not is_held:
            lock.release()
        assert status["state_of"](entry) == ("running" if is_held else "begun")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": 1'], ids=["empty", "cut", "a list", "half"])
def test_one_damaged_record_does_not_stop_the_listing(tmp_path, content):
    make(tmp_path, f"tiny/networks/a-{KEY}")
    (make(tmp_path, f"tiny/networks/b-{KEY}") / "record.json").write_text(content)
    assert [line.split()[2] for line in status["list_entries"](tmp_path)][:2] == ["complete", "damaged"]
