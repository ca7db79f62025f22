"""Weights of a file to start from: taken where they fit, and of the first convolution where they can be made to."""

import shlex
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imgcls.errors import RunError
from imgcls.training.progress import log

RGB = 3  # channels
NAMED = 5  # tensors that a line names
PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl"}


def load_fitting(network: nn.Module, path: Path) -> None:
    """Sets the network's tensors to those of a safetensors file, where name and shape are the same; logs which stay.

    Raises:
        RunError: the file cannot be read, or fewer than half of the network's tensors are in it.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as err:
        raise RunError(f"{path}: cannot be read as safetensors: {err}{_advise(path)}") from err
    own = network.state_dict()
    remark = _adapt_input(network, state)
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if len(fitting) < len(own) / 2:
        raise RunError(
            f"{path}: only {len(fitting)} of the network's {len(own)} tensors fit; these are weights of another network"
        )
    network.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    named = ", ".join(fresh[:NAMED]) + (f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else "")
    log(f"took {len(fitting)} of {len(own)} tensors of {path}{'; fresh: ' * bool(fresh)}{named}{remark}")


def _adapt_input(network: nn.Module, state: dict[str, Tensor]) -> str:
    """Makes a first convolution of RGB weights one of the network's channels, as timm does; returns a remark on it."""
    name, first = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    name += ".weight"
    if first is None or name not in state or first.in_channels == RGB:
        return ""
    expected, given = first.weight.shape, state[name].shape
    if given != (expected[0], RGB, *expected[2:]):
        return ""
    from timm.models import adapt_input_conv  # here, because it costs a second

    state[name] = adapt_input_conv(first.in_channels, state[name])
    return f"; {name} adapted from {RGB} to {first.in_channels} channels"


def _advise(path: Path) -> str:
    """Returns what makes safetensors of a file that torch has pickled, as the end of an error."""
    if path.suffix.lower() not in PICKLES or not path.is_file():
        return ""
    made = path.with_suffix(".safetensors")
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"s = torch.load({str(path)!r}, map_location='cpu', weights_only=True); s = s.get('state_dict', s); "
        f"save_file({{k: v.clone().contiguous() for k, v in s.items()}}, {str(made)!r})"
    )
    return f"; convert it with python -c {shlex.quote(code)}, then give --weights {shlex.quote(str(made))}"
