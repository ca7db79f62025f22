"""Which part of an image speaks for a class: a heat map, computed with captum on the eager network.

Two methods, chosen by the network, not by the caller:

- `hires_cam`, where the network ends in a feature map: the map times the gradient of the class's logit, summed over the
  channels, what is positive of it. Of a network that averages its map before one linear layer (ResNet, EfficientNet) it
  is Grad-CAM, number for number. Where positions have weights of their own (SimpleCNN), Grad-CAM averages these away
  and points at the wrong place; this does not. Source: Draelos and Carin, arXiv:2011.08891.
- `integrated_gradients` on the input, where it ends in tokens (ViT): from the mean colour to the image, in STEPS steps.
  Source: Sundararajan et al., arXiv:1703.01365.

The handler calls this for /explanations. It imports torch, and captum when an explainer is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.engines.eager import PixelNetwork, load_pixel_network, set_threads
from model.engines.kinds import KINDS, REFERENCE
from model.errors import NumericError
from model.spec import WEIGHTS_FILE, ModelSpec

Method = Literal["hires_cam", "integrated_gradients"]

INPUT = "input"
STEPS = 16  # of integrated gradients; each is a forward and a backward pass
STEPS_AT_ONCE = 4  # what bounds its memory
SMALLEST_SIDE = 4  # of a feature map that is worth looking at
LARGEST_SIDE = 16  # of the heat map that comes out; a finer one is averaged down


@dataclass(frozen=True)
class Explanation:
    """What speaks for one class in one image.

    Attributes:
        method: how it was computed.
        layer: the module of the network that it was computed at, or "input".
        heat_map: float32 (rows, columns) over the network's input; the largest value is 1, or all are 0 where nothing
            speaks for the class.
    """

    method: Method
    layer: str
    heat_map: npt.NDArray[np.float32]


class Explainer:
    """Explains one image at a time; takes one caller at a time, and keeps nothing between calls."""

    def __init__(self, module: PixelNetwork, spec: ModelSpec, *, device: str = "cpu") -> None:
        import captum.attr  # here, because it imports matplotlib too, and most workers never explain anything

        with _gradients():
            self._module = module.requires_grad_(False).eval().to(device)
            self._device = device
            self.layer = find_feature_layer(self._module, spec, device=device)
        self.method: Method = "hires_cam" if self.layer else "integrated_gradients"
        network = self._module.network
        if self.layer:
            self._attribution: Any = captum.attr.LayerGradientXActivation(
                self._module, network.get_submodule(self.layer)
            )
        else:
            self._attribution = captum.attr.IntegratedGradients(network)

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec, *, device: str = "cpu", threads: int | None = None) -> Self:
        """Loads the network of an unpacked archive or a run directory anew, apart from any engine that predicts.

        Args:
            folder: which holds weights.safetensors.
            spec: of the network.
            device: "cpu", "cuda" or "cuda:N".
            threads: that torch may use in this process; None leaves its choice.

        Raises:
            ModuleNotFoundError: captum is not installed.
            ModelError: the network or its weights cannot be used.
        """
        with torch.inference_mode(mode=False):
            set_threads(threads)
            module = load_pixel_network(folder / WEIGHTS_FILE, spec, kind=KINDS[REFERENCE])
            return cls(module, spec, device=device)

    def explain(self, pixels: npt.NDArray[np.uint8], target: int) -> Explanation:
        """Explains the class of that index.

        Args:
            pixels: uint8 (C, H, W), the network's input.
            target: the class.

        Raises:
            NumericError: what came out is not finite.
        """
        with _gradients():
            batch = torch.from_numpy(pixels[None]).to(self._device)
            attribution = self._attribute(batch, target)  # (1, ...)
            heat_map = _make_heat_map(attribution)
        if not np.isfinite(heat_map).all():
            raise NumericError(f"{self.method} at {self.layer or INPUT} gives NaN or infinity for class {target}")
        return Explanation(method=self.method, layer=self.layer or INPUT, heat_map=heat_map)

    def _attribute(self, batch: Tensor, target: int) -> Tensor:
        attribution: Tensor
        if self.layer:
            attribution = self._attribution.attribute(batch, target=target)
        else:
            images = self._module.normalise(batch)  # the mean colour is 0
            attribution = self._attribution.attribute(
                images, target=target, n_steps=STEPS, internal_batch_size=STEPS_AT_ONCE
            )
        return attribution


@dataclass(frozen=True)
class Output:
    """What one module gave for one image: its name, the shape, and whether the module only calls others in turn."""

    name: str
    shape: tuple[int, ...]
    is_sequence: bool = False


def find_feature_layer(module: PixelNetwork, spec: ModelSpec, *, device: str = "cpu") -> str | None:
    """Returns the module of the network whose output is its last feature map, or None; see choose_feature_layer."""
    outputs: list[Output] = []

    def watch(name: str) -> Any:
        def hook(each: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append(Output(name, tuple(output.shape), isinstance(each, nn.Sequential)))

        return hook

    hooks = [each.register_forward_hook(watch(name)) for name, each in module.network.named_modules() if name]
    try:
        with torch.no_grad():
            module(torch.zeros(1, spec.channels, spec.size, spec.size, dtype=torch.uint8, device=device))
    finally:
        for each in hooks:
            each.remove()
    return choose_feature_layer(outputs)


def choose_feature_layer(outputs: Sequence[Output]) -> str | None:
    """Returns the module with the last feature map that is large enough.

    A block that makes the map smaller may let a shortcut pass by its inner maps, so these do not count. A network that
    turns its map into tokens, as a ViT does with its patches, goes on mixing them: then no map before that says much.

    Args:
        outputs: of the modules, for one image, in the order in which they were computed.
    """
    blocks = {output.name: output.shape for output in outputs if not output.is_sequence}
    chosen = None
    for output in outputs:
        if len(output.shape) == 3 and output.shape[1] > 1:  # (B, tokens, C)
            chosen = None
        elif output.shape[0] == 1 and _find_channel_axis(output.shape) is not None:
            parents = [blocks.get(parent, ()) for parent in _list_parents(output.name)]
            if all(len(shape) != 4 or shape[2] == output.shape[2] for shape in parents):  # 2: a side in both layouts
                chosen = output.name
    return chosen


def _list_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _find_channel_axis(shape: tuple[int, ...]) -> int | None:
    """Returns where the channels of a feature map are; inputs are square, and so are maps. None: it is no such map."""
    if len(shape) != 4:
        return None
    for axis, sides in ((1, shape[2:]), (3, shape[1:3])):  # as convolutions have it, as Swin and MambaOut have it
        if sides[0] == sides[1] >= SMALLEST_SIDE:
            return axis
    return None


def _make_heat_map(attribution: Tensor) -> npt.NDArray[np.float32]:
    """Attribution (1, C, H, W) or (1, H, W, C) -> (rows, columns), 0..1."""
    axis = _find_channel_axis(tuple(attribution.shape))
    evidence = attribution.detach().float().sum(dim=1 if axis is None else axis)  # (1, H, W)
    side = min(evidence.shape[-1], LARGEST_SIDE)
    heat = functional.adaptive_avg_pool2d(evidence, side)[0].clamp(min=0)
    peak = heat.max()
    heat_map: npt.NDArray[np.float32] = (heat / peak if peak != 0 else heat).cpu().numpy()
    return heat_map


@contextmanager
def _gradients() -> Iterator[None]:
    """Lets torch record gradients inside, whatever the caller has switched off, and as it was afterwards."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield
