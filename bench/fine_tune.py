"""`python -m bench fine-tune`: what ImageNet weights are worth, against random ones, in the same training time."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import save_file

from bench import describe_machine
from bench.environments import PeerError
from bench.label_noise import measure
from bench.lite0 import load_lite0, make_lite0_spec
from model.network import build_network

NETWORK = "timm/tf_efficientnet_lite0"
RECIPE = (
    *("--network", NETWORK, "--interpolation", "bicubic", "--batch-size", 64, "--flip"),
    *("--optimiser", "adamw", "--weight-decay", 0.05, "--schedule", "cosine"),
)
RATES = {"ImageNet weights": 1e-3, "random weights": 3e-3}  # a common choice for each; not searched for


def fine_tune(
    *,
    data: Annotated[str, typer.Option(help="Source with train and test splits, such as torchvision:CIFAR10.")],
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 2,
    size: Annotated[int, typer.Option(min=32, help="Side in pixels that images are resized to.")] = 64,
    seed: Annotated[int, typer.Option(help="Of both runs.")] = 0,
    amp: Annotated[str | None, typer.Option(help="As train.py's, such as bf16.")] = None,
) -> None:
    """Trains EfficientNet-Lite0 twice, with the same recipe, and prints a table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="imgcls-fine-tune-") as temporary:
        scratch = Path(temporary)
        weights = scratch / "lite0.safetensors"
        try:
            network = load_lite0(build_network(make_lite0_spec(tuple(map(str, range(1000))))))
        except PeerError as err:
            sys.exit(f"error: {err}")
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
        common: tuple[object, ...] = (*RECIPE, "--epochs", epochs, "--size", size, "--seed", seed)
        common += ("--amp", amp) if amp else ()
        starts = {"ImageNet weights": ("--weights", weights), "random weights": ()}
        print(f"{epochs} epochs of {Path(data).name} at {size} x {size}; --amp {amp or 'off'}; {describe_machine()}\n")
        print("| EfficientNet-Lite0 from | learning rate | test accuracy | seconds |\n|---|---:|---:|---:|")
        for name, flags in starts.items():
            rate = RATES[name]
            result = measure(["train.py"], Path(data), scratch, (*common, "--lr", rate, *flags), seed=seed)
            print(f"| {name} | {rate:g} | {result.accuracy:.2%} | {result.seconds:.0f} |", flush=True)
