"""Random numbers of a run: what is a function of where the run stands, and what is a state.

Order and augmentation are drawn from generators seeded by the run's seed and the position (epoch, step), so that a run
that goes on from any step draws what it would have drawn. What layers draw inside the network, such as dropout, comes
from torch's global state; it is in every checkpoint, with NumPy's, Python's and CUDA's, as a network may draw from any.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch


class Draw(IntEnum):
    """What a generator is for; two of one position are independent of each other."""

    ORDER = 0
    AUGMENT = 1
    TRANSFORM = 2
    MIX = 3
    POISSON = 4
    NOISE = 5


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global states."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator_at(draw: Draw, seed: int, *position: int) -> torch.Generator:
    """Returns a CPU generator that is a function of these numbers, and of nothing that was drawn before."""
    mixed = np.random.SeedSequence([draw, seed, *position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) % 2**63)


@contextmanager
def drawing_at(draw: Draw, seed: int, *position: int) -> Iterator[None]:
    """Within it, what torchvision draws from torch's global CPU state is a function of these numbers."""
    before = torch.get_rng_state()
    torch.set_rng_state(generator_at(draw, seed, *position).get_state())
    try:
        yield
    finally:
        torch.set_rng_state(before)


def be_deterministic() -> None:
    """Makes torch choose algorithms whose result does not vary, and refuse operations that have none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; cuBLAS demands it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def capture_random_states() -> dict[str, Any]:
    """Returns all global random states, as tensors and plain values, which `torch.load` reads without running code."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Sets all global random states to those of `capture_random_states`; CUDA's where there are as many devices."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
