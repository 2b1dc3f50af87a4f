"""Tests of workflow/Snakefile: a dry run plans Table 4, and a killed sweep goes on where it was."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from faster_lib.paths import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="needs the extra sweep")
CELLS = ("profile=smoke", "lengths=8", "ratios=3", "seeds=0")
SECONDS = 600  # for one call, on a busy machine


def start(runs, *config, options=()):
    """Start a sweep whose results and own files lie in a folder; its processes are a group."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
    command += ["--workflow-profile", ROOT / "workflow" / "local", "--directory", runs, *options, "--config", *config]
    runs.mkdir(exist_ok=True)
    environment = {**os.environ, "FASTER_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def sweep(runs, *config, options=()):
    process = start(runs, *config, options=options)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def planned(said):
    """Read how many jobs of each kind a dry run announces."""
    lines = re.findall(r"^([a-z]\w*) +(\d+)$", said, re.MULTILINE)
    counts = dict.fromkeys(("network", "features", "pass"), 0)
    for name, count in dict(lines).items():
        if (kind := name.split("_")[0]) in counts:
            counts[kind] += int(count)
    return counts


def records(runs):
    return {path: path.stat().st_mtime_ns for path in runs.glob("smoke/*/*/record.json")}


def test_the_default_plan_is_table_4_with_three_seeds(tmp_path):
    said = sweep(tmp_path / "runs", "profile=study", options=["--dry-run", "--quiet", "rules"])
    assert planned(said) == {"network": 6, "features": 6, "pass": 6}  # of averaging and FAST-GRU, for each L
    assert not list((tmp_path / "runs").glob("study*/*/*/*"))


def test_a_killed_sweep_goes_on_and_makes_nothing_twice(tmp_path):
    runs = tmp_path / "runs"
    killed = start(runs, *CELLS)
    end = time.monotonic() + SECONDS
    while not any(path.parent.parent.name == "networks" for path in records(runs)):
        assert killed.poll() is None and time.monotonic() < end, killed.stdout.read()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    first = records(runs)
    assert len(first) < 10
    sweep(runs, *CELLS)
    made = records(runs)
    assert first.items() <= made.items()  # what was complete is as it was
    kinds = sorted(path.parent.parent.name for path in made)
    assert kinds == ["aggregators"] * 3 + ["features"] * 4 + ["networks"] * 2 + ["videos"] * 2
