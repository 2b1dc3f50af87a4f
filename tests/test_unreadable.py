"""Tests of the policy for videos that cannot be read: counted, logged once, never replaced, never lost."""

import json
import re
import shutil

import pytest

from faster_lib import Schedule
from faster_lib.data.datasets import Census, RandomClips, Video, VideoClips
from faster_lib.data.index import load_videos, videos_key
from faster_lib.data.video import VideoError
from faster_lib.profiles import Profile, load_profile, parse_profile
from tests.foreign_layouts import write_layout
from workflow.index import index_videos


@pytest.fixture(scope="module")
def whole(make_scene, tmp_path_factory):
    """A folder with 20 training and 16 test videos, one folder per class."""
    folder = tmp_path_factory.mktemp("whole") / "videos"
    write_layout(make_scene(videos={"train": 20, "test": 16}), "folders", folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(whole, tmp_path / "videos")


@pytest.fixture
def damaged(folder):
    """The same with one of the training videos cut, one test video missing and another of zeros."""
    train, test = ((folder / f"{split}.txt").read_text().splitlines() for split in ("train", "test"))
    cut = folder / train[3]
    cut.write_bytes(cut.read_bytes()[:3000])
    (folder / test[5]).unlink()
    (folder / test[7]).write_bytes(bytes(4000))
    return folder


def profile_of(root, share: float, **training) -> Profile:
    content = load_profile("smoke").model_dump(mode="json")
    content["data"] |= {"source": "folders", "root": str(root), "video_frames": 64, "most_unreadable_share": share}
    content["backbone_training"] |= {"iterations": 3, **training}
    return parse_profile(content | {"name": "damaged", "scene": None}, source="a test")


def test_the_index_says_what_is_used_and_its_loss_is_logged_once(damaged, tmp_path, caplog):
    profile = profile_of(damaged, 0.05)
    with pytest.raises(FileNotFoundError, match="make index PROFILE=damaged"):
        load_videos(profile, "train", runs=tmp_path)
    index_videos(profile, runs=tmp_path)
    assert load_videos(profile, "test", runs=tmp_path).census == Census(expected=16, used=14, missing=1, corrupt=1)
    for _ in range(2):
        assert len(load_videos(profile, "train", runs=tmp_path, is_training=True)) == 19
    said = [record.message for record in caplog.records if record.name == "faster_lib.data.index"]
    (of_train,) = [message for message in said if "of the 20 videos of split 'train'" in message]
    assert "0 missing, 1 corrupt" in of_train and "left out" in of_train
    (of_test,) = [message for message in said if "of the 16 videos of split 'test'" in message]
    assert "1 missing, 1 corrupt" in of_test


def test_results_say_what_was_used_and_count_what_was_not_as_wrong(damaged, tmp_path):
    from faster_lib.training.evaluation import measure_all
    from faster_lib.training.features import FeaturePair
    from faster_lib.training.stage1 import train_backbone

    profile = profile_of(damaged, 0.05)
    index_videos(profile, runs=tmp_path)
    networks = [train_backbone(profile, name, 8, runs=tmp_path) for name in ("r2plus1d_50", "r2d_26")]
    pair = FeaturePair(profile, *networks, runs=tmp_path)
    cell = ("fast_gru", Schedule("ECCC"))
    (result,) = measure_all(pair, [cell], seeds=[0], split="test")[cell]
    assert result.census == Census(expected=16, used=14, missing=1, corrupt=1)
    assert len(result.correct) == 14
    right = result.correct.count("1")
    assert result.video1 == pytest.approx(100 * right / 14)
    assert result.video1_of_expected == pytest.approx(100 * right / 16)


def test_training_is_refused_where_more_than_the_set_share_is_unreadable_and_looking_is_not(damaged, tmp_path):
    profile = profile_of(damaged, 0.04)
    index_videos(profile, runs=tmp_path)
    with pytest.raises(ValueError, match=r"1 of the 20 videos of split 'train'.*most_unreadable_share is 0\.04"):
        load_videos(profile, "train", runs=tmp_path, is_training=True)
    assert len(load_videos(profile, "train", runs=tmp_path)) == 19


def test_a_file_that_breaks_after_the_index_is_skipped_and_logged_once_up_to_the_share(damaged, tmp_path, caplog):
    from faster_lib.training.stage1 import train_backbone

    profile = profile_of(damaged, 0.1, iterations=6)  # of 20 videos: the one of the index, and one more
    index_videos(profile, runs=tmp_path)
    paths = [video.path for video in load_videos(profile, "train", runs=tmp_path).videos]
    for path in paths[:1]:
        path.write_bytes(path.read_bytes()[:2000])
    train_backbone(profile, "r2d_26", 8, runs=tmp_path)  # two epochs and more: it comes by twice at least
    skipped = [record.message for record in caplog.records if record.message.startswith("skipped: ")]
    assert len(skipped) == 1 and str(paths[0]) in skipped[0]
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("damaged/networks/*/record.json"))
    assert list(record["measures"]["skipped"]) == [str(paths[0])]
    assert record["measures"]["videos"] == {"expected": 20, "used": 19, "missing": 0, "corrupt": 1}
    for path in paths[1:6]:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(VideoError, match=r"[3-7] of 20 videos cannot be read.*which is 0\.1"):
        train_backbone(profile, "r3d_50", 8, runs=tmp_path)


def test_a_bit_flipped_after_the_index_is_noticed_though_the_video_can_still_be_read(folder, tmp_path):
    profile = profile_of(folder, 0.1)
    index_videos(profile, runs=tmp_path)
    videos = load_videos(profile, "train", runs=tmp_path)
    path = videos.videos[2].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert len(Video(path).open()) == 64  # as a file of which nothing is known
    clips = RandomClips(videos, profile.data, clip_frames=8, clips_per_video=1, seed=0)
    batch = clips.load_batch([(0, place) for place in range(len(videos))])
    assert len(batch.targets) == 19 and [place for place, _ in batch.skipped] == [2]
    said = rf"^{path}: its bytes are not those that were indexed; bring it back, or touch it and index it again"
    assert re.match(said, batch.skipped[0][1])
    with pytest.raises(VideoError, match=said):
        VideoClips(videos, profile.data, clip_frames=8, num_clips=8, views=0, seed=0)[2]
    index_videos(profile, runs=tmp_path)
    assert len(load_videos(profile, "train", runs=tmp_path).videos[2].open()) == 64


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flip_last_bit, lambda content: content[: content.rindex(b"\n", 0, -1) + 1], bytes])
def test_a_damaged_index_is_refused_with_the_remedy(whole, tmp_path, damage):
    profile = profile_of(whole, 0.0)
    index_videos(profile, runs=tmp_path)
    table = tmp_path / "damaged" / "index.csv"
    content = table.read_bytes()
    table.write_bytes(b"" if damage is bytes else damage(content))
    for read in (load_videos, videos_key):
        with pytest.raises(ValueError, match=rf"{table} is damaged; make it again by: make index PROFILE=damaged"):
            read(profile, "train", runs=tmp_path)
    index_videos(profile, runs=tmp_path)
    assert table.read_bytes() == content and len(load_videos(profile, "train", runs=tmp_path)) == 20


def test_the_key_depends_on_the_content_of_the_files_once_they_are_indexed_again(folder, tmp_path):
    profile = profile_of(folder, 0.0)
    index_videos(profile, runs=tmp_path)
    key = videos_key(profile, "test", runs=tmp_path)
    one, other = (folder / name for name in (folder / "test.txt").read_text().splitlines()[:2])
    one.write_bytes(other.read_bytes())
    assert videos_key(profile, "test", runs=tmp_path) == key
    index_videos(profile, runs=tmp_path)
    assert videos_key(profile, "test", runs=tmp_path) != key
