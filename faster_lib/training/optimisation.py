"""How a training starts and goes: first weights, the optimiser, the course of its learning rate."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from faster_lib.profiles import Engine, Optimisation, Profile


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: Optimisation, steps: int, *, batch_samples: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Build the optimiser and its schedule: linear warm-up, then a half cosine down to 0.

    Where the profile says for how large a batch its learning rate is meant, the rate grows and falls with the batch:
    the samples that all processes see in a step.

    Source: the cosine is FASTER's (Loshchilov and Hutter 2016).
    """
    parameters = list(parameters)
    meant_for = settings.learning_rate_samples or batch_samples
    learning_rate = settings.learning_rate * batch_samples / meant_for
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        betas = (settings.momentum, 0.999)
        optimiser = torch.optim.AdamW(parameters, learning_rate, betas=betas, weight_decay=settings.weight_decay)
    warmup = max(1, round(settings.warmup_share * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def seeded(seed: int, build, *args):
    """Build a module whose initial weights depend on the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)


def what_training_depends_on(profile: Profile, settings: Optimisation) -> dict[str, Any]:
    """Say which of a stage's settings its results depend on, as plain JSON; keys as they always were stay away."""
    depends = {"training": settings.model_dump(mode="json", exclude={"checkpoint_iterations"})}
    if settings.learning_rate_samples is None:
        del depends["training"]["learning_rate_samples"]
    if (engine := profile.engine) != Engine(mixed_precision="no", accumulation=1, sync_batch_norm=True):
        depends["engine"] = engine.model_dump(mode="json")
    return depends
