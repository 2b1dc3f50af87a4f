"""Tests of the layouts in which data sets come: the official lists, their quirks, and the whole kit through each."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from faster_lib import Schedule
from faster_lib.data import layouts
from faster_lib.data.imitation import IMITATIONS, imitate, main, plan_layout
from faster_lib.data.layouts import LAYOUTS, read_layout
from faster_lib.data.sources import load_videos, what_videos_depend_on
from faster_lib.data.synthetic import CLASSES
from faster_lib.data.video import open_video, read_frames
from faster_lib.paths import PARAMS, ROOT
from faster_lib.profiles import Profile, load_profile, parse_profile
from faster_lib.store import hash_of
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import train_backbone

SHARED = ROOT.parent / "shared" / "data"
needs_lists = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the official lists, which are not of this repository"
)


def profile_of(source: str, root: Path, **changes) -> Profile:
    content = yaml.safe_load((PARAMS / "smoke.yaml").read_text())
    content["data"] |= {"source": source, "root": str(root), **changes}
    return parse_profile({"name": "real", **content, "scene": None}, source="a test")


def data_of(source: str, root: Path, **changes):
    return profile_of(source, root, **changes).data


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


@pytest.fixture(scope="module")
def imitations(make_scene, tmp_path_factory):
    """One folder for each layout, all of 32 training and 16 test videos of 64 frames."""
    folder = tmp_path_factory.mktemp("imitations")
    for layout in IMITATIONS:
        imitate(make_scene(videos={"train": 32, "test": 16}), layout, folder / layout, workers=2)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_whole_kit_runs_through_every_layout(layout, imitations, tmp_path):
    profile = profile_of(layout, imitations / layout, video_frames=64)
    train, test = (load_videos(profile, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (32, 16) and not set(train.paths) & set(test.paths)
    normalised = [name.lower().replace(" ", "").replace("_", "") for name in test.classes]
    assert sorted(normalised) == sorted(name.replace("_", "") for name in CLASSES)
    assert Counter(test.targets) == Counter(range(16)), "every class once"
    networks = [train_backbone(profile, name, 16, runs=tmp_path) for name in ("r2plus1d_50", "r2d_26")]
    pair = FeaturePair(profile, *networks, runs=tmp_path)
    cell = ("fast_gru", Schedule("ECCC"))
    (result,) = measure_all(pair, [cell], seeds=[0], split="test")[cell]
    assert result["videos"] == 16 and len(result["correct"]) == 16


def test_all_layouts_hold_the_same_videos_with_the_same_classes(imitations):
    frames, labels = {}, {}
    for layout in LAYOUTS:
        videos = load_videos(profile_of(layout, imitations / layout), "test")
        labels[layout] = [videos.classes[t].lower().replace(" ", "").replace("_", "") for t in videos.targets]
        reader = open_video(videos.paths[labels[layout].index("leftblue")])
        frames[layout] = read_frames(reader, range(64), path="a test").float()
    assert all(sorted(found) == sorted(labels["folders"]) for found in labels.values())
    for layout, found in frames.items():
        assert found.shape == (64, 40, 40, 3)
        assert (found - frames["folders"]).abs().mean() < 12, f"{layout} shows another video"


def test_the_command_writes_a_layout_that_reads_and_refuses_a_folder_in_use(tmp_path):
    arguments = ["folders", str(tmp_path / "videos"), "--profile", "smoke"]
    main(arguments)
    smoke = load_profile("smoke")
    videos = load_videos(profile_of("folders", tmp_path / "videos"), "train")
    assert len(videos) == smoke.scene.videos["train"] and all(path.is_file() for path in videos.paths)
    with pytest.raises(FileExistsError, match="videos is not empty"):
        main(arguments)
    with pytest.raises(ValueError, match="unknown layout 'ucf'; choose one of kinetics"):
        imitate(smoke.scene, "ucf", tmp_path / "other", workers=1)


def imitated(source: str, *, videos: dict[str, int], **changes) -> Profile:
    content = yaml.safe_load((PARAMS / "smoke.yaml").read_text())
    content["data"] |= {"source": source, **changes}
    content["scene"] |= {"videos": videos, "frames": 64, "size_px": 40}
    return parse_profile({"name": "imitated", **content}, source="a test")


@pytest.mark.parametrize("layout", IMITATIONS)
def test_a_profile_with_a_scene_and_a_layout_generates_its_videos_in_it_and_goes_on_after_an_interruption(
    layout, tmp_path
):
    profile = imitated(layout, videos={"train": 32, "test": 16})
    train, test = (load_videos(profile, split, runs=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (32, 16, 16)
    assert Counter(test.targets) == Counter(range(16)) and all(path.is_file() for path in train.paths + test.paths)
    (record,) = tmp_path.glob(f"imitations/{layout}-*/record.json")
    kept, lost = train.paths[0], train.paths[1]
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    record.unlink()
    assert load_videos(profile, "train", runs=tmp_path) == train
    assert kept.stat().st_mtime_ns == stamp and lost.read_bytes() == before


def test_the_results_of_an_imitation_depend_on_its_layout_its_scene_and_its_fold_but_need_no_video():
    videos = {"train": 32, "test": 16}
    ucf101 = imitated("ucf101", videos=videos)
    others = [imitated("hmdb51", videos=videos), imitated("ucf101", videos=videos | {"train": 48})]
    profiles = [ucf101, *others, ucf101.in_fold(1), ucf101.in_fold(2)]
    assert len({hash_of(what_videos_depend_on(profile, "train")) for profile in profiles}) == 5
    with pytest.raises(ValueError, match="fold is 2; ucf101 and hmdb51 have folds, 1 to 3, and no other set"):
        imitated("folders", videos=videos).in_fold(2)
    with pytest.raises(ValueError, match="fold is 4;"):
        ucf101.in_fold(4)


@pytest.mark.parametrize("layout", ["ucf101", "hmdb51"])
def test_the_three_folds_test_disjoint_videos_of_every_class_and_train_on_all_others(layout, tmp_path):
    scene = load_profile("smoke").scene.model_copy(update={"videos": {"train": 112, "val": 16, "test": 48}})
    plan_layout(scene, layout, tmp_path)
    tests = []
    for fold in (1, 2, 3):
        train, test = (read_layout(data_of(layout, tmp_path, fold=fold), split) for split in ("train", "test"))
        assert set(Counter(test.targets).values()) == {3} and (len(train), len(test)) == (112, 48)
        assert not set(train.paths) & set(test.paths)
        pool = set(train.paths) | set(test.paths)
        tests.append(set(test.paths))
        if layout == "ucf101":
            groups = [{path.stem.rsplit("_", 1)[0] for path in side.paths} for side in (train, test)]
            assert not groups[0] & groups[1] and all(1 <= int(name[-2:]) <= 25 for name in groups[0] | groups[1])
    assert len(set.union(*tests)) == 3 * 48 and set.union(*tests) < pool and len(pool) == 160
    few = scene.model_copy(update={"videos": {"train": 95, "test": 48}})
    with pytest.raises(ValueError, match="has 95 train and 48 test videos; three folds"):
        imitate(few, layout, tmp_path / "few", workers=1)


def test_results_depend_on_what_is_listed_but_not_on_where_it_lies(imitations, tmp_path):
    here = what_videos_depend_on(profile_of("folders", imitations / "folders"), "test")
    moved = tmp_path / "moved"
    moved.symlink_to(imitations / "folders")
    there = what_videos_depend_on(profile_of("folders", moved), "test")
    assert here["list"] == there["list"]
    assert here["list"] != what_videos_depend_on(profile_of("folders", moved), "train")["list"]


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
    videos = read_layout(data_of("kinetics", root), "val")
    assert videos.classes == ("air drumming", "yoga") and len(videos) == 3, "a repeated line counts once"
    found = {
        path.relative_to(root).as_posix(): target for path, target in zip(videos.paths, videos.targets, strict=True)
    }
    assert found == {
        "--a_b-C_123_000001_000011.webm": 0,
        "val/Yoga/ZZ_000001_x_000417_000427.mp4": 1,
        "gone4567890_000000_000010.mp4": 1,  # missing, and still expected
    }
    with pytest.raises(ValueError, match="no split 'test'; they have val"):
        read_layout(data_of("kinetics", root), "test")


def test_the_lists_of_ucf101_end_in_crlf_and_spell_a_class_in_two_ways(tmp_path):
    root = write(
        tmp_path,
        {
            "ucfTrainTestlist/classInd.txt": "2 HandstandPushups\r\n1 Archery\r\n",
            "ucfTrainTestlist/testlist02.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n\r\n",
            "UCF-101/HandstandPushups/v_HandstandPushups_g01_c01.avi": "x",
        },
    )
    videos = read_layout(data_of("ucf101", root, fold=2), "test")
    assert videos.paths == (root / "UCF-101/HandstandPushups/v_HandstandPushups_g01_c01.avi",)
    assert videos.classes == ("Archery", "HandstandPushups") and videos.targets == (1,)


@pytest.mark.parametrize(
    ("source", "files", "changes", "error", "quoted"),
    [
        ("kinetics", {"a.csv": "x,y\n1,2\n"}, {}, FileNotFoundError, "has the columns label,youtube_id"),
        ("kinetics", {"a.csv": "label,youtube_id,time_start,time_end,split\nrun,abc,soon,9,train\n"}, {}, ValueError,
         r"a.csv, line 2: \['run', 'abc', 'soon'"),
        ("ucf101", {"classInd.txt": "1 Run\n"}, {}, FileNotFoundError, "trainlist01.txt"),
        ("ucf101", {"classInd.txt": "1 Run\n", "trainlist01.txt": "Walk/v.avi 1\n"}, {}, ValueError, "'Walk/v.avi 1'"),
        ("hmdb51", {"a.txt": ""}, {"fold": 3}, FileNotFoundError, "<class>_test_split3.txt"),
        ("hmdb51", {"run_test_split1.txt": "a.avi 3 \n"}, {}, ValueError, "'a.avi 3' does not end in a flag"),
        ("path_label", {"train.csv": "a b.mp4 one\n"}, {}, ValueError, "'a b.mp4 one' is not a path and a class"),
        ("path_label", {"train.csv": "a.mp4 1\n", "classes.txt": "run\n"}, {}, ValueError, "class 1 .*none of the 1"),
        ("path_label", {"train.csv": "a.mp4 1\na.mp4 0\n"}, {}, ValueError, "a.mp4 as '1' and as '0'"),
        ("folders", {"run/a.mp4": "", "train.txt": "walk/a.mp4\n"}, {}, ValueError, "no class folder"),
        ("folders", {"train.txt": ""}, {}, ValueError, "no video of split 'train'"),
        ("folders", {}, {"root": "/not/there"}, FileNotFoundError, "data.root is '/not/there', but /not/there is no"),
        ("folders", {}, {"annotations": "/not/there"}, FileNotFoundError, "data.annotations is '/not/there'"),
    ],
)  # fmt: skip
def test_wrong_lists_are_an_error_that_names_the_file_and_quotes_the_line(
    tmp_path, source, files, changes, error, quoted
):
    with pytest.raises(error, match=quoted):
        read_layout(data_of(source, **{"root": write(tmp_path, files), **changes}), "train")


def test_two_files_that_fit_one_line_are_an_error(tmp_path):
    lists = {"a.csv": "label,youtube_id,time_start,time_end,split\nrun,abc,0,9,train\n"}
    twice = {f"{folder}/abc_000000_000009.mp4": "x" for folder in ("one", "two")}
    with pytest.raises(ValueError, match=r"may be .*one.* or .*two.*; keep one"):
        read_layout(data_of("kinetics", write(tmp_path, lists | twice)), "train")


def test_a_relative_root_starts_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "DATA", tmp_path)
    write(tmp_path, {"mine/run/a.mp4": "x", "lists/train.txt": "run/a.mp4\n"})
    data = data_of("folders", Path("mine"), annotations="lists")
    assert read_layout(data, "train").paths == (tmp_path / "mine" / "run" / "a.mp4",)


def test_without_lists_the_hash_of_a_path_puts_each_video_in_one_split(tmp_path):
    root = write(tmp_path, {f"{label}/{i:03d}.MP4": "x" for label in ("run", "walk") for i in range(150)})
    parts = {split: set(read_layout(data_of("folders", root), split).paths) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 300
    assert 210 <= len(parts["train"]) <= 270 and min(map(len, parts.values())) >= 12
    again = write(root, {"run/new.mp4": "x"})
    assert parts["val"] <= set(read_layout(data_of("folders", again), "val").paths), "a new video moves no other"


def test_folders_of_a_split_each_are_read_too(tmp_path):
    root = write(
        tmp_path, {"train/run/a.mp4": "x", "test/run/b.mp4": "x", "test/walk/c.avi": "x", "test/walk/d.txt": ""}
    )
    videos = read_layout(data_of("folders", root), "test")
    assert [path.name for path in videos.paths] == ["b.mp4", "c.avi"] and videos.classes == ("run", "walk")


@needs_lists
@pytest.mark.parametrize(("fold", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_the_official_lists_are_read_whole(fold, train, test):
    def count(source: str, split: str) -> tuple[int, int]:
        lists = str(SHARED / "splits" / source)
        videos = read_layout(data_of(source, SHARED / f"{source}_samples", annotations=lists, fold=fold), split)
        return len(videos), len(videos.classes)

    assert count("ucf101", "train") == (train, 101) and count("ucf101", "test") == (test, 101)
    assert count("hmdb51", "train") == (3570, 51) and count("hmdb51", "test") == (1530, 51)
