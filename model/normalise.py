"""The last step of preprocessing, in torch: from uint8 pixels to what a network takes.

Training and the engines call it; an exported engine carries it inside its own graph, so that serving needs no torch.
"""

import torch
from torch import Tensor, nn

from model.spec import ModelSpec


class Normalise(nn.Module):
    """uint8 (B, C, H, W) -> float32 of the same shape: scaled to 0..1, minus the mean, over the standard deviation.

    A module, so that mean and std move to the device once, with `.to(device)`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        std = torch.tensor(spec.std).view(1, -1, 1, 1)
        mean = torch.tensor(spec.mean).view(1, -1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalises a batch, on the device that it lies on."""
        return torch.addcmul(self.shift, pixels.float(), self.scale)
