"""The optimiser and the learning rate over a run: timm's and torch's own parts, put together from the configuration."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
)

from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

SCALE = 2.0**14  # that fp16 starts from; the scaler finds its own
ONE_CYCLE_RISE = 0.25  # part of a one-cycle run in which the learning rate rises
WARMUP_START = 0.01  # of the learning rate


def make_optimiser(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Returns timm's optimiser of that name.

    Weight decay is on matrices and kernels only: it would pull biases and norms towards nothing. With layer decay each
    layer below the last learns slower by that factor, by timm's order of the network's layers.

    Raises:
        UsageError: layer decay for a network whose layers timm cannot order.
    """
    if config.layer_decay is not None and not hasattr(network, "group_matcher"):
        raise UsageError(
            f"--layer-decay is for networks whose layers timm can order; {config.network} is none; leave it off, "
            "or give a --network such as timm/resnet18"
        )
    from timm.optim import create_optimizer_v2  # here, because it costs a second

    is_plain = config.optimiser == "sgd" and not config.nesterov
    optimiser: Optimizer = create_optimizer_v2(
        network,
        opt="momentum" if is_plain else config.optimiser,  # timm's sgd is Nesterov's
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        layer_decay=config.layer_decay,
    )
    for group in optimiser.param_groups:  # torch's schedules know nothing of timm's scale
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimiser


def make_schedule(optimiser: Optimizer, config: TrainConfig, *, steps_per_epoch: int) -> LRScheduler:
    """Returns the schedule, to be stepped after each of the run's optimiser steps."""
    steps = config.epochs * steps_per_epoch
    if config.schedule == "one-cycle":  # momentum stays as configured: cycling it gains nothing at these sizes
        return OneCycleLR(
            optimiser,
            max_lr=[group["lr"] for group in optimiser.param_groups],
            total_steps=steps,
            pct_start=ONE_CYCLE_RISE if steps > 4 else 0.0,  # torch divides by zero where the rise is one step
            anneal_strategy="linear",
            cycle_momentum=False,
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    parts: list[LRScheduler] = [LinearLR(optimiser, start_factor=WARMUP_START, total_iters=warmup)] if warmup else []
    if config.schedule == "cosine":
        parts.append(CosineAnnealingLR(optimiser, T_max=steps))
    else:
        parts.append(ConstantLR(optimiser, factor=1.0, total_iters=0))
    return ChainedScheduler(parts, optimiser)


def make_ema(network: nn.Module, config: TrainConfig) -> "ModelEmaV3 | None":
    """Returns timm's exponential moving average of the weights, with a decay that rises to the configured one."""
    if config.ema is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=config.ema, use_warmup=True)


def make_scaler(config: TrainConfig, device: torch.device) -> GradScaler:
    """Returns what scales the loss so that fp16 gradients do not vanish; it does nothing without fp16."""
    return GradScaler(device.type, init_scale=SCALE, enabled=config.amp == "fp16")
