"""Tests of faster_lib.sweep: real jobs in processes of their own, one of them killed, on the smoke profile."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from submitit.helpers import DelayedSubmission

from faster_lib.models.faster import Schedule
from faster_lib.profiles import load_profile
from faster_lib.status import as_table, find_entries
from faster_lib.sweep import Part, Pool, Study, plan, sweep
from faster_lib.training.stage1 import backbone_entry

SMOKE, TINY = load_profile("smoke"), load_profile("tiny")


def wait_for(find, *, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def send(number: signal.Signals, folder: Path, network: str) -> None:
    """Signal the process that trains a network; its parent's number begins the names of its job's files."""
    jobs = {path: DelayedSubmission.load(path).args[1] for path in folder.glob("*_submitted.pkl")}
    (parent,) = (path.name.split("_")[0] for path, arguments in jobs.items() if network in arguments)
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(child), number)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds a job's process in /proc")
def test_a_killed_job_stops_no_other_a_stopped_one_goes_on_and_what_is_there_is_not_made_again(tmp_path, caplog):
    loading = SMOKE.loading.model_copy(update={"workers": 1})
    training = SMOKE.backbone_training.model_copy(update={"checkpoint_iterations": 1, "iterations": 12})
    profile = SMOKE.model_copy(update={"loading": loading, "backbone_training": training})
    study = Study(profile, plan(profile, [8], [3]), [0], runs=tmp_path)
    expensive, cheap = (backbone_entry(profile, name, 8, runs=tmp_path) for name in ("r2plus1d_50", "r2d_26"))

    def sweep_and_send(number: signal.Signals, name: str):
        """Sweep, and signal the training of the expensive network as soon as it has a checkpoint of this start."""
        pool, found, begin = Pool(tmp_path / name, workers=2), [], time.time()
        sweeping = threading.Thread(target=lambda: found.append(sweep(study, pool)))
        sweeping.start()
        wait_for(lambda: checkpoint.is_file() and checkpoint.stat().st_mtime > begin)
        send(number, pool.folder, "r2plus1d_50")
        sweeping.join()
        return found[0]

    checkpoint = expensive.path / "checkpoint.safetensors"
    table, (failure,) = sweep_and_send(signal.SIGKILL, "first")
    assert table.empty and not expensive.is_complete and cheap.is_complete
    assert failure.title == "smoke: r2plus1d_50, L = 8" and "killed" in failure.reason and failure.log.is_file()
    assert str(failure.log) in caplog.text
    states = as_table(find_entries(tmp_path)).set_index("label")["state"]
    assert re.fullmatch("[1-9] of 12 iterations", states["r2plus1d_50-L8"]) and states["r2d_26-L8"] == "complete"

    table, failures = sweep_and_send(signal.SIGUSR2, "second")  # as SLURM does before it stops a job
    logs = [path.read_text() for path in (tmp_path / "second").glob("*/*_log.err")]
    assert any("SIGTERM; stopped after step" in text for text in logs)  # so that the training kept its state
    assert not failures and expensive.record["starts"] == 3 and cheap.record["starts"] == 1
    assert list(table.index) == ["Avg. pool, 1:3", "Avg. pool, All E", "Avg. pool, All C", "FAST-GRU, 1:3"]
    assert all(0 <= float(cell) <= 100 for cell in table["L = 8"])

    third = Pool(tmp_path / "third", workers=2)
    again, failures = sweep(study, third)
    assert again.equals(table) and not failures and not third.folder.exists()


def test_the_default_plan_is_table_4_and_a_ratio_stands_where_it_divides_the_clips():
    default = plan(TINY, [8, 16, 32], [])
    assert sum(len(schedules) for schedules in default.values()) == 14 + 1
    assert {L: set(s) for L, s in plan(TINY, [16, 32], [0, 15]).items()} == {16: {0, 15}, 32: {0}}
    assert plan(TINY, [32], [7])[32] == {7: Schedule("ECCCCCCC")}
    with pytest.raises(ValueError, match=r"ratios is \[0, 15\]; 1:15 divides the clips of no L in \[32\]"):
        plan(TINY, [32], [0, 15])


def test_jobs_share_the_cores_and_each_gpu_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    pool = Pool(tmp_path, workers=3)
    assert [pool.share(jobs) for jobs in (0, 1, 2, 3, 9)] == [8, 8, 4, 2, 2]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert Pool(tmp_path).gpus == [5, 7] and Pool(tmp_path).workers == 2 and Pool(tmp_path).share(1) is None
    with pytest.raises(ValueError, match="workers is 3, but there are 2 GPUs"):
        Pool(tmp_path, workers=3)
    with pytest.raises(ValueError, match="workers is 0"):
        Pool(tmp_path, workers=0)


def test_a_job_on_slurm_asks_for_one_gpu_its_loading_processes_and_a_signal_before_it_is_stopped(tmp_path, monkeypatch):
    for name, answer in {"sbatch": "Submitted batch job 17", "srun": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    pool = Pool(tmp_path / "logs", partition="long", hours=12)
    study = Study(TINY, plan(TINY, [8], [1]), [0], runs=tmp_path)
    job = pool._submit(Part("a network", print, (study, "r2d_26", 8)), 0)
    assert job.job_id == "17" and pool.workers == 16 and pool.gpus == []
    asked = set(job.paths.submission_file.read_text().splitlines())
    for line in ("partition=long", "time=720", "gpus-per-node=1", f"cpus-per-task={TINY.loading.workers + 1}"):
        assert f"#SBATCH --{line}" in asked
    assert "#SBATCH --signal=USR2@90" in asked  # upon which submitit queues the job again
    submission = DelayedSubmission.load(job.paths.submitted_pickle)
    assert submission.args == (print, (study, "r2d_26", 8), None) and submission._timeout_countdown == 1000
    again = submission.function.checkpoint(*submission.args)
    assert again.args == submission.args
