"""Every notebook run as a user runs it, by papermill in a process of its own, on the smoke profile."""

import os
import subprocess
import sys

import nbformat
import papermill
import pytest

from faster_lib.paths import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SMALL = ("-p", "profile", "smoke", "-p", "L", "8")
FEW_SEEDS = "seeds: [0, 1]"


def run(notebook: str, folder, *arguments):
    folders = {"FASTER_RUNS": str(folder / "runs"), "FASTER_FIGURES": str(folder / "figures")}
    command = [sys.executable, "-m", "papermill", str(FOLDER / f"{notebook}.ipynb"), str(folder / "out.ipynb")]
    environment = os.environ | folders
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=900
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One folder of results that the notebooks of this module share, as a user's do."""
    return tmp_path_factory.mktemp("smoke")


def test_the_ratio_study_runs_from_nothing_leaves_what_it_shows_and_finds_its_results_again(smoke):
    arguments = (*SMALL, "-y", f"{{ratios: [0, 1, 3], {FEW_SEEDS}}}")
    assert (done := run("04_ratio_study", smoke, *arguments)).returncode == 0, done.stderr
    stamps = {path: path.stat().st_mtime_ns for path in (smoke / "runs").rglob("record.json")}
    kinds = {path.parents[1].name for path in stamps}
    assert kinds == {"videos", "backbones", "features", "aggregators"}
    stem = "04_ratio_study_smoke_L8"
    made = {path.name for path in (smoke / "figures").iterdir()}
    assert made == {f"{stem}.csv", f"{stem}.png", f"{stem}.svg", f"{stem}_claims.csv"}
    outputs = [output for cell in nbformat.read(smoke / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    first = (smoke / "figures" / f"{stem}.csv").read_bytes()
    assert b"measured at smoke scale" in first and b"measured at tiny scale" not in first
    assert (done := run("04_ratio_study", smoke, *arguments)).returncode == 0, done.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in (smoke / "runs").rglob("record.json")}
    assert (smoke / "figures" / f"{stem}.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("notebook", "arguments", "quoted"),
    [
        ("02_aggregators", ("-y", "clips: [2, 64]"), "at L = 8 a video of this profile has at most 32 clips"),
        ("04_ratio_study", ("-p", "L", "12"), "L is 12"),
        ("06_generalization", ("-p", "profile", "tinny"), "unknown profile 'tinny'"),
    ],
)
def test_a_bad_parameter_stops_right_after_the_parameters_with_its_value(tmp_path, notebook, arguments, quoted):
    done = run(notebook, tmp_path, *arguments)
    assert done.returncode != 0
    assert 'Exception encountered at "In [3]"' in done.stderr and quoted in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("notebook", NAMES)
def test_papermill_lists_each_parameter_with_type_and_help(notebook):
    path = FOLDER / f"{notebook}.ipynb"
    listed = papermill.inspect_notebook(str(path))  # what `papermill --help-notebook` prints
    (source,) = (cell.source for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", []))
    names = [line.split(":")[0] for line in source.splitlines()]
    assert list(listed) == names
    for parameter in listed.values():
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool", "list"), parameter
        assert len(parameter["help"].split()) >= 4, parameter
