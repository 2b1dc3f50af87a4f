"""Tests of faster_lib.status: what lies in runs/ is told apart, and only what is named and at rest is deleted."""

import functools
import logging
import subprocess
import sys

import pytest
import torch

from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.status import as_table, choose, delete, find_entries, main, tidy
from faster_lib.store import Entry, write_whole
from faster_lib.training import stage1 as training
from faster_lib.training.feature_store import write_shard

SMOKE = load_profile("smoke")


def make(runs, label, kind="features", **depends) -> Entry:
    entry = Entry(kind, label, depends, runs)
    entry.complete(lambda: write_whole(entry.path / "part.bin", bytes(250_000)) or {})
    return entry


def names(runs) -> set[str]:
    return {path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file()}


def test_an_entry_says_whose_parameters_it_has_and_how_far_it_is(tmp_path):
    longer = SMOKE.backbone_training.model_copy(update={"iterations": 7})
    other = SMOKE.model_copy(update={"backbone_training": longer})
    entries = [training.backbone_entry(profile, "r2d_26", 8, runs=tmp_path) for profile in (SMOKE, other)]
    scene = {"scene": SMOKE.scene.model_dump(mode="json"), "videos": SMOKE.scene.videos["train"]}
    entries.append(Entry("videos", "train", scene, tmp_path))

    def stop(entry):
        write_whole(entry.path / "train_00001.mp4", b"one of 20")
        raise KeyboardInterrupt

    entries[1].complete(lambda: {"loss": 0.5})
    for entry in (entries[0], entries[2]):
        with pytest.raises(KeyboardInterrupt):
            entry.complete(functools.partial(stop, entry))
    table = as_table(find_entries(tmp_path)).set_index("hash")
    columns = ["profile", "state", "starts", "differs in"]
    rows = [tuple(table.loc[entry.key, columns]) for entry in entries]
    assert rows == [("smoke", "begun", "1", ""), ("", "complete", "1", ""), ("smoke", "1 of 20 videos", "1", "")]
    assert [bool(table.loc[entry.key, "finished"]) for entry in entries] == [False, True, False]


def test_unfinished_feature_maps_are_counted_in_videos(tmp_path):
    entry = Entry("features", "r2d_26-L8-N8-train", {"videos": 20}, tmp_path)

    def stop():
        write_shard(entry.path, range(8), {"targets": torch.zeros(8)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entry.complete(stop)
    assert [found.how_far() for found in find_entries(tmp_path)] == ["8 of 20 videos"]


def test_entries_of_one_label_list_the_parameters_in_which_they_differ(tmp_path):
    for rate, fold in ((0.1, 1), (0.2, 1), (0.2, 2)):
        make(tmp_path, "r2d_26-L8", weights="ab" * 32, training={"rate": rate, "epochs": 3}, data={"fold": fold})
    make(tmp_path, "r2d_26-L16", weights="cd" * 32)
    found = set(as_table(find_entries(tmp_path))["differs in"])
    assert found == {
        "training.rate=0.1, data.fold=1",
        "training.rate=0.2, data.fold=1",
        "training.rate=0.2, data.fold=2",
        "",
    }


def test_a_pattern_means_a_label_a_hash_or_a_glob_and_must_mean_something(tmp_path):
    one, ten, other = make(tmp_path, "gru-seed1"), make(tmp_path, "gru-seed10"), make(tmp_path, "gru-seed1", "videos")
    entries = find_entries(tmp_path)

    def meant(*patterns):
        return {entry.path for entry in choose(entries, patterns)}

    assert meant("gru-seed1") == {one.path, other.path}
    assert meant("gru-seed10", ten.key[:6]) == {each.path for each in (one, ten, other)}  # all depend on nothing
    assert meant("features/*seed1-*", ten.path.name) == {one.path, ten.path}
    for pattern in ("", one.key[:3], "gru", "lstm-*"):
        with pytest.raises(ValueError, match="is no entry"):
            choose(entries, [pattern])


HOLDER = """
import sys
from pathlib import Path
from faster_lib.store import Entry, write_whole
entry = Entry("features", "held", {}, Path(sys.argv[1]))
def make():
    write_whole(entry.path / "part.bin", bytes(10))
    (entry.path / f".next.bin.1.partial").write_bytes(b"by another machine, where 1 is no pid of ours")
    print("held", flush=True)
    sys.stdin.readline()
entry.complete(make)
"""


def test_what_a_running_process_makes_stays_and_a_dead_one_leaves_nothing(tmp_path):
    done = make(tmp_path, "done")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    command = [sys.executable, "-c", HOLDER.replace(".1.", f".{dead.pid}."), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        entries = find_entries(tmp_path)
        assert [entry.how_far() for entry in entries] == ["complete", "begun, running"]
        before = names(tmp_path)
        with pytest.raises(RuntimeError, match=r"held-.* is being made by a running process, so nothing was deleted"):
            delete(entries)
        assert names(tmp_path) == before
        assert [path.name for path in tidy(tmp_path)] == [f"{done.path.name}.lock"]
        holder.kill()
    half = tmp_path / "index" / f".list.csv.{dead.pid}.partial"
    half.parent.mkdir()
    half.write_bytes(b"half")
    (entry,) = [entry for entry in find_entries(tmp_path) if not entry.is_complete]
    assert entry.how_far() == "begun"
    assert {path.name for path in tidy(tmp_path)} == {f".next.bin.{dead.pid}.partial", half.name}
    delete([entry])
    assert names(tmp_path) == {f"features/{done.path.name}/{name}" for name in ("part.bin", "record.json")}


def test_the_command_shows_what_would_go_and_deletes_it_only_after_a_yes(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    kept, gone = make(tmp_path, "kept", data={"source": "none"}), make(tmp_path, "gone", data={"source": "none"})
    monkeypatch.setattr("builtins.input", lambda question: "n")
    main(["--delete", "gone"], runs=tmp_path)
    assert gone.is_complete and "Nothing was deleted" in caplog.text and "0.3 MB" in caplog.text
    assert gone.key in caplog.text and "kept" not in caplog.text.replace(str(tmp_path), "")
    main(["--delete", "gone", "--yes"], runs=tmp_path)
    assert not gone.path.exists() and kept.is_complete
    caplog.clear()
    main(["--without-profile"], runs=tmp_path)
    assert "kept" in caplog.text and "1 entries" in caplog.text
    with pytest.raises(SystemExit):
        main(["--delete", "gone"], runs=tmp_path)
