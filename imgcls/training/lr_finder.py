"""A learning rate by a range test: raise it step by step, and see where the loss falls fastest.

Source: Smith 2017, arXiv:1506.01186. The network that is trained is a copy; nothing is written.
"""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from imgcls.errors import RunError
from imgcls.training.batches import Batch, Batches
from imgcls.training.config import TrainConfig
from imgcls.training.head import set_training
from imgcls.training.optimise import make_optimiser
from model.normalise import Normalise

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
SMOOTHING = 0.9
SETTLING = 10  # first steps, whose mean is that of few batches: it moves by chance, while the rates do nothing
LEAST_FALL = 0.95  # of the loss after these: less is chance
HOPELESS = 4.0  # times the lowest loss: what comes after tells nothing


def find_lr(
    network: nn.Module, normalise: Normalise, train: Batches, config: TrainConfig, *, device: torch.device
) -> float:
    """Returns the learning rate at which the smoothed loss falls fastest, as a peak for this recipe's optimiser.

    Raises:
        RunError: the loss does not fall at any.
    """
    rates, losses = sweep(copy.deepcopy(network), normalise, train, config, device=device)
    slopes = [later - earlier for earlier, later in pairwise(losses[SETTLING:])]
    if not slopes or min(losses) > LEAST_FALL * losses[SETTLING]:
        raise RunError(
            f"the loss hardly falls at any learning rate from {LOWEST:g} to {HIGHEST:g}; look at data and labels"
        )
    return rates[SETTLING + slopes.index(min(slopes))]


def sweep(
    network: nn.Module, normalise: Normalise, train: Batches, config: TrainConfig, *, device: torch.device
) -> tuple[list[float], list[float]]:
    """Trains with ever higher rates; returns them with the smoothed loss at each."""
    set_training(network, is_frozen=config.freeze_epochs > 0)
    optimiser = make_optimiser(network, config)
    scales = [group.get("lr_scale", 1.0) for group in optimiser.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, batch in zip(range(STEPS), _repeat(train), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group, scale in zip(optimiser.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        logits = network(normalise(batch.pixels.to(device)))  # (B, classes)
        loss = nn.functional.cross_entropy(logits, batch.labels.to(device), label_smoothing=config.label_smoothing)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss.item()
        smoothed = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or smoothed > HOPELESS * min([*losses, smoothed]):
            break
        rates.append(rate)
        losses.append(smoothed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return rates, losses


def _repeat(train: Batches) -> Iterator[Batch]:
    epoch = 1
    while True:
        yield from train.draw(epoch)
        epoch += 1
