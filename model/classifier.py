"""A trained classifier, ready to answer: a spec and the engine that runs its network.

The handler, the evaluation and the archive's self-test all predict through this class, so they cannot differ. It needs
torch only where its engine does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from model.engines.engine import Engine, Logits
from model.engines.kinds import KINDS
from model.spec import SPEC_FILE as SPEC_FILE
from model.spec import WEIGHTS_FILE as WEIGHTS_FILE
from model.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    import torch


class Classifier:
    """Answers batches of pixels with logits; holds no state between calls."""

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self.spec = spec
        self.engine = engine

    @classmethod
    def load(cls, folder: Path, *, device: "torch.device | str" = "cpu") -> Self:
        """Loads a run directory or an unpacked archive with the eager engine, which every other one is compared with.

        Raises:
            SpecError: spec.yaml cannot be used.
            WeightsError: the weights are missing, corrupt, or do not fit the spec's network.
        """
        from model.engines.eager import EagerEngine  # here, because it imports torch

        spec = read_spec(folder / SPEC_FILE)
        return cls(spec, EagerEngine.load(folder / WEIGHTS_FILE, spec, kind=KINDS["eager"], device=str(device)))

    def logits(self, pixels: "npt.NDArray[np.uint8] | torch.Tensor") -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes)."""
        return self.engine.run(np.asarray(pixels))

    def probabilities(self, pixels: "npt.NDArray[np.uint8] | torch.Tensor") -> npt.NDArray[np.float32]:
        """uint8 (B, C, H, W) -> probabilities (B, classes), as calibrated; NaN where the logits are not finite."""
        return softmax(self.logits(pixels), temperature=self.spec.temperature)


def softmax(logits: Logits, *, temperature: float) -> npt.NDArray[np.float32]:
    """Logits (B, classes) -> probabilities (B, classes); NaN where a row has NaN or plus infinity.

    The temperature has no default, so that nobody leaves out the spec's: it would answer what is not served.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity
        powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
        probabilities: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
