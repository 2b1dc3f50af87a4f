"""Tests of results that several processes make together: by all ranks or by none, and recorded once."""

import os
import socket
import subprocess
import sys

from faster_lib.paths import ROOT
from faster_lib.store import Entry
from faster_lib.training.loop import complete_together

SCRIPT = """
import sys
from pathlib import Path
from faster_lib.training.loop import complete_together, find_ranks
from faster_lib.store import Entry

folder, failing = Path(sys.argv[1]), sys.argv[2]
state = find_ranks()

def make():
    if str(state.process_index) == failing:
        raise OSError(28, "No space left on device")
    with (folder / f"made_by_{state.process_index}").open("a") as file:
        file.write("once;")
    return {"rank": state.process_index}

entry = Entry("odd", "kind", "label", {}, folder)
for _ in range(2):  # the second time it is there
    complete_together(entry, make)
assert entry.is_complete
"""


def launch(script: str, *arguments: object, ranks: int = 2) -> list[subprocess.Popen]:
    """Run a script in several ranks of one thread each on the CPU, as a launcher would, until all have ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "TQDM_DISABLE": "1"}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environments = [os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=given) for given in environments]
    for process in started:
        process.said = process.communicate(timeout=600)[1]
    return started


def test_all_ranks_make_a_result_once_and_the_main_one_records_it(tmp_path):
    for rank in launch(SCRIPT, tmp_path, "nobody"):
        assert rank.returncode == 0, rank.said
    assert {p.name: p.read_text() for p in tmp_path.glob("made*")} == {"made_by_0": "once;", "made_by_1": "once;"}
    assert Entry("odd", "kind", "label", {}, tmp_path).record["measures"] == {"rank": 0}


def test_an_error_in_one_rank_ends_all_and_leaves_no_record(tmp_path):
    main, other = launch(SCRIPT, tmp_path, 1)
    assert other.returncode and "No space left on device" in other.said
    assert main.returncode and (tmp_path / "made_by_0").is_file()
    assert not Entry("odd", "kind", "label", {}, tmp_path).is_complete


def test_one_process_makes_a_result_by_itself(tmp_path):
    entry = Entry("odd", "kind", "label", {}, tmp_path)
    for _ in range(2):
        complete_together(entry, lambda: {"value": 1})
    assert entry.record["measures"] == {"value": 1}
