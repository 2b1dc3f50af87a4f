"""Tests of what importing the library needs of a machine and changes in a process, each in a process of its own."""

import ast
import os
import subprocess
import sys

from faster_lib.paths import ROOT

BLOCK = """
import sys
from importlib.machinery import PathFinder

BLOCKED = set(
    "torchvision decord av fvcore iopath pydantic yaml accelerate safetensors tqdm joblib filelock pandas matplotlib "
    "seaborn sklearn scipy threadpoolctl pebble PIL nbconvert submitit numpy".split()
)

class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path = [Rest if finder is PathFinder else finder for finder in sys.meta_path]
"""

TORCH_ALONE = """
import torch
from faster_lib import AGGREGATORS, TABLE_1, Faster, build_aggregator, build_backbone, prepare_for_inference

networks = [build_backbone(name, 5, 1 / 64).eval() for name in TABLE_1]
for aggregator in AGGREGATORS:
    for expensive in networks:
        model = Faster(expensive, networks[0], build_aggregator(aggregator, 32), "EC", 5).eval()
        for form in (model, prepare_for_inference(model, dtype="auto", is_compiled=False)):
            assert form(torch.zeros(1, 2, 3, 8, 33, 33, dtype=torch.uint8)).isfinite().all()
torch.save(networks[0].state_dict(), sys.argv[1])
build_backbone("r2d_26", 5, 1 / 64, weights=sys.argv[1])
for name, expected in (("r2d_27", ValueError), ("torchvision/s3d", ImportError)):
    try:
        build_backbone(name)
    except expected as error:
        print(error)
assert "torch._dynamo" not in sys.modules  # it takes a second to import
print(sorted(name for name in sys.modules if name.startswith("faster_lib") and ".models" not in name))
"""

UNCHANGED = """
import importlib, logging, os, pkgutil, sys, warnings

for name in sys.argv[1:]:  # others' modules may set what they like
    try:
        importlib.import_module(name)
    except ImportError:  # of an extra that is not installed
        pass

def state():
    loggers = [logging.root, *(log for log in logging.root.manager.loggerDict.values() if hasattr(log, "level"))]
    return dict(os.environ), dict(enumerate(warnings.filters)), {log.name: log.level for log in loggers if log.level}

before = state()
import faster_lib
names = [module.name for module in pkgutil.walk_packages(faster_lib.__path__, "faster_lib.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
for name in faster_lib.__all__:
    assert name in dir(faster_lib) and getattr(faster_lib, name) is not None, name
for kind, one, other in zip(("environment", "filters", "levels"), before, state(), strict=True):
    changed = [key for key in {*one, *other} if one.get(key) != other.get(key)]
    assert not changed, f"{kind} changed: {changed}"
print(len(names))
"""


def run(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def outside_modules() -> list[str]:
    """All modules of others that the library imports, wherever it does."""
    found = set()
    for path in (ROOT / "faster_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    return sorted(name for name in found if name.partition(".")[0] != "faster_lib")


def test_the_models_run_where_torch_is_alone_and_import_nothing_else_of_the_library(tmp_path):
    unknown, missing, imported = run(BLOCK + TORCH_ALONE, str(tmp_path / "weights.pth"))
    assert unknown.startswith("unknown network 'r2d_27'; choose one of r2d_26")
    assert missing == "No module named 'torchvision'"
    assert imported == "['faster_lib', 'faster_lib.fast_aggregators', 'faster_lib.inference']"


def test_importing_every_module_changes_no_environment_variable_no_filter_and_no_level():
    (number,) = run(UNCHANGED, *outside_modules())
    assert int(number) > 20
