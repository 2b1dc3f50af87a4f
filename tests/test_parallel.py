"""Tests of run_all in faster_lib.workers: each part is worked on once, and errors and orphans end the work."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faster_lib.data.video import encode_h264
from faster_lib.paths import ROOT
from faster_lib.workers import _call, run_all


def _touch(folder: Path, number: int) -> None:
    if number == 7:
        raise ValueError("7 is refused")
    with (folder / str(number)).open("x") as file:
        file.write(str(os.getpid()))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_part_is_worked_on_once_in_as_many_processes_as_asked_for(tmp_path, workers):
    run_all(_touch, [(tmp_path, number) for number in range(6)], workers=workers, title="touch", unit="file")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"012345"]
    writers = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert (os.getpid() in writers) == (workers == 0)
    with pytest.raises(ValueError, match="7 is refused"):
        run_all(_touch, [(tmp_path, 7)], workers=workers, title="touch", unit="file")


def test_a_worker_whose_main_process_is_gone_starts_no_further_part(tmp_path, monkeypatch):
    _call(os.getppid(), _touch, (tmp_path, 1))
    monkeypatch.setattr(os, "getppid", lambda: 1)  # as of an orphan
    _call(os.getpid() + 1, _touch, (tmp_path, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_no_bar_of_the_library_overrules_the_environment_variable_that_turns_bars_off():
    for path in (ROOT / "faster_lib").rglob("*.py"):
        assert not re.search(r"disable=(?!True)", path.read_text(encoding="utf-8")), path


SCAN = """
import os
from pathlib import Path
from faster_lib import Faster, build_aggregator, build_backbone, load_profile, score_videos
from faster_lib.data.datasets import VideoClips
from faster_lib.data.index import load_videos
from faster_lib.profiles import parse_profile
from workflow.index import index_videos

runs = Path(os.environ["SCRATCH"])
content = load_profile("smoke").model_dump(mode="json")
content["data"] |= {"source": "folders", "root": str(runs), "video_frames": 16, "num_classes": 2}
profile = parse_profile(content | {"name": "mine", "scene": None}, source="a script")
index_videos(profile, runs=runs)
videos = load_videos(profile, "test", runs=runs)
networks = [build_backbone("r2d_26", num_classes=2, width=1 / 64) for _ in range(2)]
model = Faster(*networks, build_aggregator("gru", networks[0].channels), "EC", 2).eval()
clips = VideoClips(videos, profile.data, clip_frames=8, num_clips=2, views=0, seed=0)
print([tuple(scores.shape) for scores, _ in score_videos(model, clips)])
"""
GENERATION = """
from faster_lib.data.index import load_videos
from faster_lib.profiles import load_profile
import os
from pathlib import Path
smoke = load_profile("smoke")
small = dict(frames=16, size_px=40, videos={"train": 4}, shots=(1, 1), shortest_shot_frames=8)
loading = smoke.loading.model_copy(update={"workers": 2})
smoke = smoke.model_copy(update={"scene": smoke.scene.model_copy(update=small), "loading": loading})
print(len(load_videos(smoke, "train", runs=Path(os.environ["SCRATCH"]))))
"""


@pytest.mark.parametrize(
    ("way", "script", "said"),
    [("file", GENERATION + SCAN, "4\n[(1, 2), (1, 2)]\n"), ("stdin", SCAN, "[(1, 2), (1, 2)]\n")],
    ids=["file", "stdin"],
)
def test_a_plain_script_makes_scans_and_scores_videos_at_its_top_level(tmp_path, way, script, said):
    frames = np.random.default_rng(0).integers(0, 255, (16, 40, 40, 3), dtype=np.uint8)
    for label in ("run", "sit"):
        (tmp_path / "test" / label).mkdir(parents=True)
        (tmp_path / "test" / label / "a.mp4").write_bytes(encode_h264(frames, fps=25, crf=30, gop_frames=8))
    (tmp_path / "script.py").write_text(script)
    given = {"args": [sys.executable, tmp_path / "script.py"]} if way == "file" else {"args": [sys.executable, "-"]}
    place = os.environ | {"SCRATCH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(**given, input=script, env=place, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, said), done.stderr[-2000:]
