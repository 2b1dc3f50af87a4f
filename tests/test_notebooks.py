"""The ratio study run as a user runs it, by papermill in a process of its own, on the smoke profile."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from faster_lib.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "04_ratio_study.ipynb"


def papermill(tmp_path, *arguments):
    folders = {"FASTER_RUNS": str(tmp_path / "runs"), "FASTER_FIGURES": str(tmp_path / "figures")}
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "out.ipynb"), *arguments]
    return subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, cwd=ROOT, timeout=900)


def test_the_ratio_study_runs_from_nothing_and_finds_its_results_again(tmp_path):
    arguments = ("-p", "profile", "smoke", "-p", "L", "8", "-y", "{ratios: [0, 3], seeds: [0, 1]}")
    assert (done := papermill(tmp_path, *arguments)).returncode == 0, done.stderr
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    kinds = {path.parents[1].name for path in stamps}
    assert kinds == {"videos", "backbones", "features", "aggregators"}
    first = (tmp_path / "figures" / "04_ratio_study_smoke_L8.csv").read_bytes()
    assert (done := papermill(tmp_path, *arguments)).returncode == 0, done.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert (tmp_path / "figures" / "04_ratio_study_smoke_L8.csv").read_bytes() == first
    outputs = [cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.get("outputs")]
    assert any("image/png" in output.get("data", {}) for cell in outputs for output in cell.outputs)


def test_a_bad_parameter_stops_right_after_the_parameters_with_its_value(tmp_path):
    done = papermill(tmp_path, "-p", "L", "12")
    assert done.returncode != 0
    assert 'Exception encountered at "In [3]"' in done.stderr and "L is 12" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("parameter", ["profile: str", "L: int", "ratios: list", "seeds: list", "split: str"])
def test_papermill_lists_each_parameter_with_type_and_help(parameter):
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(NOTEBOOK)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    help_text = re.search(rf"^  {parameter} \(default .*?\)\s+(.+)$", listed, re.MULTILINE)
    assert help_text and len(help_text[1].split()) >= 4, listed
