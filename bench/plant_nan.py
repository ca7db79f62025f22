"""`python -m bench.plant_nan RATE FLAGS`: train.py, with a NaN in one pixel of that part of the training batches."""

import math
import sys

import torch
from torch import Generator, Tensor

import train
from model.normalise import Normalise
from model.spec import ModelSpec

RATE = float(sys.argv[1])


class PlantNaN(Normalise):
    """Normalises; in a training batch that is drawn, one pixel becomes NaN."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.draws = Generator().manual_seed(0)

    def forward(self, pixels: Tensor) -> Tensor:
        """As Normalise; validation runs in inference mode and is left alone."""
        images = super().forward(pixels)
        if not torch.is_inference_mode_enabled() and float(torch.rand(1, generator=self.draws)) < RATE:
            images[0, 0, 0, 0] = math.nan
        return images


if __name__ == "__main__":
    setattr(train, "Normalise", PlantNaN)  # noqa: B010 (mypy --strict knows no names that a script imports)
    sys.exit(train.main(sys.argv[2:]))
