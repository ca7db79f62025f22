"""The networks that a spec can name: `simple_cnn`, the reference classifier, `whitened_cnn`, and every `timm/<name>`.

To add a network: a file with its class and its parameters as a pydantic model, and a line in `_OWN`.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.errors import SpecError, WeightsError, describe_validation_error
from model.simple_cnn import SimpleCNN, SimpleCNNParameters
from model.spec import SPEC_FILE, ModelSpec
from model.whitened_cnn import WhitenedCNN, WhitenedCNNParameters

_OWN: dict[str, tuple[Callable[..., nn.Module], type[BaseModel]]] = {
    "simple_cnn": (SimpleCNN, SimpleCNNParameters),
    "whitened_cnn": (WhitenedCNN, WhitenedCNNParameters),
}


def build_network(spec: ModelSpec) -> nn.Module:
    """Builds the spec's network with fresh weights, on the CPU, in training mode.

    Raises:
        SpecError: the network is unknown, or a parameter is unknown or out of range.
    """
    if spec.network in _OWN:
        return _build_own(spec)
    if spec.network.startswith("timm/"):
        return _build_timm(spec)
    own = ", ".join(map(repr, _OWN))
    raise SpecError(f"network is {spec.network!r}; expected {own} or 'timm/<name>', such as 'timm/resnet18'")


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


def _build_own(spec: ModelSpec) -> nn.Module:
    network, accepted = _OWN[spec.network]
    try:
        parameters = accepted(**spec.parameters)
    except ValidationError as err:
        raise SpecError(describe_validation_error(err, where=f"network {spec.network}, parameters")) from err
    return network(channels=spec.channels, size=spec.size, classes=len(spec.classes), **parameters.model_dump())


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
