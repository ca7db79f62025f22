"""The network as PyTorch runs it, operation by operation: the reference, and what every archive can do."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from model.engines.engine import Engine, Logits, Pixels
from model.engines.kinds import EngineKind
from model.network import load_network
from model.normalise import Normalise
from model.spec import ModelSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PixelNetwork(nn.Module):
    """A network with its normalisation before it; what every engine computes.

    Weights and activations have the kind's precision, mean and standard deviation stay float32. channels_last is the
    layout that convolutions are fastest in, on CPU and GPU; a compiler that chooses layouts by itself wants the plain
    one.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, *, kind: EngineKind, layout: torch.memory_format) -> None:
        super().__init__()
        self.dtype = _DTYPES[kind.precision]
        self.layout = layout
        self.normalise = Normalise(spec)
        self.network = network.to(dtype=self.dtype, memory_format=layout)  # type: ignore[call-overload]
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 logits (B, classes)."""
        images = self.normalise(pixels).to(dtype=self.dtype, memory_format=self.layout)
        logits: Tensor = self.network(images)  # (B, classes)
        return logits.float()


def load_pixel_network(
    weights: Path, spec: ModelSpec, *, kind: EngineKind, layout: torch.memory_format = torch.channels_last
) -> PixelNetwork:
    """Rebuilds the spec's network with its weights, on the CPU, in evaluation mode.

    Raises:
        SpecError: the network is unknown.
        WeightsError: the weights are missing, corrupt, or do not fit.
    """
    return PixelNetwork(load_network(spec, weights), spec, kind=kind, layout=layout)


class EagerEngine(Engine):
    """Runs the network from its weights."""

    def __init__(self, module: PixelNetwork, spec: ModelSpec, *, kind: EngineKind, device: str) -> None:
        super().__init__(kind, spec, device=device)
        self.module = module.to(device)

    @classmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Loads the weights; see Engine.load."""
        set_threads(threads)
        return cls(load_pixel_network(file, spec, kind=kind), spec, kind=kind, device=device)

    @torch.inference_mode()
    def run(self, pixels: Pixels) -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes)."""
        logits: Logits = self.module(to_device(pixels, self.device)).cpu().numpy()
        return logits

    def count_threads(self) -> int:
        """Returns torch's threads, which are the whole process's."""
        return torch.get_num_threads()

    @classmethod
    def version(cls) -> str:
        """Returns "torch" and its version."""
        return f"torch {torch.__version__}"


def to_device(pixels: Pixels, device: str) -> Tensor:
    """uint8 (B, C, H, W) -> the same on a device; to a GPU from pinned memory, without waiting."""
    batch = torch.from_numpy(pixels)
    return batch.to(device) if device == "cpu" else batch.pin_memory().to(device, non_blocking=True)


def set_threads(threads: int | None) -> None:
    """Sets how many threads torch uses in this process, where it is said."""
    if threads is not None:
        torch.set_num_threads(threads)
