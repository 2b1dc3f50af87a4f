"""Tests of what holds across the repository: layers, sizes, docstrings, profile keys, randomness, notebooks."""

import ast
import copy
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from faster_lib.paths import PARAMS, ROOT
from faster_lib.profiles import Profile

LIBRARY = ROOT / "faster_lib"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Folders and modules of the library, by floor: a module imports only from its own folder and from floors above it.
FLOORS = (
    ("models",),
    ("paths", "paper"),
    ("profiles", "provenance"),
    ("store", "flops"),
    ("data",),
    ("inference",),
    ("training",),
    ("report",),
)
# The reading path, in the README's order; a folder stands for its modules.
READING_PATH = ("models", "flops", "paper", "data", "training.stage1", "training.stage2", "training.evaluation")
NOT_IN_PATH = ("data.index",)
# Each outside package enters through these modules alone; the longest prefix of an import decides.
DOORS = {
    "decord": {"data.video"},
    "av": {"data.video"},
    "torchvision.transforms": {"data.transforms"},
    "torchvision": {"models.torchvision"},
    "pebble": {"data.index"},
    "fvcore": {"flops"},
    "joblib": {"data.datasets"},
    "threadpoolctl": {"data.datasets"},
    "yaml": {"profiles"},
    "pydantic": {"profiles"},
    "matplotlib": {"report.figures", "report.tables"},
    "seaborn": {"report.figures"},
    "sklearn": {"training.evaluation"},
    "pandas": {"report.tables"},
    "accelerate": {"training.loop", "training.evaluation", "training.features"},
    "tensorboard": set(),
}
BUDGETS = yaml.safe_load((ROOT / "tests" / "budgets.yaml").read_text(encoding="utf-8"))
# What the check of the profile itself reads, and nothing else need: it says which of root and scene must be there.
CHECKED_ONLY = {("data", "source")}


def floor_of(module: str) -> int:
    part = module.removeprefix("faster_lib.").split(".")[0]
    (floor,) = (number for number, names in enumerate(FLOORS) if part in names)
    return floor


def imports_of(tree: ast.AST) -> set[str]:
    """All imported names in full, such as torch.nn and faster_lib.store.Entry."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_used_by(module: str) -> set[str]:
    """The library's modules that a module imports; the package itself, which imports them all, as faster_lib."""
    own = {name for name in imports_of(TREES[module]) if name.split(".")[0] == "faster_lib"}
    return {max((m for m in MODULES if f"{name}.".startswith(f"{m}.")), key=len, default="faster_lib") for name in own}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_folder_and_from_floors_above(module):
    for used in modules_used_by(module):
        assert used in MODULES, f"imports {used}, which is no module"
        is_own = used.split(".")[1] == module.split(".")[1]
        assert is_own or floor_of(used) < floor_of(module), f"imports {used}, which is not above it"


def test_there_are_at_most_nine_floors():
    assert len(FLOORS) <= 9


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("faster_lib.models.")])
def test_a_network_needs_torch_alone(module):
    standard = set(sys.stdlib_module_names) | {"torch", "faster_lib"}
    more = (
        {"safetensors"}
        if module.endswith(".weights")
        else {"torchvision"}
        if module.endswith(".torchvision")
        else set()
    )
    assert {name.split(".")[0] for name in imports_of(TREES[module])} <= standard | more
    assert all(used.startswith("faster_lib.models.") for used in modules_used_by(module))


def test_no_modules_import_each_other_in_a_circle():
    left = {module: modules_used_by(module) for module in MODULES}
    while free := {module for module, used in left.items() if not used & set(left)}:
        left = {module: used for module, used in left.items() if module not in free}
    assert not left


@pytest.mark.parametrize("module", MODULES)
def test_an_outside_package_enters_through_its_own_door(module):
    for name in imports_of(TREES[module]):
        doors = [prefix for prefix in DOORS if f"{name}.".startswith(f"{prefix}.")]
        if doors:
            allowed = DOORS[max(doors, key=len)]
            assert module.removeprefix("faster_lib.") in allowed, f"{name} may enter only through {allowed}"


def test_the_library_stays_within_its_budgets():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY.rglob("*.py")}
    assert max(lines.values()) <= BUDGETS["module"], max(lines, key=lines.get)
    assert sum(lines.values()) <= BUDGETS["library"]
    names = {path: ".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in lines}
    path = [p for p, name in names.items() if name.startswith(READING_PATH) and not name.startswith(NOT_IN_PATH)]
    assert sum(lines[p] for p in path) <= BUDGETS["reading_path"]


def test_no_two_public_things_share_a_name():
    kinds = (ast.FunctionDef, ast.ClassDef)
    owners: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, kinds) and not node.name.startswith("_") and node.name != "main":
                owners.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])
    missing = []
    for node in TREES[module].body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):  # a method that fills in a documented one means what that one says
            owner = getattr(importlib.import_module(module), node.name)
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef) and part.name[0] != "_"]
            missing += [f"{node.name}.{name}" for name in methods if not inspect.getdoc(getattr(owner, name))]
    assert not missing


SEEDING = re.compile(r"torch(\.random|\.cuda)?\.(manual_)?seed(_all)?|(np\.|numpy\.)?random\.seed")


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("module", MODULES)
def test_the_library_neither_prints_nor_seeds_the_global_generators(module):
    forked = {
        inner
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.With) and any("fork_rng" in called(item.context_expr) for item in node.items)
        for inner in ast.walk(node)
    }
    for node in ast.walk(TREES[module]):
        assert called(node) != "print", f"line {node.lineno}: print"
        is_seeding = SEEDING.fullmatch(called(node))
        assert not is_seeding or node in forked, f"line {node.lineno}: {called(node)} outside fork_rng"


SECTIONS = {  # of a profile, by name: the class
    name: next(c for c in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(c, "model_fields"))
    for name, field in Profile.model_fields.items()
    if name != "name"
}


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def keys_read(tree: ast.AST) -> set[tuple[str, str]]:
    """All (class of section, key) read as attributes of something that is such a section.

    That is: an argument or variable annotated so, an attribute named like a section, or a variable set to one of these.
    """
    classes = {c.__name__ for section in SECTIONS.values() for c in section.__mro__ if hasattr(c, "model_fields")}
    found = set()
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        known = {
            arg.arg: arg.annotation.id
            for arg in ast.walk(scope)
            if isinstance(arg, ast.arg) and isinstance(arg.annotation, ast.Name) and arg.annotation.id in classes
        }
        inner = list(ast.walk(scope))
        for node in inner:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr in SECTIONS:
                known |= {ast.unparse(target): SECTIONS[node.value.attr].__name__ for target in node.targets}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name):
                known |= {ast.unparse(node.target): node.annotation.id} if node.annotation.id in classes else {}
        for node in inner:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                if isinstance(owner, ast.Attribute) and owner.attr in SECTIONS:
                    found.add((SECTIONS[owner.attr].__name__, node.attr))
                elif isinstance(owner, ast.Name) and owner.id in known and not isinstance(scope, ast.Module):
                    found.add((known[owner.id], node.attr))
    return found


@pytest.mark.parametrize("profile", sorted(path.stem for path in PARAMS.glob("*.yaml")))
def test_every_key_of_a_profile_is_read_somewhere(profile):
    trees = [tree for module, tree in TREES.items() if module != "faster_lib.profiles"]
    read = set().union(*(keys_read(tree) for tree in [*trees, *(ast.parse(code_of(nb)) for nb in NOTEBOOKS)]))
    content = yaml.safe_load((PARAMS / f"{profile}.yaml").read_text(encoding="utf-8"))
    unread = [
        f"{section}.{key}"
        for section, keys in content.items()
        for key in keys or ()
        if not any((c.__name__, key) in read for c in SECTIONS[section].__mro__) and (section, key) not in CHECKED_ONLY
    ]
    assert not unread


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
    faults = [f"cell {number}: more than 15 lines"] if len(source.splitlines()) > 15 else []
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
    faults = [] if len(cells) <= 25 else [f"{len(cells)} cells"]
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_follows_the_style_guide(path):
    assert notebook_faults(json.loads(path.read_text(encoding="utf-8"))) == []


def code_cell(source: str, count: int, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    metadata = {"tags": list(tags)} if tags else {}
    return dict(cell_type="code", source=source, metadata=metadata, execution_count=count, outputs=list(outputs))


TEXT_CELL = dict(cell_type="markdown", metadata={}, source="# 1. A question")
GOOD_NOTEBOOK = {
    "metadata": {"kernelspec": {"name": "python3"}},
    "cells": [
        TEXT_CELL,
        code_cell('profile: str = "tiny"  # a file in params/\nL: int = 8  # frames', 1, tags=("parameters",)),
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
        (("cells", 2, "source"), "\n".join(["x = 1"] * 16), "cell 2: more than 15 lines"),
        (("cells", 2, "source"), "class A:\n    pass", "cell 2: a class"),
        (("cells", 2, "source"), "import sys\nsys.path.append('..')", "cell 2: sys.path"),
        (("cells", 2, "source"), "x = 1\n!ls", "cell 2: a shell command"),
        (("cells", 2, "execution_count"), None, "outputs: not of one clean run"),
        (("cells", 2, "outputs"), text_output("wrote /home/me/kit/figures/a.csv"), "cell 2: an absolute path"),
        (("cells", 2, "outputs"), text_output("[<matplotlib.lines.Line2D at 0x7f>]"), "cell 2: a bare figure"),
        (("cells", 4, "source"), "2 + 2 == 4", "no Check cell"),
        (("cells",), [TEXT_CELL] * 22 + GOOD_NOTEBOOK["cells"][1:], "26 cells"),
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
