"""The networks that a spec can name: `simple_cnn`, the reference classifier, and every `timm/<name>`.

To add a network: a class here, its parameters as a pydantic model, and a line in `build_network`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.errors import SpecError, WeightsError, describe_validation_error
from model.spec import SPEC_FILE, ModelSpec

Width = Annotated[int, Field(ge=1)]


class SimpleCNNParameters(BaseModel):
    """Parameters of `simple_cnn`; the defaults are those of the published listing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (32,)
    convolutions: Width = 1
    hidden: Width = 10
    norm: Literal["none", "batch"] = "none"
    pooling: Literal["last", "first"] = "last"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SimpleCNN(nn.Module):
    """The reference classifier: blocks of 3x3 convolution, ReLU and 2x2 max pooling, then two linear layers.

    The published listing is one block of 32 channels for 16 x 16 RGB images and ten classes, with the 32*8*8 features
    of that size written into it. Here input channels, size, widths, number of blocks and classes are parameters.
    More `convolutions` of a block follow its pooling, each with a ReLU; `norm="batch"` puts a batch norm before every
    ReLU of a block, and `pooling="first"` the pooling before both, which then have a quarter of the values to work on;
    `dropout` acts before the last layer.

    Args:
        channels: of the input image.
        size: side of the input in pixels; at least 2 ** len(widths), as each block halves it.
        classes: how many logits come out.
        widths: output channels of each block.
        convolutions: in each block, the first before its pooling.
        hidden: width of the layer between features and logits.
        norm: whether the blocks have batch norms.
        pooling: "last" of its block's convolution, norm and ReLU, or "first" after the convolution.
        dropout: probability.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        widths: Sequence[int] = (32,),
        convolutions: int = 1,
        hidden: int = 10,
        norm: Literal["none", "batch"] = "none",
        pooling: Literal["last", "first"] = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = size >> len(widths)
        if side < 1:
            raise SpecError(
                f"parameters.widths has {len(widths)} blocks; expected at most {size.bit_length() - 1}, "
                f"as each halves the input of size {size}"
            )
        blocks = [
            _block(a, b, convolutions=convolutions, norm=norm, pooling=pooling)
            for a, b in zip((channels, *widths), widths, strict=False)
        ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, channels, size, size) -> logits (B, classes)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _block(channels_in: int, channels_out: int, *, convolutions: int, norm: str, pooling: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        width_in = channels_out if number else channels_in
        layers.append(nn.Conv2d(width_in, channels_out, kernel_size=3, padding=1, bias=norm == "none"))
        activation: list[nn.Module] = [nn.BatchNorm2d(channels_out)] if norm == "batch" else []
        activation.append(nn.ReLU())
        pool: list[nn.Module] = [] if number else [nn.MaxPool2d(2)]
        layers += pool + activation if pooling == "first" else activation + pool
    return nn.Sequential(*layers)


def build_network(spec: ModelSpec) -> nn.Module:
    """Builds the spec's network with fresh weights, on the CPU, in training mode.

    Raises:
        SpecError: the network is unknown, or a parameter is unknown or out of range.
    """
    if spec.network == "simple_cnn":
        return _build_simple_cnn(spec)
    if spec.network.startswith("timm/"):
        return _build_timm(spec)
    raise SpecError(f"network is {spec.network!r}; expected 'simple_cnn' or 'timm/<name>', such as 'timm/resnet18'")


def load_network(spec: ModelSpec, weights: Path) -> nn.Module:
    """Builds the spec's network with the weights of a safetensors file, on the CPU, in training mode.

    The weights stay in the file and are mapped into memory, where processes that have loaded the same file share them;
    it must not be written into as long as the network lives.

    Raises:
        SpecError: the network is unknown, or a parameter is unknown or out of range.
        WeightsError: the file is missing or corrupt, or its tensors are not the network's: each must be there, and no
            other.
    """
    with _NoDraws():
        network = build_network(spec)
    _load_weights(network, weights)
    return network


class _NoDraws(TorchFunctionMode):
    """Leaves the memory of tensors as it is where they would be filled with random numbers.

    A file sets all of them afterwards. Drawing them first takes longer than all else that a starting worker does: 8 s
    for 250 million. What is computed otherwise while a network is built stays as it is.
    """

    DRAWS = frozenset(
        {
            *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_),
            *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
        }
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Is asked by torch for each of its functions."""
        kwargs = kwargs or {}
        return func(*args, **kwargs) if func not in self.DRAWS else args[0] if args else kwargs["tensor"]


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as err:
        raise WeightsError(f"{path}: cannot be read as safetensors: {err}") from err
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as err:
        reason = "; ".join(line.strip() for line in str(err).splitlines()[1:]) or str(err)
        raise WeightsError(f"{path}: does not fit the network of {SPEC_FILE}: {reason}") from err


def _build_simple_cnn(spec: ModelSpec) -> nn.Module:
    try:
        parameters = SimpleCNNParameters(**spec.parameters)
    except ValidationError as err:
        raise SpecError(describe_validation_error(err, where="network simple_cnn, parameters")) from err
    return SimpleCNN(channels=spec.channels, size=spec.size, classes=len(spec.classes), **parameters.model_dump())


def _build_timm(spec: ModelSpec) -> nn.Module:
    import timm  # here, because it costs a second and most archives need none of it

    name = spec.network.removeprefix("timm/")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise SpecError(f"network is {spec.network!r}, which timm {timm.__version__} does not have{hint}")
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, in_chans=spec.channels, num_classes=len(spec.classes), **spec.parameters
        )
        with torch.inference_mode():
            logits = network.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    except (TypeError, ValueError, RuntimeError, AssertionError) as err:
        raise SpecError(
            f"network {spec.network!r} cannot be built with parameters {spec.parameters} "
            f"for {spec.channels} x {spec.size} x {spec.size} inputs: {err}"
        ) from err
    if logits.shape != (1, len(spec.classes)):
        raise SpecError(
            f"network {spec.network!r} answers with shape {tuple(logits.shape)}, not (1, {len(spec.classes)})"
        )
    return network.train()
