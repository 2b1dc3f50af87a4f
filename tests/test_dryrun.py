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
    assert list(run.spent) == list(whole.macs) and all(spent.seconds > 0 for spent in run.spent.values())
    assert 1e8 < run.spent["stage 1, expensive"].peak_bytes <= run.spent["stage 2 and evaluation"].peak_bytes < 1e11
    assert all(loss == pytest.approx(math.log(101), rel=0.1) for loss in run.losses.values()), "of untrained networks"
    assert run.schedule == "ECCC" and run.result["videos"] == 1 and run.videos[:3] == (2, 1, 3)
    assert not list(Path(tmp_path / "dry-run").iterdir())
    told = "\n".join(dryrun.describe_run(profile, 16, run, done))
    assert "pretraining: the profile says {'profile': 'kinetics400'}, the dry run took None" in told
    assert "1 iterations × 2 clips ×" in told and "features of training: " in told
    lines = dryrun.describe_whole(profile, count_videos(profile), whole, done, run, tflops=1.0, utilisation=0.5)
    (line,) = (line for line in lines if line.startswith("  stage 1, cheap: "))
    work, here = whole.macs["stage 1, cheap"].value, run.spent["stage 1, cheap"].seconds
    assert f"{work:.3g} MACs: {2 * work / 0.5e12 / 3600:.2g} h on the GPU" in line
    assert line.endswith(f" {here * 25000 * 32 / 2 / 3600:,.0f} h here")
    assert "  What the profile kinetics400 needs comes before and on top." in lines


def test_the_command_runs_a_profile_of_generated_videos_and_tells_its_size_on_disk(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="faster_lib.dryrun")
    smoke_run = dryrun.dry_run
    monkeypatch.setattr(dryrun, "dry_run", lambda profile, L: smoke_run(profile, L, runs=tmp_path))
    dryrun.main(["--profile", "smoke", "-L", "8", "--tflops", "2"])
    told = [record.message for record in caplog.records if record.name == "faster_lib.dryrun"]
    assert told[0].startswith("DRY RUN of smoke: L = 8, FAST-GRU on ECCCCCCC")
    assert any("MACs / (2.0e12 × 0.3) / 3600" in line for line in told)
    (disk,) = (line for line in told if line.startswith("  disk, videos: 52 videos × "))
    assert 0.1 < float(disk.split(" = ")[1].removesuffix(" MB")) < 10
