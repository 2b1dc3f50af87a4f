"""Tests of results that several processes make together: by all ranks or by none, and recorded once."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from faster_lib.paths import ROOT
from faster_lib.store import Entry
from faster_lib.training.ranks import complete_together

SCRIPT = """
import sys
from pathlib import Path
from faster_lib.training.ranks import complete_together, find_ranks
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
# In the same processes: ranks that see other videos, and then turns at several results.
UNLIKE = """
try:
    complete_together(Entry("odd", "kind", "unlike", {"videos": state.process_index}, folder), lambda: {})
except Exception as error:
    (folder / f"unlike_{state.process_index}").write_text(f"{type(error).__name__}: {error}")
"""
TURNS = """
import logging, time
from faster_lib import store
from faster_lib.training.ranks import in_turns

logging.basicConfig(level=logging.INFO)
store.WAIT_SECONDS, rank = 0.5, state.process_index
for part in in_turns(list(range(6))):
    entry = Entry("odd", "kind", str(part), {}, folder / "turns")
    entry.complete(lambda: time.sleep(1.5 * rank) or {"rank": rank})
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


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of two ranks in which nothing fails, and what they said."""
    folder = tmp_path_factory.mktemp("two_ranks")
    launched = launch(SCRIPT + UNLIKE + TURNS, folder, "nobody")
    for rank in launched:
        assert rank.returncode == 0, rank.said
    return folder, [rank.said for rank in launched]


def test_all_ranks_make_a_result_once_and_the_main_one_records_it(two_ranks):
    folder, _ = two_ranks
    assert {p.name: p.read_text() for p in folder.glob("made*")} == {"made_by_0": "once;", "made_by_1": "once;"}
    assert Entry("odd", "kind", "label", {}, folder).record["measures"] == {"rank": 0}


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


def test_ranks_that_see_other_videos_are_told_at_once_and_make_nothing(two_ranks):
    folder, _ = two_ranks
    for path in (folder / "unlike_0", folder / "unlike_1"):
        assert "the ranks see different videos or settings: here " in path.read_text()
    assert not list(folder.glob("odd/kind/unlike-*/*.json"))


def test_ranks_share_jobs_out_over_file_locks_and_say_whom_they_wait_for(two_ranks):
    folder, (main_said, _) = two_ranks
    made_by = [Entry("odd", "kind", str(part), {}, folder / "turns").record["measures"]["rank"] for part in range(6)]
    assert made_by[0::2] == [0, 0, 0] and made_by[1] == 1
    assert re.search(r"waiting for process \d+ on ", main_said), main_said


STOPPED = """
import os, signal, sys
from pathlib import Path
from faster_lib.store import Entry
from faster_lib.training import ranks

folder, ranks.PATIENCE = Path(sys.argv[1]), ranks.timedelta(seconds=5)
if ranks.find_ranks().process_index == 1:
    (folder / "stopped").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    ranks.complete_together(Entry("odd", "kind", "label", {}, folder), lambda: {})
except RuntimeError:
    (folder / "ended").touch()
    raise
"""


def test_a_rank_that_stands_still_ends_the_others_after_the_networks_patience(tmp_path):
    ended_by_itself = []

    def watch() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not (tmp_path / "ended").exists():
            time.sleep(0.2)
        ended_by_itself.append((tmp_path / "ended").exists())
        os.kill(int((tmp_path / "stopped").read_text()), signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    main, _ = launch(STOPPED, tmp_path)
    watcher.join()
    assert ended_by_itself == [True] and main.returncode == 1, main.said
    assert not list(tmp_path.rglob("*.json"))


DEAF = """
import signal, sys, threading
from workflow import train

train.GRACE_SECONDS = float(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
with train.ended_by_signals():
    print("waits", flush=True)
    held = threading.Lock()
    held.acquire()
    held.acquire()  # goes on waiting after a signal
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.5, 1), (600, 2)], ids=["one signal", "two"])
def test_a_process_that_waits_for_ever_is_ended_some_time_after_a_signal_and_at_once_by_a_second(grace, signals):
    command = [sys.executable, "-c", DEAF, str(grace)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as deaf:
        assert deaf.stdout.readline() == "waits\n"
        for _ in range(signals):
            time.sleep(0.1)
            deaf.send_signal(signal.SIGTERM)
        assert deaf.wait(timeout=30) == 128 + signal.SIGTERM
