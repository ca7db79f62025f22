"""The optimiser and the learning rate over a run: torch's own parts, put together from the configuration."""

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from imgcls.training.config import TrainConfig

WARM_UP = 0.25  # part of a one-cycle run in which the learning rate rises


def make_optimiser(network: nn.Module, config: TrainConfig) -> SGD:
    """Returns SGD with weight decay on matrices and kernels only: it would pull biases and norms towards nothing."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return SGD([g for g in groups if g["params"]], lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def make_schedule(optimiser: SGD, config: TrainConfig, *, steps: int) -> LRScheduler:
    """Returns the schedule, to be stepped after each of the run's `steps` optimiser steps."""
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimiser, T_max=steps)
    if config.schedule == "one-cycle":  # momentum stays as configured: cycling it gains nothing at these sizes
        return OneCycleLR(
            optimiser,
            max_lr=config.lr,
            total_steps=steps,
            pct_start=WARM_UP if steps > 4 else 0.0,  # torch divides by zero where the warm-up is one step
            anneal_strategy="linear",
            cycle_momentum=False,
        )
    return LambdaLR(optimiser, lambda _: 1.0)
