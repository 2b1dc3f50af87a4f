"""Tests of the dry run: every layout, the same networks, one step of each stage, and every cut said."""

import logging
import math
from pathlib import Path

import pytest

from faster_lib import dryrun
from faster_lib.data.imitation import IMITATIONS
from faster_lib.data.sources import load_videos
from faster_lib.data.video import open_video
from faster_lib.estimate import count_costs, count_videos, estimate
from faster_lib.profiles import load_profile

CUT = {
    *(f"backbone_training.{key}" for key in ("batch_frames", "most_batch_clips", "iterations")),
    *(f"aggregator_training.{key}" for key in ("batch_videos", "epochs")),
    "loading.workers",
}


def small_scale(name):
    """Give a profile of paper scale with narrow networks and small pictures, all else as it is."""
    profile, smoke = load_profile(name), load_profile("smoke").data
    keys = ("train_short_side_px", "test_short_side_px", "crop_px")
    data = profile.data.model_copy(update={**{key: getattr(smoke, key) for key in keys}, "video_frames": 64})
    networks = profile.networks.model_copy(update={"width": 0.0625})
    return profile.model_copy(update={"data": data, "networks": networks})


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("kinetics400", set()),
        ("ucf101", {"pretraining"}),
        ("hmdb51", {"pretraining", "aggregator_training.views"}),
        ("tiny", {"scene.videos"}),
    ],
)
def test_a_dry_run_changes_these_keys_and_no_other_and_says_each(name, more, tmp_path):
    profile = load_profile(name)
    small = dryrun.cut_down(profile, 8, tmp_path)
    said = dict(line.split(": ", 1) for line in dryrun.list_cuts(profile, small))
    assert set(said) == CUT | more
    assert said["backbone_training.iterations"] == (
        f"the profile says {profile.backbone_training.iterations}, the dry run took 1"
    )
    assert small.networks == profile.networks and small.data.crop_px == profile.data.crop_px


@pytest.mark.parametrize("num_classes", [5, 20])
@pytest.mark.parametrize("layout", [*IMITATIONS, "annotated"])
def test_videos_of_every_layout_are_large_enough_and_their_lists_name_all_classes(layout, num_classes, tmp_path):
    profile = small_scale("kinetics400")
    fold = 3 if layout in ("ucf101", "hmdb51") else None
    data = profile.data.model_copy(update={"source": layout, "num_classes": num_classes, "fold": fold})
    profile = profile.model_copy(update={"data": data})
    small = dryrun.cut_down(profile, 8, tmp_path)
    dryrun.write_videos(small)
    train, test = (load_videos(small, split) for split in ("train", "test"))
    assert len(train.classes) == num_classes and (len(train), len(test)) == (2, 1)
    for path in train.paths + test.paths:
        reader = open_video(path)
        assert len(reader) == 64 and reader[0].shape == (50, 50, 3), "the largest short side of training"
    if layout == "annotated":
        assert "data.source: the profile says annotated, the dry run took folders" in dryrun.list_cuts(profile, small)


def test_every_stage_of_a_fine_tuning_profile_runs_with_all_its_classes_and_leaves_nothing(tmp_path):
    profile = small_scale("ucf101")
    run = dryrun.dry_run(profile, 16, runs=tmp_path)
    whole, done = (estimate(p, 16, count_costs(p, 16), v) for p, v in ((profile, count_videos(profile)), run[:2]))
    assert list(run.spent) == list(whole.macs) and all(spent.seconds >= 0 for spent in run.spent.values())
    assert 1e8 < run.spent["stage 1, expensive"].peak_bytes <= run.spent["stage 2 and evaluation"].peak_bytes < 1e11
    assert all(loss == pytest.approx(math.log(101), rel=0.1) for loss in run.losses.values()), "of untrained networks"
    assert run.schedule == "ECCC" and run.result["videos"] == 1 and run.videos[:3] == (2, 1, 3)
    assert not list(Path(tmp_path / "dry-run").iterdir())
    told = "\n".join(dryrun.describe_run(profile, 16, run, done))
    assert "pretraining: the profile says {'profile': 'kinetics400'}, the dry run took None" in told
    assert "1 iterations × 2 clips ×" in told and "features of training: " in told
    for stage, seconds in (("stage 1, expensive", 1.0), ("stage 1, cheap", 36.0)):
        run.spent[stage] = run.spent[stage]._replace(seconds=seconds)
    lines = dryrun.describe_whole(profile, count_videos(profile), whole, done, run, tflops=1.0, utilisation=0.5)
    quick, line = (line for line in lines if line.startswith("  stage 1, "))
    assert quick.endswith(" on the GPU"), "a second says nothing of the hours here"
    work = whole.macs["stage 1, cheap"].value
    assert f"{work:.3g} MACs: {2 * work / 0.5e12 / 3600:.2g} h on the GPU" in line
    assert line.endswith(", 4,000 h here"), "36 s for 2 clips, and 25,000 times 32 in all"
    assert "  What the profile kinetics400 needs comes before and on top." in lines


@pytest.fixture
def told(tmp_path, monkeypatch, caplog):
    """Give a function that runs the command in a folder of its own and gives the lines that it logs."""
    caplog.set_level(logging.INFO, logger="faster_lib.dryrun")
    in_runs = dryrun.dry_run
    monkeypatch.setattr(dryrun, "dry_run", lambda profile, L: in_runs(profile, L, runs=tmp_path))

    def tell(*arguments):
        dryrun.main(arguments)
        return [record.message for record in caplog.records if record.name == "faster_lib.dryrun"]

    return tell


def test_the_command_runs_a_profile_of_generated_videos_and_tells_its_size_on_disk(told):
    told = told("--profile", "smoke", "-L", "8", "--tflops", "2")
    assert told[0].startswith("DRY RUN of smoke: L = 8, FAST-GRU on ECCCCCCC")
    assert any("MACs / (2.0e12 × 0.3) / 3600" in line for line in told)
    (disk,) = (line for line in told if line.startswith("  disk, videos: 52 videos × "))
    assert 0.1 < float(disk.split(" = ")[1].removesuffix(" MB")) < 10


def test_a_set_of_which_nothing_is_known_is_run_all_the_same_and_the_estimate_says_so(told, monkeypatch):
    profile = small_scale("tank_state")
    mine = profile.model_copy(update={"data": profile.data.model_copy(update={"root": "nowhere"})})
    monkeypatch.setattr(dryrun, "load_profile", lambda name: mine if name == "mine" else load_profile(name))
    lines = told("--profile", "mine", "-L", "16")
    (line,) = (line for line in lines if line.startswith("THE WHOLE"))
    assert "2 videos for training, 1 for the evaluation (source: the dry run's own" in line and "'nowhere'" in line
