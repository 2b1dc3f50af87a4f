"""Every notebook: its form, its parameters, and a run on the smoke profile as a user runs it."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import papermill
import pytest

from faster_lib.paths import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))}


def code_cells(notebook: str) -> list[str]:
    """The sources of its code cells, the parameters first."""
    return ["".join(cell["source"]) for cell in NOTEBOOKS[notebook]["cells"] if cell["cell_type"] == "code"]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python with results and figures in a folder of their own."""
    folders = {"FASTER_RUNS": str(folder / "runs"), "FASTER_FIGURES": str(folder / "figures")}
    environment = os.environ | folders
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=900
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One folder of results that the notebooks of this module share, as a user's do."""
    return tmp_path_factory.mktemp("smoke")


SHORT, LISTS = {"profile": "smoke", "L": 8}, {"ratios": [0, 1, 3], "others": ["gru"], "seeds": [0, 1]}


@pytest.fixture(scope="module")
def ratio_study(smoke):
    """Run the ratio study from nothing; give the times of the results that it leaves."""
    notebooks = (str(FOLDER / "04_ratio_study.ipynb"), str(smoke / "out.ipynb"))
    given = [word for name, value in SHORT.items() for word in ("-p", name, str(value))]
    done = run(smoke, "-m", "papermill", *notebooks, *given, "-y", json.dumps(LISTS))
    assert done.returncode == 0, done.stderr
    return times_of_results(smoke)


def times_of_results(smoke: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (smoke / "runs").rglob("record.json")}


def test_the_ratio_study_runs_from_nothing_and_leaves_what_it_shows(smoke, ratio_study):
    assert len(ratio_study) >= 2 + 4 + 2 + 13  # videos, feature maps, networks, cells
    stem = "04_ratio_study_smoke_L8"
    made = {path.name for path in (smoke / "figures").iterdir()}
    stems = (stem, f"{stem}_claims", "04_ratio_study_smoke_all")
    assert made == {f"{each}.{suffix}" for each in stems for suffix in ("csv", "png", "svg")}
    outputs = [output for cell in nbformat.read(smoke / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    first = (smoke / "figures" / f"{stem}.csv").read_bytes()
    assert b"measured at smoke scale" in first and b"measured at study scale" not in first
    assert b"# commit: " in first and b"# commit: " in (smoke / "figures" / f"{stem}_claims.csv").read_bytes()


# Parameters of the other notebooks, and what each leaves beside its table. Notebook 08 needs two profiles of its own.
SMALL = {
    "00_quickstart": ({"profile": "smoke", "L": 8, "video": 3}, "smoke.png smoke_cost.csv"),
    "01_backbones": ({"profile": "smoke", "L": 8, "lengths": [8, 16]}, "smoke.png smoke_claims.csv smoke_table_1.csv"),
    "02_aggregators": ({"profile": "smoke", "clips": [2, 8], "seeds": [0, 1]}, "smoke.png smoke_claims.csv"),
    "03_faster_vs_avgpool": ({"profile": "smoke", "clips": [4, 8], "seeds": [0]}, "smoke.png smoke_claims.csv"),
    "05_runtime": (
        {"profile": "smoke", "L": 8, "width": 0.0625, "size_px": 32, "num_videos": 2, "prepared": False},
        "0.0625_32_L8_plain.png 0.0625_32_L8_plain_claims.csv",
    ),
    "06_generalization": (
        {"profile": "smoke", "L": 8, "ratios": [0, 1], "seeds": [0]},
        "smoke_L8.png smoke_L8_claims.csv",
    ),
    "07_sota": ({"s3d_frames": 16}, "s3d16.png"),
    "09_what_it_costs": ({"profile": "smoke", "L": 8}, "smoke_L8.png smoke_L8_bytes.csv"),
    "10_why_fast_gru": (
        {"profile": "smoke", "clip_networks": "", "videos": [8, 16], "seeds": [0], "steps": 2},
        "smoke.png smoke_claims.csv smoke_gates.png",
    ),
}
RUNNER = """
import json, sys
from pathlib import Path
import matplotlib
matplotlib.use("agg")
jobs = Path(sys.argv[1])
for name, cells, parameters in json.loads(jobs.read_text()):
    names = {}
    for number, source in enumerate(cells, start=1):
        exec(compile(source, f"notebook {name}, code cell {number}", "exec"), names)
        if number == 1:
            names |= parameters
    print(name, "leaves", len([*jobs.parent.rglob("record.json")]), "results", file=sys.stderr)
"""


def test_the_ratio_study_reuses_its_results_and_the_others_run_after_it_and_leave_what_they_show(smoke, ratio_study):
    table = smoke / "figures" / "04_ratio_study_smoke_L8.csv"
    first, wanted = table.read_text(), {"04_ratio_study": (SHORT | LISTS, ""), **SMALL}
    jobs = [(name, code_cells(name), parameters) for name, (parameters, _) in wanted.items()]
    (smoke / "jobs.json").write_text(json.dumps(jobs))
    done = run(smoke, "-W", "ignore", "-c", RUNNER, str(smoke / "jobs.json"))
    assert done.returncode == 0, done.stderr
    assert f"04_ratio_study leaves {len(ratio_study)} results\n" in done.stderr
    assert ratio_study.items() <= times_of_results(smoke).items()
    pairs = zip(first.splitlines(), table.read_text().splitlines(), strict=True)
    assert all(before == after for before, after in pairs if not before.startswith("# commit: "))
    made = {path.name for path in (smoke / "figures").iterdir()}
    for name, (_, left) in SMALL.items():
        assert {f"{name}_{end}" for end in left.split()} <= made, name


@pytest.mark.parametrize(
    ("notebook", "parameters", "quoted"),
    [
        ("01_backbones", {"lengths": [8, 12]}, "L is 12"),
        ("01_backbones", {"lengths": "8"}, "lengths is '8'"),
        ("02_aggregators", {"clips": [2, 64]}, r"clips is \[2, 64\]; each must .* at least 1 and at most 32"),
        ("03_faster_vs_avgpool", {"seeds": [0, 0]}, r"seeds is \[0, 0\]"),
        ("04_ratio_study", {"L": 12}, "L is 12"),
        ("04_ratio_study", {"others": ["gru", "transformer"]}, "others is .*transformer.*some of avg_pool, concat"),
        ("04_ratio_study", {"split": "tset"}, "unknown split .tset.; the scene has"),
        ("04_ratio_study", {"others": "gru"}, "others is 'gru'"),
        ("05_runtime", {"num_videos": 0}, r"num_videos is \[0\]"),
        ("05_runtime", {"size_px": 32.0}, r"size_px is \[32.0\]"),
        ("05_runtime", {"width": 2}, "width is 2"),
        ("05_runtime", {"L": 24}, "L is 24.*256 frames"),
        ("06_generalization", {"profile": "tinny"}, "unknown profile 'tinny'"),
        ("07_sota", {"s3d_frames": 8}, r"s3d_frames is \[8\]"),
        ("08_transfer", {"profile": "tiny"}, "'tiny' has no pretrained_in; choose one that has, such as tiny_ucf101"),
        ("08_transfer", {"folds": [4]}, "fold is 4"),
        ("08_transfer", {"epochs": [0]}, r"epochs is \[0\]"),
        ("09_what_it_costs", {"utilisation": 1.5}, "utilisation 1.5"),
        ("10_why_fast_gru", {"videos": [4]}, r"videos is \[4\]; each must be a whole number of at least 32"),
        ("10_why_fast_gru", {"profile": "ucf101"}, "profile is 'ucf101', of real videos"),
        ("10_why_fast_gru", {"steps": 0}, r"steps is \[0\]"),
        ("11_your_videos", {"videos": "no_such_folder"}, "videos is 'no_such_folder', but .* is no folder"),
        ("11_your_videos", {"videos": "tests"}, "videos is 'tests'; it must hold two folders or more"),
        ("11_your_videos", {"minutes": 0}, "minutes is 0"),
        ("11_your_videos", {"L": 12}, "L is 12"),
    ],
)
def test_a_bad_parameter_stops_right_after_the_parameters_with_its_value(notebook, parameters, quoted):
    first, second, *_ = code_cells(notebook)
    names = {}
    exec(first, names)
    with pytest.raises(ValueError, match=quoted):
        exec(second, names | parameters)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_lists_each_parameter_with_type_and_help(notebook):
    listed = papermill.inspect_notebook(str(FOLDER / f"{notebook}.ipynb"))  # what `papermill --help-notebook` prints
    assert list(listed) == [line.split(":")[0] for line in code_cells(notebook)[0].splitlines()]
    for parameter in listed.values():
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool", "list"), parameter
        assert len(parameter["help"].split()) >= 4, parameter


def paragraphs_of(notebook: str) -> set[str]:
    """Lines of text of 80 letters or more; a pointer to another notebook is none."""
    texts = ["".join(cell["source"]) for cell in NOTEBOOKS[notebook]["cells"] if cell["cell_type"] == "markdown"]
    lines = {line.strip("- ") for text in texts for line in text.splitlines() if "Source" not in line}
    return {line for line in lines if len(line) >= 80 and ".ipynb" not in line}


def test_no_paragraph_stands_in_two_notebooks():
    counts = Counter(line for notebook in NOTEBOOKS for line in paragraphs_of(notebook))
    assert [line for line, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_ends_with_three_things_to_try_and_a_link_to_the_next(notebook):
    last = "".join(NOTEBOOKS[notebook]["cells"][-1]["source"])
    things, _, following = last.split("## Try\n")[1].strip().rpartition("\n\n")
    assert len(re.findall(r"^- ", things, re.MULTILINE)) == 3
    assert f"`papermill notebooks/{notebook}.ipynb out.ipynb -" in things
    (target,) = re.findall(r"\[[^]]+\]\((\w+)\.ipynb\)", following)
    order = list(NOTEBOOKS)
    assert target == order[(order.index(notebook) + 1) % len(order)]


# The folders in which an absolute path of a user's machine begins.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/-])/(home|Users|root|work|tmp|usr|opt|var|mnt|srv|content)/|\b[A-Z]:\\\w")
PARAMETER = re.compile(r"(?P<name>\w+): (?P<type>[\w\[\], |]+) = (?P<value>.+?)  # (?P<comment>.+)")


def parameter_faults(source: str) -> list[str]:
    faults = []
    for line in source.splitlines():
        match = PARAMETER.fullmatch(line)
        if match is None:
            faults.append(f"parameters: {line!r} is not 'name: type = literal  # comment'")
            continue
        if "=" in match["comment"]:
            faults.append(f"parameters: {line!r} has an = in its comment")
        try:
            ast.literal_eval(match["value"])
        except ValueError:
            faults.append(f"parameters: {line!r} has a value that is no plain literal")
    return faults


def code_faults(source: str, number: int) -> list[str]:
    faults = [f"cell {number}: more than 20 lines"] if len(source.splitlines()) > 20 else []
    if re.search(r"^\s*[!%]", source, re.MULTILINE):
        return [*faults, f"cell {number}: a shell command or magic"]
    nodes = list(ast.walk(ast.parse(source)))
    if any(isinstance(node, ast.ClassDef) for node in nodes):
        faults.append(f"cell {number}: a class")
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    forbidden = {"sys.path", "warnings.filterwarnings", "warnings.simplefilter", "os.system", "subprocess.run"}
    return faults + [f"cell {number}: {name}" for name in sorted(used & forbidden)]


def output_faults(output: dict, number: int) -> list[str]:
    texts = [output.get("text", ""), *output.get("traceback", [])]
    texts += [text for mime, text in output.get("data", {}).items() if mime.startswith("text/")]
    text = "\n".join("".join(part) for part in texts)
    faults = [f"cell {number}: an error"] if output["output_type"] == "error" else []
    if ABSOLUTE_PATH.search(text) or str(ROOT) in text:
        faults.append(f"cell {number}: an absolute path in its output")
    is_image = any(mime.startswith("image/") for mime in output.get("data", {}))
    if re.search(r"<Figure |\[?<(matplotlib\.|Axes)", text) and not is_image:
        faults.append(f"cell {number}: a bare figure in its output")
    return faults


def notebook_faults(notebook: dict) -> list[str]:
    """Everything in which a notebook breaks CONTRIBUTING's rules for notebooks."""
    cells = notebook["cells"]
    code = [("".join(cell["source"]), cell) for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for _, cell in code]
    faults = [] if len(cells) <= 30 else [f"{len(cells)} cells"]
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        faults.append("kernel: must be python3")
    if not cells or cells[0]["cell_type"] != "markdown":
        faults.append("the first cell does not tell")
    if [i for i, names in enumerate(tags) if "parameters" in names] != [0]:
        faults.append("parameters: must tag the first code cell and no other")
    else:
        faults += parameter_faults(code[0][0])
    if [cell["execution_count"] for _, cell in code] != list(range(1, len(code) + 1)):
        faults.append("outputs: not of one clean run, cells 1 to n")
    ignored = [i for i, names in enumerate(tags) if "nbval-ignore-output" in names]
    asserting = [i for i, (source, _) in enumerate(code) if re.search(r"^assert ", source, re.MULTILINE)]
    if ignored and not any(i > ignored[-1] for i in asserting):
        faults.append("no Check cell after the last nbval-ignore-output")
    for number, (source, cell) in enumerate(code, start=1):
        faults += code_faults(source, number)
        faults += [fault for output in cell["outputs"] for fault in output_faults(output, number)]
    return faults


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_follows_the_style_guide(notebook):
    assert notebook_faults(NOTEBOOKS[notebook]) == []


def code_cell(source: str, count: int, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    metadata = {"tags": list(tags)} if tags else {}
    return dict(cell_type="code", source=source, metadata=metadata, execution_count=count, outputs=list(outputs))


TEXT_CELL = dict(cell_type="markdown", metadata={}, source="# 1. A question")
GOOD_NOTEBOOK = {
    "metadata": {"kernelspec": {"name": "python3"}},
    "cells": [
        TEXT_CELL,
        code_cell('profile: str = "study"  # a file in params/\nL: int = 8  # frames', 1, tags=("parameters",)),
        code_cell("1 + 1", 2, {"output_type": "execute_result", "data": {"text/plain": "2, see figures/a/b.csv"}}),
        code_cell("2 + 2", 3, {"output_type": "stream", "text": "4\n"}, tags=("nbval-ignore-output",)),
        code_cell("assert 2 + 2 == 4", 4),
    ],
}


def text_output(text: str) -> list[dict]:
    return [{"output_type": "stream", "text": [text]}]


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("metadata", "kernelspec", "name"), "venv", "kernel"),
        (("cells", 1, "metadata"), {}, "parameters: must tag"),
        (("cells", 1, "source"), "L: int = 8", "parameters: 'L: int = 8' is not"),
        (("cells", 1, "source"), "L = 8  # frames", "parameters: 'L = 8  # frames' is not"),
        (("cells", 1, "source"), "L: int = 8  # L = 8 or 16", "an = in its comment"),
        (("cells", 1, "source"), "L: int = 2 * 4  # frames", "no plain literal"),
        (("cells", 2, "source"), "\n".join(["x = 1"] * 21), "cell 2: more than 20 lines"),
        (("cells", 2, "source"), "class A:\n    pass", "cell 2: a class"),
        (("cells", 2, "source"), "import sys\nsys.path.append('..')", "cell 2: sys.path"),
        (("cells", 2, "source"), "x = 1\n!ls", "cell 2: a shell command"),
        (("cells", 2, "execution_count"), None, "outputs: not of one clean run"),
        (("cells", 2, "outputs"), text_output("wrote /home/me/kit/figures/a.csv"), "cell 2: an absolute path"),
        (("cells", 2, "outputs"), text_output("[<matplotlib.lines.Line2D at 0x7f>]"), "cell 2: a bare figure"),
        (("cells", 4, "source"), "2 + 2 == 4", "no Check cell"),
        (("cells",), [TEXT_CELL] * 27 + GOOD_NOTEBOOK["cells"][1:], "31 cells"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_breach_of_the_style_guide_is_noticed(place, value, fault):
    notebook = copy.deepcopy(GOOD_NOTEBOOK)
    assert notebook_faults(notebook) == []
    *way, last = place
    part = notebook
    for step in way:
        part = part[step]
    part[last] = value
    (found,) = notebook_faults(notebook)
    assert fault in found
