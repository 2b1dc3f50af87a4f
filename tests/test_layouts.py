"""Tests of the forms in which data sets come: the official lists, their quirks, and the whole kit through each."""

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from faster_lib import Schedule
from faster_lib.data import index
from faster_lib.data.datasets import VideoList
from faster_lib.data.index import Indexed, load_videos, videos_key
from faster_lib.data.synthetic import CLASSES
from faster_lib.data.video import encode_h264
from faster_lib.paths import ROOT
from faster_lib.profile_sections import Data
from faster_lib.profiles import Profile, load_profile, parse_profile
from tests.foreign_layouts import FOREIGN_LAYOUTS, plan_layout, write_layout
from workflow.index import index_videos
from workflow.lists import list_videos

SHARED = ROOT.parent / "shared" / "data"
needs_lists = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the official lists, which are not of this repository"
)


UCF101_LISTS = [f"{split}list0{fold}.txt" for split in ("train", "test") for fold in (1, 2, 3)]


def profile_of(source: str, root: Path, **changes) -> Profile:
    content = load_profile("smoke").model_dump(mode="json")
    fold = 1 if source in ("ucf101", "hmdb51") else None
    content["data"] |= {"source": source, "root": str(root), "video_frames": 64, "fold": fold, **changes}
    return parse_profile(content | {"name": source, "scene": None}, source="a test")


def data_of(source: str, root: Path, **changes) -> Data:
    return profile_of(source, root, **changes).data


def listed(source: str, root: Path, split: str, **changes) -> tuple[list[Indexed], list[str]]:
    """What the lists of one split name, in the fold of the data section, and all classes."""
    data = data_of(source, root, **changes)
    rows, labels = list_videos(data)
    return [row for row in rows if row.split.split()[(data.fold or 1) - 1] == split], labels


def found(profile: Profile, split: str, runs: Path) -> VideoList:
    index_videos(profile, runs=runs)
    return load_videos(profile, split, runs=runs)


def plain(label: str) -> str:
    return label.lower().replace(" ", "").replace("_", "")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


@pytest.fixture(scope="module")
def layouts(make_scene, tmp_path_factory):
    """One folder for each layout, all of 32 training and 16 test videos of 64 frames."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in FOREIGN_LAYOUTS:
        write_layout(make_scene(videos={"train": 32, "test": 16}), layout, folder / layout)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder of results, in which each layout is scanned once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("layout", FOREIGN_LAYOUTS)
def test_the_whole_kit_runs_through_every_layout(layout, layouts, runs):
    from faster_lib.training.evaluation import measure_all
    from faster_lib.training.features import FeaturePair
    from faster_lib.training.stage1 import train_backbone

    profile = profile_of(layout, layouts / layout)
    short = {"backbone_training": {"iterations": 2}, "aggregator_training": {"epochs": 1, "views": 1}}
    parts = {name: getattr(profile, name).model_copy(update=changes) for name, changes in short.items()}
    profile = profile.model_copy(update=parts)
    index_videos(profile, runs=runs)
    networks = [train_backbone(profile, name, 16, runs=runs) for name in ("r2plus1d_50", "r2d_26")]
    pair = FeaturePair(profile, *networks, runs=runs)
    cell = ("fast_gru", Schedule("ECCC"))
    (result,) = measure_all(pair, [cell], seeds=[0], split="test")[cell]
    assert len(result.correct) == 16


def test_all_layouts_hold_the_same_videos_with_the_same_classes(layouts, runs):
    frames, labels = {}, {}
    for layout in FOREIGN_LAYOUTS:
        profile = profile_of(layout, layouts / layout)
        train, test = found(profile, "train", runs), load_videos(profile, "test", runs=runs)
        assert (len(train), len(test)) == (32, 16)
        assert not {video.path for video in train.videos} & {video.path for video in test.videos}
        assert sorted(map(plain, test.classes)) == sorted(map(plain, CLASSES))
        assert Counter(video.target for video in test.videos) == Counter(range(16)), "every class once"
        labels[layout] = [plain(test.classes[video.target]) for video in test.videos]
        video = test.videos[labels[layout].index("leftblue")]
        frames[layout] = video.open().read(range(64)).float()
    assert all(sorted(each) == sorted(labels["folders"]) for each in labels.values())
    for layout, shown in frames.items():
        assert shown.shape == (64, 40, 40, 3)
        assert (shown - frames["folders"]).abs().mean() < 12, f"{layout} shows another video"


@pytest.mark.parametrize("layout", ["ucf101", "hmdb51"])
def test_the_three_folds_test_disjoint_videos_of_every_class_and_train_on_all_others(layout, tmp_path):
    scene = load_profile("smoke").scene.model_copy(update={"videos": {"train": 112, "val": 16, "test": 48}})
    plan_layout(scene, layout, tmp_path)
    tests = []
    for fold in (1, 2, 3):
        train, test = (listed(layout, tmp_path, split, fold=fold)[0] for split in ("train", "test"))
        assert set(Counter(row.target for row in test).values()) == {3} and (len(train), len(test)) == (112, 48)
        names = [{row.path for row in rows} for rows in (train, test)]
        pool = names[0] | names[1]
        tests.append(names[1])
        if layout == "ucf101":
            groups = [{Path(name).stem.rsplit("_", 1)[0] for name in side} for side in names]
            assert not groups[0] & groups[1] and all(1 <= int(name[-2:]) <= 25 for name in groups[0] | groups[1])
    assert len(set.union(*tests)) == 3 * 48 and set.union(*tests) < pool and len(pool) == 160


def test_the_key_of_videos_depends_on_split_fold_and_content_but_not_on_where_they_lie(layouts, tmp_path):
    profile = profile_of("folders", layouts / "folders")
    with pytest.raises(FileNotFoundError, match=r"index.csv; make it by: make index PROFILE=folders"):
        videos_key(profile, "test", runs=tmp_path)
    (tmp_path / "moved").symlink_to(layouts / "folders")
    for runs, root in (("here", layouts / "folders"), ("there", tmp_path / "moved")):
        index_videos(profile_of("folders", root), runs=tmp_path / runs)
    here, there = (
        [videos_key(profile, split, runs=tmp_path / runs) for split in ("train", "test")] for runs in ("here", "there")
    )
    assert here == there and here[0] != here[1] and all(len(key) == 16 for key in here)
    (tmp_path / "there" / "folders" / "index.sha256").unlink()  # so that it may be changed by hand
    with (tmp_path / "there" / "folders" / "index.csv").open("a") as file:
        file.write("run/new.mp4,run,0,train,8,25.0,40,40,h264,decord,9,0,\n")
    assert videos_key(profile, "train", runs=tmp_path / "there") != here[0]
    folded = profile_of("ucf101", layouts / "ucf101")
    index_videos(folded, runs=tmp_path)
    assert len({videos_key(folded.in_fold(fold), "train", runs=tmp_path) for fold in (1, 2, 3)}) == 3


def test_both_dialects_of_kinetics_are_read_and_files_are_found_flat_or_in_any_class_folder(tmp_path):
    root = write(
        tmp_path,
        {
            "old.csv": "label,youtube_id,time_start,time_end,split\nair drumming,--a_b-C_123,1,11,validate\n",
            "new.csv": 'label,youtube_id,time_start,time_end,split,is_cc\n"yoga",ZZ_000001_x,417,427,val,0\n'
            '"yoga",gone4567890,0,10,val,1\n"yoga",ZZ_000001_x,417,427,val,0\n',
            "other.csv": "a,b\n1,2\n",
            "--a_b-C_123_000001_000011.webm": "x",
            "val/Yoga/ZZ_000001_x_000417_000427.mp4": "x",
            "train/Yoga/ZZ_000001_x_000417_000427.mp4": "x",
        },
    )
    rows, classes = listed("kinetics", root, "val")
    assert classes == ["air drumming", "yoga"] and len(rows) == 3, "a repeated line counts once"
    assert {row.path: row.target for row in rows} == {
        "--a_b-C_123_000001_000011.webm": 0,
        "val/Yoga/ZZ_000001_x_000417_000427.mp4": 1,
        "gone4567890_000000_000010.mp4": 1,  # missing, and still expected
    }
    profile = profile_of("kinetics", root, num_classes=2)
    index_videos(profile, runs=tmp_path / "runs")
    with pytest.raises(ValueError, match=r"index.csv has no split 'test'; it has val"):
        load_videos(profile, "test", runs=tmp_path / "runs")
    with pytest.raises(ValueError, match=r"index.csv has 2 classes, but data.num_classes is 16"):
        load_videos(profile_of("kinetics", root), "val", runs=tmp_path / "runs")


def test_the_lists_of_ucf101_end_in_crlf_and_spell_a_class_in_two_ways(tmp_path):
    root = write(
        tmp_path,
        {
            "ucfTrainTestlist/classInd.txt": "2 HandstandPushups\r\n1 Archery\r\n",
            **dict.fromkeys((f"ucfTrainTestlist/{name}" for name in UCF101_LISTS), ""),
            "ucfTrainTestlist/testlist02.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n\r\n",
            "UCF-101/HandstandPushups/v_HandstandPushups_g01_c01.avi": "x",
        },
    )
    rows, classes = list_videos(data_of("ucf101", root))
    (row,) = rows
    assert row[:4] == ("UCF-101/HandstandPushups/v_HandstandPushups_g01_c01.avi", "HandstandPushups", 1, "- test -")
    assert classes == ["Archery", "HandstandPushups"]


@pytest.mark.parametrize(
    ("source", "files", "changes", "error", "quoted"),
    [
        ("kinetics", {"a.csv": "x,y\n1,2\n"}, {}, FileNotFoundError, "has the columns label,youtube_id"),
        ("kinetics", {"a.csv": "label,youtube_id,time_start,time_end,split\nrun,abc,soon,9,train\n"}, {}, ValueError,
         r"a.csv, line 2: \['run', 'abc', 'soon'"),
        ("ucf101", {"classInd.txt": "1 Run\n"}, {}, FileNotFoundError, "trainlist01.txt"),
        ("ucf101", {"classInd.txt": "1 Run\n", "trainlist01.txt": "Walk/v.avi 1\n"}, {}, ValueError, "'Walk/v.avi 1'"),
        ("ucf101", {"classInd.txt": "1 Run\n", **dict.fromkeys(UCF101_LISTS, "Run/v.avi 1\n")}, {}, ValueError,
         "testlist01.txt, line 1: .*v.avi in train and in test of fold 1"),
        ("hmdb51", {"a.txt": ""}, {}, FileNotFoundError, "<class>_test_split1.txt"),
        ("hmdb51", {"run_test_split1.txt": "a.avi 1 \n"}, {}, FileNotFoundError, "run_test_split2.txt"),
        ("hmdb51", {"run_test_split1.txt": "a.avi 3 \n"}, {}, ValueError, "'a.avi 3' does not end in a flag"),
        ("path_label", {"train.csv": "a b.mp4 one\n"}, {}, ValueError, "'a b.mp4 one' is not a path and a class"),
        ("path_label", {"train.csv": "a.mp4 1\n", "classes.txt": "run\n"}, {}, ValueError, "class 1 .*none of the 1"),
        ("path_label", {"train.csv": "a.mp4 1\na.mp4 0\n"}, {}, ValueError, "line 1 .*a.mp4 as '1', .*line 2 as '0'"),
        ("folders", {"run/a.mp4": "", "train.txt": "walk/a.mp4\n"}, {}, ValueError, "no class folder"),
        ("folders", {"train.txt": ""}, {}, ValueError, "no video is listed in"),
        ("path_label", {}, {}, FileNotFoundError, "there must be one such as train.csv"),
        ("folders", {}, {"root": "/not/there"}, FileNotFoundError, "data.root is '/not/there', but /not/there is no"),
        ("folders", {}, {"annotations": "/not/there"}, FileNotFoundError, "data.annotations is '/not/there'"),
    ],
)  # fmt: skip
def test_wrong_lists_are_an_error_that_names_the_file_and_quotes_the_line(
    tmp_path, source, files, changes, error, quoted
):
    with pytest.raises(error, match=quoted):
        list_videos(data_of(source, **{"root": write(tmp_path, files), **changes}))


def test_every_file_of_a_folder_is_found_through_links_but_what_is_hidden_or_no_video(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    disk, root = tmp_path / "disk", tmp_path / "root"
    content = encode_h264(np.zeros((2, 32, 32, 3), np.uint8), fps=25, crf=30, gop_frames=2)
    names = [
        "a.MTS",
        "b.ts",
        "c.VOB",
        "d.gif",
        "e.ogv",
        "f.3g2",
        "g.m1v",
        "h.divx",
        "no ending",
        "caf\xe9.mp4",
        "i.mp4",
    ]
    for name in [os.fsencode(name) for name in names] + [b"old\xe9.mp4", b"._i.mp4", b".hidden.mp4", b"gone.divx"]:
        path = Path(os.fsdecode(os.fsencode(disk / "run") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cut off" if name == b"gone.divx" else content)
    write(
        disk,
        {"run/.ipynb_checkpoints/i.mp4": "x", "run/a.txt": "x", "run/b.csv": "x", "run/c.jpg": "x", "run/d.xyz": "x"},
    )
    write(root, {"train/sit/j.mp4": "x"})
    (root / "train" / "run").symlink_to(disk / "run")
    (disk / "run" / "back").symlink_to(root / "train")  # a circle
    (root / "train" / "sit" / "k.mp4").symlink_to(disk / "run" / "i.mp4")
    (root / "train" / "sit" / "l.mp4").symlink_to(disk / "nowhere.mp4")
    rows, labels = list_videos(data_of("folders", root))
    wanted = {f"train/run/{name}" for name in [*names, os.fsdecode(b"old\xe9.mp4")]}
    assert {row.path for row in rows if row.label == "run" and "/back/" not in row.path} == wanted
    assert {row.path for row in rows if row.label == "sit"} == {f"train/sit/{name}.mp4" for name in "jkl"}
    assert labels == ["run", "sit"] and "are no videos" in caplog.text
    profile = profile_of("folders", root, num_classes=2)
    videos = found(profile, "train", tmp_path / "runs")
    assert len(videos) == len(wanted) + 1 and videos.census.missing == 1 and videos.census.corrupt == 1
    assert all(len(video.open()) == 2 for video in videos.videos)


def test_kinetics_is_found_on_another_disk_through_a_link(tmp_path):
    write(tmp_path / "disk", {"yoga/abc_000000_000009.mp4": "x"})
    lists = {"a.csv": "label,youtube_id,time_start,time_end,split\n yoga ,abc,0,9, train\n"}
    (write(tmp_path / "root", lists) / "train").symlink_to(tmp_path / "disk")
    rows, labels = list_videos(data_of("kinetics", tmp_path / "root"))
    assert [row[:4] for row in rows] == [("train/yoga/abc_000000_000009.mp4", "yoga", 0, "train")] and labels == [
        "yoga"
    ]


NFD = unicodedata.normalize("NFD", "caf\xe9")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize(
    "stored", ["caf\xe9", NFD, os.fsdecode(b"caf\xe9")], ids=["composed", "decomposed", "old bytes"]
)
@pytest.mark.parametrize("source", ["annotated", "path_label", "folders"])
def test_a_name_is_found_however_list_and_disk_write_it(tmp_path, source, stored, encoding):
    lists = {
        "annotated": ("annotations.csv", 'path,label,split\r\n"run/caf\xe9 1.mp4", r\xfcn ,train\r\n'),
        "path_label": ("train.txt", '"run/caf\xe9 1.mp4" 0\n'),
        "folders": ("train.txt", "'run/caf\xe9 1.mp4'\n"),
    }
    path = write(tmp_path, {"run/x.txt": ""}) / "run" / f"{stored} 1.mp4"
    path.write_bytes(b"x")
    name, text = lists[source]
    (tmp_path / name).write_bytes(text.encode(encoding))
    ((row,), (label,)) = list_videos(data_of(source, tmp_path))
    assert tmp_path / row.path == path and label == row.label == {"annotated": "r\xfcn", "path_label": "0"}.get(
        source, "run"
    )


def test_lines_that_repeat_or_contradict_others_are_named_by_file_and_line(tmp_path, caplog):
    root = write(tmp_path, {"train.txt": "a.mp4 1\n\nb.mp4 0\na.mp4 1\nb.mp4 0\n"})
    assert len(list_videos(data_of("path_label", root))[0]) == 2
    assert f"2 lines repeat others and count once, the first of them: {root / 'train.txt'}, line 4" in caplog.text
    write(tmp_path, {"train.txt": "a.mp4 1\n", "val.txt": "b.mp4 1\n\na.mp4 0\n"})
    with pytest.raises(ValueError, match=r"train.txt, line 1 lists .*a.mp4 as '1', .*val.txt, line 3 as '0'"):
        list_videos(data_of("path_label", root))


def test_two_files_that_fit_one_line_are_an_error(tmp_path):
    lists = {"a.csv": "label,youtube_id,time_start,time_end,split\nrun,abc,0,9,train\n"}
    twice = {f"{folder}/abc_000000_000009.mp4": "x" for folder in ("one", "two")}
    with pytest.raises(ValueError, match=r"may be .*one.* or .*two.*; keep one"):
        list_videos(data_of("kinetics", write(tmp_path, lists | twice)))


def annotate(root, *lines, header="path,label,split"):
    return write(root, {"annotations.csv": "\n".join([header, *lines]) + "\n"})


def test_annotations_give_all_splits_and_the_classes_of_the_whole_set_in_alphabetical_order(tmp_path):
    root = annotate(tmp_path, "b/x.mp4,run,train", '"a,1.mp4",climb,train', "c.mp4,box,test", "b/x.mp4,run,test")
    rows, classes = list_videos(data_of("annotated", root))
    assert [row[:4] for row in rows] == [
        ("b/x.mp4", "run", 2, "train"), ("a,1.mp4", "climb", 1, "train"),
        ("c.mp4", "box", 0, "test"), ("b/x.mp4", "run", 2, "test"),
    ]  # fmt: skip
    assert classes == ["box", "climb", "run"]


@pytest.mark.parametrize(
    ("header", "line", "quoted"),
    [
        ("path,split,label", "a.mp4,train,run", r"columns \['path', 'split', 'label'\]; they must be path,label,split"),
        ("path,label", "a.mp4,run", "they must be path,label,split"),
        ("path,label,split", "a.mp4,,train", r"line 3: \['a.mp4', '', 'train'\]"),
        ("path,label,split", "a.mp4,run", r"line 3: \['a.mp4', 'run'\]"),
        ("path,label,split", "a.mp4,run,train,again", "line 3: .*again"),
    ],
    ids=["order of columns", "two columns", "empty field", "field too few", "field too many"],
)
def test_wrong_annotations_are_an_error_that_quotes_file_and_fault(tmp_path, header, line, quoted):
    annotate(tmp_path, "first.mp4,run,dev", line, header=header)
    with pytest.raises(ValueError, match=rf"annotations.csv.*{quoted}"):
        list_videos(data_of("annotated", tmp_path))


def test_missing_annotations_are_an_error_that_says_what_the_file_must_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations.csv; it must have the columns path,label,split"):
        list_videos(data_of("annotated", tmp_path))


def test_path_label_lists_keep_the_order_of_their_class_names_and_classes_without_videos(tmp_path):
    files = {"train.txt": "a b.mp4 1\n", "val.csv": "c.mp4,0\n"}
    assert list_videos(data_of("path_label", write(tmp_path, files)))[1] == ["0", "1"]
    rows, classes = list_videos(data_of("path_label", write(tmp_path, {"classes.txt": "run\nclimb\nbox\n"})))
    assert [row[:4] for row in rows] == [("a b.mp4", "climb", 1, "train"), ("c.mp4", "run", 0, "val")]
    assert classes == ["run", "climb", "box"]
    index.write_index(tmp_path / "index.csv", rows, classes)
    bare = Indexed("", "box", 2, "")
    assert index.read_index(tmp_path / "index.csv") == [*rows, bare]


def test_a_relative_root_starts_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("faster_lib.data.index.DATA", tmp_path)
    write(tmp_path, {"mine/run/a.mp4": "x", "lists/train.txt": "run/a.mp4\n"})
    profile = profile_of("folders", Path("mine"), annotations="lists", num_classes=2)
    ((row,), _) = list_videos(profile.data)
    assert row.path == "run/a.mp4"
    file = index.File(8, decoder="decord")
    index.write_index(
        write(tmp_path, {"folders/x": ""}) / "folders/index.csv", [row._replace(file=file)], ["run", "sit"]
    )
    assert load_videos(profile, "train", runs=tmp_path).videos[0].path == tmp_path / "mine" / "run" / "a.mp4"


def test_without_lists_the_hash_of_a_path_puts_each_video_in_one_split(tmp_path):
    root = write(tmp_path, {f"{label}/{i:03d}.MP4": "x" for label in ("run", "walk") for i in range(150)})
    parts = {split: {row.path for row in listed("folders", root, split)[0]} for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 300
    assert 210 <= len(parts["train"]) <= 270 and min(map(len, parts.values())) >= 12
    again = write(root, {"run/new.mp4": "x"})
    assert parts["val"] <= {row.path for row in listed("folders", again, "val")[0]}, "a new video moves no other"


def test_clips_of_one_recording_stay_together_and_a_small_folder_has_all_splits_for_each_class(tmp_path):
    names = [f"run/v_run_g{group:02d}_{clip}.avi" for group in range(60) for clip in ("c01", "C02", "clip3")]
    root = write(tmp_path / "grouped", dict.fromkeys(names, "x"))
    split_of = {row.path: split for split in ("train", "val", "test") for row in listed("folders", root, split)[0]}
    groups = [{split_of[name] for name in names[first : first + 3]} for first in range(0, len(names), 3)]
    assert len(split_of) == 180 and all(len(group) == 1 for group in groups)
    few = write(tmp_path / "few", {f"{label}/v_{label}_g01_c{i}.avi": "x" for label in ("a", "b") for i in range(5)})
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        assert [row.label for row in listed("folders", few, split)[0]] == ["a"] * count + ["b"] * count


def test_folders_of_a_split_each_are_read_too(tmp_path):
    root = write(
        tmp_path, {"train/run/a.mp4": "x", "test/run/b.mp4": "x", "test/walk/c.avi": "x", "test/walk/d.txt": ""}
    )
    rows, classes = listed("folders", root, "test")
    assert [row.path for row in rows] == ["test/run/b.mp4", "test/walk/c.avi"] and classes == ["run", "walk"]


@needs_lists
@pytest.mark.parametrize(("fold", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_the_official_lists_are_read_whole(fold, train, test):
    def count(source: str, split: str) -> tuple[int, int]:
        lists = str(SHARED / "splits" / source)
        return tuple(map(len, listed(source, SHARED / f"{source}_samples", split, annotations=lists, fold=fold)))

    assert count("ucf101", "train") == (train, 101) and count("ucf101", "test") == (test, 101)
    assert count("hmdb51", "train") == (3570, 51) and count("hmdb51", "test") == (1530, 51)
