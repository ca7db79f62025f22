"""`python -m bench train`: images a second of train.py's loop beside those of a bare PyTorch loop, in turns."""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from bench import describe_device, describe_machine
from bench.label_noise import NETWORK, write_tables
from imgcls.training.start import choose_device

EPOCHS = 3  # the first warms up
SGD = ("--lr", "0.05", "--nesterov", "--weight-decay", "5e-4")


def train(
    *,
    data: Annotated[str, typer.Option(help="Source with train and test splits, such as torchvision:CIFAR10.")],
    images: Annotated[int, typer.Option(min=2000, help="Of the training split that are used.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of each, in turns.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of each.")] = 2,
    batch_size: Annotated[int, typer.Option(min=2, help="Of each.")] = 128,
    parameters: Annotated[str, typer.Option(help="Of simple_cnn, as train.py's.")] = NETWORK[1],
    amp: Annotated[Literal["bf16"] | None, typer.Option(help="As train.py's.")] = None,
    device: Annotated[str, typer.Option(help="As train.py's, such as cuda.")] = "cpu",
) -> None:
    """Trains the same network on the same images with both, and prints a table in Markdown."""
    if images < 10 * batch_size:
        raise typer.BadParameter(f"{images} images make fewer than ten batches of {batch_size}; give more --images")
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="imgcls-loop-") as temporary:
        scratch = Path(temporary)
        write_tables(scratch, data, images=images, tests=100, rate=0.0, draws=np.random.default_rng(0))
        table = scratch / "right.csv"
        flags: tuple[object, ...] = ("--threads", threads, "--batch-size", batch_size, "--parameters", parameters)
        flags += ("--device", device, *(("--amp", amp) if amp else ()))
        for _ in range(rounds):
            ours.append(run_ours(scratch / "run", table, flags))
            bare.append(run_bare(scratch / "run", table))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    where = describe_device(choose_device(device))
    print(f"simple_cnn {parameters} in {amp or 'float32'} on {where}, batches of {batch_size}")
    print(f"{images:,} images of {Path(data).name}, {threads} threads, {rounds} rounds; {describe_machine()}\n")
    print("| loop | images/s, median | lowest | highest |\n|---|---:|---:|---:|")
    for name, values in (("train.py", ours), ("bare PyTorch", bare)):
        print(f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} |")
    print(f"\ntrain.py's is {statistics.median(ratios):.3f} of the bare one's ({min(ratios):.3f} to {max(ratios):.3f})")


def run_ours(run: Path, table: Path, flags: Sequence[object]) -> float:
    """Trains with train.py and returns the images a second of its loop, the first epoch left out."""
    words = ["train.py", "--data", table, "--out", run, "--overwrite", "--epochs", EPOCHS, *SGD, *flags]
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    with (run / "history.csv").open(newline="") as file:
        return statistics.median(float(row["images_per_s"]) for row in list(csv.DictReader(file))[1:])


def run_bare(run: Path, table: Path) -> float:
    """Trains as the run's configuration says with the bare loop, and returns its images a second."""
    command = [sys.executable, "-m", "bench.bare_loop", str(run), str(table)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
