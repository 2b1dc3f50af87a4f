"""Tests of what holds across the repository: layers, sizes, docstrings, profile keys, randomness, notebooks."""

import ast
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
COMMANDS = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflow").glob("*.py"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Folders and modules of the library, by floor: a module imports only from its own folder and from floors above it.
FLOORS = (
    ("models", "paths", "workers"),
    ("paper", "fast_aggregators", "profile_sections"),
    ("profiles", "provenance"),
    ("store", "flops"),
    ("data",),
    ("inference",),
    ("model_file",),
    ("training",),
    ("report",),
)
# The reading path, in the README's order; a folder stands for its modules.
READING_PATH = ("models", "flops", "paper", "data", "training.stage1", "training.stage2", "training.evaluation")
NOT_IN_PATH = ("data.index",)  # which a reader of the paper can leave out
# Each outside package enters through these modules alone; the longest prefix of an import decides.
DOORS = {
    "decord": {"data.video"},
    "av": {"data.video"},
    "torchvision.transforms": {"data.transforms"},
    "torchvision": {"models.torchvision"},
    "timm": {"models.timm"},
    "pebble": set(),  # only the command that indexes videos, workflow/scan.py, needs it
    "fvcore": {"flops"},
    "joblib": {"workers"},
    "threadpoolctl": {"workers"},
    "yaml": {"profiles"},
    "pydantic": {"profiles", "profile_sections"},
    "matplotlib": {"report.figures", "report.tables"},
    "seaborn": {"report.figures"},
    "sklearn": {"training.evaluation"},
    "pandas": {"report.tables", "report.claims"},
    "scipy": {"report.claims"},
    "accelerate": {"training.ranks", "training.loop"},
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
    part = module.rpartition(".")[2]
    more = {"safetensors"} if part == "weights" else {part} if part in ("torchvision", "timm") else set()
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
    trees = [tree for module, tree in TREES.items() if module != "faster_lib.profiles"] + COMMANDS
    read = set().union(*(keys_read(tree) for tree in [*trees, *(ast.parse(code_of(nb)) for nb in NOTEBOOKS)]))
    content = yaml.safe_load((PARAMS / f"{profile}.yaml").read_text(encoding="utf-8"))
    unread = [
        f"{section}.{key}"
        for section, keys in content.items()
        if section != "base"
        for key in keys or ()
        if not any((c.__name__, key) in read for c in SECTIONS[section].__mro__) and (section, key) not in CHECKED_ONLY
    ]
    assert not unread
