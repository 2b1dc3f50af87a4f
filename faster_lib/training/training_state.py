"""A training's whole state in one safetensors file: weights, optimiser, schedule, progress and random states."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from faster_lib.store import write_whole

CHECKPOINT = "checkpoint.safetensors"  # in the folder of what is being trained
CURVES = "tensorboard"  # the folder in runs/ that holds the curves of all trainings


def curves_of(folder: Path) -> Path:
    """Give the folder of the curves of what is trained in an entry's folder, `runs/<kind>/<name>`."""
    return folder.parents[1] / CURVES / folder.name


def save_state(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    content: dict[str, Any],
) -> None:
    """Write a training's state, whole or not at all; what is under that name stays until then.

    Args:
        content: what else belongs to it, plain JSON.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    optimised = optimiser.state_dict()
    for number, state in optimised["state"].items():
        tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items() if value is not None}
    about = {**content, "schedule": schedule.state_dict(), "groups": optimised["param_groups"]}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, save(tensors, {"state": json.dumps(about)}))


def load_state(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, Any]:
    """Take a training's state back, and give what else was kept with it; no code in the file is run.

    Raises: RuntimeError if the file is of another network.
    """
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    cut = len("network.")
    network.load_state_dict({name[cut:]: value for name, value in tensors.items() if name.startswith("network.")})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, number, key = name.split(".")
            like = parameters[int(number)]
            kept = torch.empty_like(like).copy_(value) if value.shape == like.shape else value  # laid out as it was
            state.setdefault(int(number), {})[key] = kept
    optimiser.load_state_dict({"state": state, "param_groups": about["groups"]})
    schedule.load_state_dict(about["schedule"])
    return about


def read_progress(path: Path) -> dict[str, Any]:
    """Read how far a kept training is, from the head of its file alone."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])["progress"]
