"""Tests of the training loop: two processes train the networks that one would, and score the same videos."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from faster_lib.data import index
from faster_lib.data.datasets import draw_epochs
from faster_lib.data.index import load_videos
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.training import checkpoints, loop, ranks
from workflow import train

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def odd_profile(**engine_changes):
    """Batches of 5 videos, which two processes cannot halve, and a last batch of stage 2 with one video for both."""
    changes = {
        "scene": {"videos": {"train": 16, "test": 16, "val": 16}},
        "backbone_training": {"batch_frames": 40, "iterations": 4, "optimiser": "sgd", "learning_rate": 0.1},
        "aggregator_training": {"batch_videos": 5, "optimiser": "sgd", "learning_rate": 0.05},
        "engine": engine_changes,
    }
    smoke = load_profile("smoke")
    parts = {name: getattr(smoke, name).model_copy(update=change) for name, change in changes.items()}
    return smoke.model_copy(update={"name": "odd", **parts})


PROGRAM = """
import json, sys
from faster_lib.data import index
from faster_lib.profiles import Profile
from faster_lib.training import loop
from tests.ranked_batch_norm import synchronise
from workflow import train

loop.synchronise_batch_norm = synchronise
for profile, arguments, is_mended in json.load(open(sys.argv[1])):
    train.load_profile = lambda name: Profile.model_validate_json(profile)
    has_hash = index.has_hash
    if not is_mended:  # as if the videos were damaged after the start
        index.has_hash = lambda *_: True
    train.main(["--profile", "odd", "-L", "8", *arguments])
    index.has_hash = has_hash
"""


def train_by_two(folder, jobs) -> None:
    """Run the training command for each job as a user would, by two processes, which need long to start."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "jobs.json").write_text(json.dumps([(p.model_dump_json(), *rest) for p, *rest in jobs]))
    environment = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
    command = [*LAUNCH, "2", str(folder / "program.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]


def train_here(jobs) -> None:
    """Run the training command for each job in this process."""
    for profile, arguments, is_mended in jobs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "load_profile", lambda name, profile=profile: profile)
            if not is_mended:
                patch.setattr(index, "has_hash", lambda *_: True)
            train.main(["--profile", "odd", "-L", "8", *arguments])


@pytest.fixture(scope="module")
def by_one_and_two(tmp_path_factory):
    """Folders of one process and of two, each with the results of both stages, and of stage 1 on damaged videos."""
    folders = [tmp_path_factory.mktemp(f"by_{number}") for number in (1, 2)]
    for folder in folders:
        (folder / "whole" / "odd").mkdir(parents=True)
    (folders[1] / "whole" / "odd" / "videos").symlink_to(folders[0] / "whole" / "odd" / "videos")
    for folder, run in zip(folders, (train_here, partial(train_by_two, folders[1])), strict=True):
        videos = load_videos(spoilt_profile(), "train", runs=folder / "spoilt")
        for number in (3, 5):
            videos.videos[number].path.write_bytes(b"no video")
        whole = ["--stage", "aggregator", "--ratio", "1", "--anew", str(folder / "whole")]
        spoilt = ["--backbone", "r2d_26", "--anew", str(folder / "spoilt")]
        run([(odd_profile(), whole, True), (spoilt_profile(), spoilt, False)])
    return folders


@pytest.fixture(scope="module")
def both(by_one_and_two):
    """The folders of results of one process and of two, on the same videos."""
    return [folder / "whole" for folder in by_one_and_two]


def weights_of(runs, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.parent.name.rsplit("-", 1)[0]: load_file(path) for path in runs.glob(f"odd/{kind}/*/weights.safetensors")
    }


def records_of(runs, kind: str) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in runs.glob(f"odd/{kind}/*/record.json")]
    return {(r["depends"].get("network") or r["depends"]["aggregator"]): r["measures"] for r in found}


@pytest.mark.parametrize("kind", ["networks", "aggregators"])
def test_two_processes_train_the_same_weights_with_the_same_losses_as_one(both, kind):
    one, two = (weights_of(runs, kind) for runs in both)
    assert one.keys() == two.keys() and len(one) == (2 if kind == "networks" else 1)
    for network, weights in one.items():
        for name, weight in weights.items():
            assert torch.allclose(weight.float(), two[network][name].float(), rtol=2e-3, atol=2e-4), (network, name)
    for name, measures in records_of(both[0], kind).items():
        other = records_of(both[1], kind)[name]
        if kind == "networks":
            assert other["first_losses"] == pytest.approx(measures["first_losses"], rel=1e-4)
            assert len(set(measures["first_losses"])) == 4, "each step saw other clips"
        else:
            assert other["train_loss"] == pytest.approx(measures["train_loss"], rel=1e-3)
            assert {k: v for k, v in other.items() if k != "train_loss"} == {
                k: v for k, v in measures.items() if k != "train_loss"
            }, "the evaluation to the digit"


def spoilt_profile():
    """Batches of 3 videos: the second process has one of them, and sometimes that one is broken."""
    odd = odd_profile()
    data = odd.data.model_copy(update={"most_unreadable_share": 0.2})
    training = odd.backbone_training.model_copy(update={"batch_frames": 24, "seed": 3})
    return odd.model_copy(update={"data": data, "backbone_training": training})


def test_two_processes_skip_the_same_unreadable_videos_as_one_even_where_one_of_them_has_nothing_left(by_one_and_two):
    (one,), (two,) = (records_of(folder / "spoilt", "networks").values() for folder in by_one_and_two)
    assert two["first_losses"] == pytest.approx(one["first_losses"], rel=1e-4)
    assert {Path(path).name for path in one["skipped"]} == {Path(path).name for path in two["skipped"]}
    assert len(one["skipped"]) == 2


class Part(NamedTuple):
    x: torch.Tensor
    targets: torch.Tensor


class Small(torch.nn.Module):
    """A network that draws random numbers at each step."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
        self.idle = torch.nn.Parameter(torch.zeros(1))  # takes part in nothing

    def forward(self, x):
        return self.layers(x)


def batches_of(first, mine, parts):
    """Endless batches of 10 samples, in as many parts as asked for."""
    for step in itertools.count(first):
        generator = torch.Generator().manual_seed(step)
        x, targets = torch.randn(10, 6, generator=generator), torch.randint(3, (10,), generator=generator)
        yield from (Part(x[part::parts], targets[part::parts]) for part in mine)


def fit_small(folder, *, dropout: float = 0.3, before=lambda step: None, spoil=None, steps: int = 8, **changes):
    smoke = load_profile("smoke")
    settings = smoke.backbone_training.model_copy(update={"checkpoint_iterations": 3, "optimiser": "adamw"})
    network = ranks.seeded(0, Small)
    network.layers[1].p = dropout

    count = itertools.count(1)

    def compute(network, part):
        before(task.steps)
        if spoil:
            spoil(network, next(count))
        return network(part.x), part.targets

    task = loop.Task(
        folder=folder / "networks" / "small-0",
        settings=settings,
        engine=smoke.engine.model_copy(update=changes),
        steps=steps,
        batch_samples=10,
        seed=3,
        batches=batches_of,
        compute=compute,
        kept_losses=2,
    )
    found = loop.run_training(network, task)
    return {name: value.clone() for name, value in network.state_dict().items()}, found


def test_a_batch_in_three_uneven_parts_gives_the_gradient_of_the_whole(tmp_path):
    (whole, losses), (parts, of_parts) = (
        fit_small(tmp_path / str(number), dropout=0.0, accumulation=number) for number in (1, 3)
    )
    for name, weight in whole.items():
        assert torch.allclose(weight, parts[name], atol=1e-6), name
    assert of_parts["first_losses"] == pytest.approx(losses["first_losses"], rel=1e-5)
    with pytest.raises(ValueError, match=r"a batch of 10 cannot be shared out to 1 processes in 11 part\(s\)"):
        fit_small(tmp_path / "11", accumulation=11)


def test_bf16_is_used_where_the_profile_says_so(tmp_path):
    (full, _), (mixed, _) = (fit_small(tmp_path / name, mixed_precision=name) for name in ("no", "bf16"))
    far = max((full[name] - mixed[name]).abs().max().item() for name in full)
    assert 0 < far < 0.02


@pytest.mark.parametrize("stop", ["sigterm", "error"])
def test_a_stopped_training_goes_on_from_its_last_state_to_the_same_weights(tmp_path, stop):
    undisturbed, losses = fit_small(tmp_path / "whole")
    count = itertools.count(1)

    def disturb(_):
        if next(count) == 5:
            if stop == "error":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if stop == "sigterm" else KeyboardInterrupt) as caught:
        fit_small(tmp_path / "cut", before=disturb)
    assert signal.getsignal(signal.SIGTERM) is handler
    if stop == "sigterm":
        assert caught.value.code == 143
    state = torch.load(tmp_path / "cut" / "networks" / "small-0" / checkpoints.CHECKPOINT, weights_only=True)
    kept = state["progress"]["iteration"]
    assert kept == (3 if stop == "error" else 6)  # by SIGTERM: the step at hand and the next, which sees the signal
    torch.manual_seed(99)  # another process would be elsewhere
    again, found = fit_small(tmp_path / "cut")
    assert all(torch.equal(again[name], weight) for name, weight in undisturbed.items())
    times = {"training_seconds"}
    assert {k: v for k, v in found.items() if k not in times} == {k: v for k, v in losses.items() if k not in times}
    assert len(found["last_losses"]) == 2


def stop_at(step: int):
    """Give what interrupts a training at its n-th step."""
    count = itertools.count(1)

    def stop(_):
        if next(count) == step:
            raise KeyboardInterrupt

    return stop


DAMAGES = {
    "a flipped bit": lambda content: content[:3000] + bytes([content[3000] ^ 4]) + content[3001:],
    "cut": lambda content: content[:3000],
    "zeros": lambda content: content[:3000] + bytes(len(content) - 3000),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_training_goes_on_from_the_older_checkpoint_where_the_newer_is_damaged(tmp_path, damage, caplog):
    undisturbed, _ = fit_small(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_small(tmp_path / "cut", before=stop_at(8))
    newer, older = (
        tmp_path / "cut" / "networks" / "small-0" / name for name in (checkpoints.CHECKPOINT, checkpoints.BEFORE)
    )
    states = [torch.load(path, weights_only=True)["progress"]["iteration"] for path in (newer, older)]
    assert states == [6, 3]
    newer.write_bytes(DAMAGES[damage](newer.read_bytes()))
    again, found = fit_small(tmp_path / "cut")
    assert f"{newer} is damaged; the training goes on from {older}" in caplog.text and found["iteration"] == 8
    assert all(torch.equal(again[name], weight) for name, weight in undisturbed.items())
    for path in (newer, older):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{newer} and any before it are damaged.*remove"):
        fit_small(tmp_path / "cut")


def test_what_is_not_finite_is_not_kept(tmp_path):
    def spoil(step, value):
        def at(network, number):
            if number == step:
                value(network)

        return at

    def huge(network):
        network.layers[0].weight.register_hook(lambda gradient: gradient * math.inf)

    def nan_in_memory(network):
        network.idle.data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="the norm of the gradient is inf; lower learning_rate"):
        fit_small(tmp_path / "gradient", spoil=spoil(2, huge))
    with pytest.raises(FloatingPointError, match="a weight, or the optimiser's memory of one, is not finite; lower"):
        fit_small(tmp_path / "weight", spoil=spoil(5, nan_in_memory))
    state = checkpoints.read_checkpoint(tmp_path / "weight" / "networks" / "small-0")
    assert (
        state["progress"]["iteration"] == 3 and checkpoints.read_checkpoint(tmp_path / "gradient" / "networks") is None
    )


def curves_of(folder) -> list[dict[str, float]]:
    with (folder / "networks" / "small-0" / loop.CURVES).open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_curves_hold_each_step_once_with_loss_accuracy_rate_speed_waiting_and_memory(tmp_path):
    _, found = fit_small(tmp_path / "whole", steps=8)
    points = curves_of(tmp_path / "whole")
    names = {"loss", "accuracy", "learning rate", "samples per second", "data wait share", "peak memory (MiB)"}
    assert set(points[0]) == names | {"step"}
    assert [point["loss"] for point in points[:5]] == found["first_losses"]
    assert all(0 <= point["data wait share"] <= 1 and 0 <= point["accuracy"] <= 100 for point in points)

    with pytest.raises(KeyboardInterrupt):
        fit_small(tmp_path / "cut", before=stop_at(6))  # after five points, of which the state knows three
    with (tmp_path / "cut" / "networks" / "small-0" / loop.CURVES).open("a") as file:
        file.write("6,0.5")  # as from a process that was killed in the midst
    fit_small(tmp_path / "cut")
    assert [point["step"] for point in curves_of(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [p["loss"] for p in curves_of(tmp_path / "cut")] == [p["loss"] for p in points]


def test_an_error_of_the_curves_file_is_logged_and_does_not_end_the_training(tmp_path, caplog):
    (tmp_path / "networks" / "small-0" / loop.CURVES).mkdir(parents=True)
    assert fit_small(tmp_path)[1]["iteration"] == 8
    assert "a point of the curves is lost: [Errno 21] Is a directory" in caplog.text


def test_ranks_share_out_every_batch_without_a_double_or_a_gap():
    whole = list(draw_epochs(13, batch_videos=5, first=2, iterations=9, seed=1))
    dealt = [
        list(draw_epochs(13, batch_videos=5, first=2, iterations=9, seed=1, mine=mine, parts=4))
        for mine in ((0, 2), (1, 3))
    ]
    for number, batch in enumerate(whole):
        shares = [share for rank in dealt for share in rank[2 * number : 2 * number + 2]]
        assert sorted(itertools.chain(*shares)) == sorted(batch)
        assert {len(share) for share in shares} == {1, 2}
    assert len(dealt[0]) == len(dealt[1]) == 2 * len(whole) == 2 * (9 - 2)
