"""A test of the kit as installed from a wheel, outside any clone: profiles, trained networks, a model file."""

import os
import shutil
import subprocess
import sys
import zipfile

from faster_lib.data.video import encode_h264
from faster_lib.model_file import save_model
from faster_lib.paths import ROOT
from tests.test_model_file import ABOUT, build, draw_frames

SCRIPT = """
from pathlib import Path
import faster_lib
from faster_lib import load, load_profile
from faster_lib.paths import PARAMS, RUNS
from faster_lib.provenance import circumstances
from faster_lib.training.evaluation import shipped_results
from faster_lib.training.stage1 import train_backbone

assert Path(faster_lib.__file__).is_relative_to("{wheel}") and PARAMS.is_relative_to("{wheel}")
trained = train_backbone(load_profile("study"), "r2d_26", 8)
assert trained.entry.record["measures"]["shipped"] and trained.entry.path.is_relative_to(Path.cwd() / "runs")
assert shipped_results() and circumstances()["commit"].startswith("faster-kit ")
print(load("{model}").predict("{clip}").label)
"""


def test_a_wheel_brings_what_the_kit_needs_and_writes_where_one_works(tmp_path):
    source, wheel, work = (tmp_path / name for name in ("source", "wheel", "work"))
    for name in ("faster_lib", "params", "workflow"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    (built,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(built).extractall(wheel)
    work.mkdir()
    save_model(build(ABOUT), ABOUT, tmp_path / "my_model.faster")
    (tmp_path / "clip.mp4").write_bytes(encode_h264(draw_frames(20), fps=25, crf=23, gop_frames=8))
    script = SCRIPT.format(wheel=wheel, model=tmp_path / "my_model.faster", clip=tmp_path / "clip.mp4")
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("FASTER_RUNS", "FASTER_FIGURES", "FASTER_DATA"):
        environment.pop(name, None)
    form = {"cwd": work, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], **form)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in ABOUT.classes
    assert [path.name for path in work.iterdir()] == ["runs"]
