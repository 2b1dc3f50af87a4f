"""Tests of benchmarks/gpu.py at small size on the CPU, where torch alone is installed."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from faster_lib.flops import count_macs, step_macs, video_gmacs
from faster_lib.models.aggregators import AGGREGATORS, build_aggregator
from faster_lib.models.backbones import TABLE_1, build_backbone
from faster_lib.paths import ROOT
from tests.test_imports import BLOCK

RUN = """
import runpy
sys.path.insert(0, "benchmarks")
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    return gpu


@pytest.fixture
def scale(gpu):
    return gpu.Scale(torch.device("cpu"), is_small=True)


def test_the_script_makes_its_whole_table_where_torch_is_alone(tmp_path):
    command = [sys.executable, "-c", BLOCK + RUN, "--small", "--device", "nowhere:3", "--output", tmp_path]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    written = json.loads((tmp_path / "gpu.json").read_text())
    lines, rows = written["lines"], (tmp_path / "gpu.md").read_text().splitlines()
    rows = [row.strip("| ").split(" | ") for row in rows[rows.index("|" + " --- |" * 6) + 1 :]]
    assert [row[:3] for row in rows] == [[line["section"], line["line"], line["status"]] for line in lines]
    assert [row[3] for row in rows] == [str(line["value"]) for line in lines]
    assert written["about"]["small"] is True and written["about"]["device"].startswith("cpu")
    failed = [line for line in lines if line["status"] == "fail"]
    assert [line["section"] for line in failed] == ["device"], done.stderr
    assert done.returncode == 1
    assert "nowhere" in failed[0]["figures"]["why"] and "cpu works" in failed[0]["figures"]["why"]
    passed = [line for line in lines if line["status"] == "pass"]
    assert {line["section"] for line in passed} == {
        *("numerics", "trained weights", "table 5", "stage 1", "inference", "stage 2")
    }
    assert all(math.isfinite(line["value"]) for line in passed)
    lacking = [line["figures"]["why"] for line in lines if line["status"] == "not run"]
    assert lacking and all("cpu does not multiply" in why and "float32 works here" in why for why in lacking)


def test_a_wrong_answer_fails_and_so_does_one_that_is_not_finite(gpu, scale):
    clips, exact = torch.randn(2, 3, 8, 32, 32), gpu.build(scale, "r2d_26")
    for change, passes in ((1.0, [True, True]), (1.01, [False, False]), (math.nan, [False, False])):
        wrong = copy.deepcopy(exact)
        wrong.stages[3][0].shortcut[0].weight.data *= change
        found = gpu.compare(copy.deepcopy(exact), wrong, clips, scale, "float32")
        assert [outcome.passes for outcome in found] == passes
    slow = gpu.Outcome(0.9, 1.0, is_least=True)
    assert not slow.passes and gpu.Outcome(1.1, 1.0, is_least=True).passes and not gpu.Outcome(math.inf).passes


def test_one_line_s_failure_stops_no_other_and_says_what_would_work(gpu, scale, tmp_path, monkeypatch, capsys):
    def fail(error):
        raise error

    errors = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not implemented for 'Half'"), KeyError("x"))
    checks = [(str(number), lambda error=error: fail(error)) for number, error in enumerate(errors)]
    last = ("last", lambda: gpu.Outcome(1.0, 2.0))
    monkeypatch.setattr(gpu, "SECTIONS", {"numerics": (lambda scale: [*checks, last], 1.0)})
    table = gpu.Table(tmp_path, {})
    gpu.run(scale, table, minutes=1.0)
    assert [line["status"] for line in table.lines] == ["fail", "fail", "fail", "pass"]
    whys = [line["figures"]["why"] for line in table.lines[:3]]
    for why, part in zip(whys, ("fewer clips at once", "float32 would work", "KeyError: 'x'"), strict=True):
        assert part in why
    gpu.run(scale, table, minutes=0.0)
    assert [line["status"] for line in table.lines[4:]] == ["not run"] * 4
    assert "0 minutes are over; --minutes allows more" in capsys.readouterr().out


@pytest.mark.parametrize("name", TABLE_1)
def test_the_macs_are_those_of_the_library_without_its_packages(name, gpu):
    network, clips = build_backbone(name, 400, 1 / 16), torch.zeros(2, 3, 16, 65, 95)
    assert gpu.count_macs(network, clips) == count_macs(network, clips) > 1e7


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "avg_pool"])
def test_a_model_s_macs_are_those_that_the_library_composes(name, gpu, scale):
    schedule, clips = "ECEC", torch.zeros(1, 4, 3, 8, 32, 32)
    model = gpu.build_faster(scale, name, schedule)
    parts = {"expensive": model.expensive, "cheap": model.cheap, "aggregator": model.aggregator}
    composed = round(1e9 * video_gmacs(**parts, schedule=schedule, L=8, size_px=32))
    classifiers = 4 * count_macs(model.expensive.classifier, torch.zeros(1, 32)) - count_macs(
        model.classifier, torch.zeros(1, 32)
    )
    assert gpu.count_macs(model, clips) == composed - classifiers  # a clip's own scores are not asked for
    step = step_macs(build_aggregator(name, 32), (1, 1, 1))
    assert (step > 0) == (name != "mean") and composed > 3 * step


def test_weights_are_read_as_their_package_reads_them(gpu):
    for path in sorted((ROOT / "params" / "weights").glob("*.safetensors"))[::5]:
        found, expected = gpu.read_tensors(path), load_file(path)
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items()
        )
    clips = gpu.moving_clips(2, 8, 35)
    assert clips.shape == (2, 3, 8, 35, 35) and torch.equal(clips, gpu.moving_clips(2, 8, 35))
    assert (clips[:, :, 1:].float() - clips[:, :, :-1]).abs().mean() > 5 and len(clips.unique()) > 200
