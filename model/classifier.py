"""A trained classifier, ready to answer: spec, network and weights on one device.

The handler, the evaluation and the archive's self-test all predict through this class, so they cannot differ.
"""

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.errors import WeightsError
from model.network import build_network
from model.preprocess import Normalise
from model.spec import ModelSpec, read_spec

SPEC_FILE = "spec.yaml"
WEIGHTS_FILE = "weights.safetensors"


class Classifier:
    """Answers batches of pixels with logits; holds no state between calls."""

    def __init__(self, spec: ModelSpec, network: nn.Module, *, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.normalise = Normalise(spec).to(self.device)

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> Self:
        """Loads the spec and the weights of a run directory or an unpacked archive.

        Raises:
            SpecError: spec.yaml cannot be used.
            WeightsError: the weights are missing, corrupt, or do not fit the spec's network.
        """
        spec = read_spec(folder / SPEC_FILE)
        network = build_network(spec)
        load_weights(network, folder / WEIGHTS_FILE)
        return cls(spec, network, device=device)

    @torch.inference_mode()
    def logits(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 logits (B, classes) on the CPU."""
        batch = torch.as_tensor(pixels).to(self.device, non_blocking=True)
        images = self.normalise(batch).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits.float().cpu()

    def probabilities(self, pixels: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.float32]:
        """uint8 (B, C, H, W) -> softmax probabilities (B, classes); NaN where the logits are not finite."""
        probabilities: npt.NDArray[np.float32] = self.logits(pixels).softmax(dim=1).numpy()
        return probabilities


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a network; every tensor must be there, and no other.

    Raises:
        WeightsError: the file is missing or corrupt, or its tensors are not the network's.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as err:
        raise WeightsError(f"{path}: cannot be read as safetensors: {err}") from err
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as err:
        reason = "; ".join(line.strip() for line in str(err).splitlines()[1:]) or str(err)
        raise WeightsError(f"{path}: does not fit the network of {SPEC_FILE}: {reason}") from err
