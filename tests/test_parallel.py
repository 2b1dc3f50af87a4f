"""Tests of run_all in faster_lib.data.datasets: each part is worked on once, and errors and orphans end the work."""

import os
import re
from pathlib import Path

import pytest

from faster_lib.data import datasets
from faster_lib.paths import ROOT


def _touch(folder: Path, number: int) -> None:
    if number == 7:
        raise ValueError("7 is refused")
    with (folder / str(number)).open("x") as file:
        file.write(str(os.getpid()))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_part_is_worked_on_once_in_as_many_processes_as_asked_for(tmp_path, workers):
    datasets.run_all(_touch, [(tmp_path, number) for number in range(6)], workers=workers, title="touch", unit="file")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"012345"]
    writers = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert (os.getpid() in writers) == (workers == 0)
    with pytest.raises(ValueError, match="7 is refused"):
        datasets.run_all(_touch, [(tmp_path, 7)], workers=workers, title="touch", unit="file")


def test_a_worker_whose_main_process_is_gone_starts_no_further_part(tmp_path, monkeypatch):
    datasets._call(os.getppid(), _touch, (tmp_path, 1))
    monkeypatch.setattr(os, "getppid", lambda: 1)  # as of an orphan
    datasets._call(os.getpid() + 1, _touch, (tmp_path, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_no_bar_of_the_library_overrules_the_environment_variable_that_turns_bars_off():
    for path in (ROOT / "faster_lib").rglob("*.py"):
        assert not re.search(r"disable=(?!True)", path.read_text(encoding="utf-8")), path
