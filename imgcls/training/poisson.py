"""Poisson sampling for private training: each step takes each image with the same chance, on its own.

DP-SGD's epsilon holds because nobody knows which images a step saw, nor its noise. So both are drawn from a key that
only the run's checkpoints hold, and not from its seed, which its record names. Given the key, they are functions of
epoch and step: a run that is resumed draws what it would have drawn.

torch seeds its Mersenne Twister with 32 bits, so few that all seeds can be tried; here the key fills its whole state.
"""

import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgcls.training.randomness import Draw

KEY_BITS = 128
_DRAWS = 2  # how key and position make a generator; a checkpoint of another way would go on with other draws
_WORDS = 624  # of a Mersenne Twister
_WORDS_AT = 24  # bytes into torch's state, behind its seed and its place among the words; each word takes 8


class PoissonSampling:
    """Which images each step of a private run takes; has a state, for checkpoints.

    Args:
        images: of the training split.
        batch_size: images that a step takes on average.
    """

    def __init__(self, images: int, batch_size: int) -> None:
        self.images = images
        self.rate = min(1.0, batch_size / images)
        self.steps = max(1, round(images / batch_size))  # of an epoch
        self._key = secrets.randbits(KEY_BITS)

    def draw(self, epoch: int, step: int) -> Tensor:
        """Returns the indices of a step's images, int64 (S,), sorted; now and then there are none."""
        chances = torch.rand(self.images, generator=self.generator_at(Draw.POISSON, epoch, step), dtype=torch.float64)
        return (chances < self.rate).nonzero().flatten()

    def generator_at(self, draw: Draw, *position: int) -> torch.Generator:
        """Returns a CPU generator that is a function of the key, the draw and the position.

        Its `initial_seed()` says nothing of it.
        """
        words = np.random.SeedSequence([draw, self._key, *position]).generate_state(_WORDS).astype(np.int64)
        generator = torch.Generator()
        state = generator.get_state()  # as after a seed: the next draw mixes all words first
        state[_WORDS_AT : _WORDS_AT + 8 * _WORDS] = torch.from_numpy(words).view(torch.uint8)
        return generator.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Returns the key."""
        return {"key": f"{self._key:x}", "draws": _DRAWS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets it.

        Raises:
            ValueError: an earlier version drew otherwise with it.
        """
        if state_dict.get("draws") != _DRAWS:
            raise ValueError("an earlier version drew its images and noise otherwise than this one")
        self._key = int(state_dict["key"], 16)
