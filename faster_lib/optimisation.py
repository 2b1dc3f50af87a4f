"""What both stages of training share: the optimiser, the course of its learning rate, and one step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from faster_lib.profiles import Optimisation


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: Optimisation, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Build the optimiser and its schedule: linear warm-up, then a half cosine down to 0.

    Source: the cosine is FASTER's (Loshchilov and Hutter 2016).
    """
    parameters = list(parameters)
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        betas = (settings.momentum, 0.999)
        optimiser = torch.optim.AdamW(
            parameters, settings.learning_rate, betas=betas, weight_decay=settings.weight_decay
        )
    warmup = max(1, round(settings.warmup_share * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def take_step(loss, parameters, optimiser, schedule, settings: Optimisation) -> None:
    """Do one optimiser step, with the gradient's norm clipped if the settings say so.

    Raises: FloatingPointError if the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; lower learning_rate, which is {settings.learning_rate}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip_gradient_norm:
        nn.utils.clip_grad_norm_(parameters, settings.clip_gradient_norm)
    optimiser.step()
    schedule.step()
