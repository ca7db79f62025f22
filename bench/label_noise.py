"""`python -m bench noise`: what the backward filter gains on wrong labels, which it names, and what a NaN costs.

Takes a part of a data set, gives a part of its training labels a wrong class through a CSV source (of the validation
images drawn from them too, as a user's would be), and trains the same recipe without and with the filter; the labels of
the test split stay right. Then plants NaN in a part of the batches of a run with right labels, beside the same without.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench import describe_machine
from imgcls.data.images import ImageSet
from imgcls.data.sources import open_source

RECIPE = (
    "--batch-size",
    "128",
    "--lr",
    "0.05",
    "--nesterov",
    "--weight-decay",
    "5e-4",
    "--schedule",
    "one-cycle",
    "--flip",
)
NETWORK = ("--parameters", '{"widths": [32, 64, 128], "hidden": 256, "norm": "batch"}')


@dataclass(frozen=True)
class Result:
    """One run: accuracy on the test split, precision and recall of the files that the log names, and its time."""

    accuracy: float
    precision: float | None
    recall: float | None
    seconds: float


def noise(
    *,
    data: Annotated[str, typer.Option(help="Source with train and test splits, such as torchvision:CIFAR10.")],
    images: Annotated[int, typer.Option(min=100, help="Of the training split that are used.")] = 10_000,
    tests: Annotated[int, typer.Option(min=100, help="Of the test split that are used.")] = 5_000,
    rate: Annotated[
        float, typer.Option(min=0, max=0.9, help="Part of the training labels that is flipped; 0: NaN only.")
    ] = 0.3,
    nan: Annotated[
        float, typer.Option(min=0, max=0.09, help="Part of the batches that gets a NaN; 0: wrong labels only.")
    ] = 0.01,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Of each run.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of all runs.")] = 0,
    auto: Annotated[bool, typer.Option(help="Also measure --noise-rate auto.")] = False,
    amp: Annotated[str | None, typer.Option(help="As train.py's, such as bf16.")] = None,
) -> None:
    """Trains with wrong labels and with NaN, with and without the filter, and prints a table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="imgcls-noise-") as temporary:
        scratch, draws = Path(temporary), np.random.default_rng(seed)
        flipped = write_tables(scratch, data, images=images, tests=tests, rate=rate, draws=draws)
        common: tuple[object, ...] = (*RECIPE, *NETWORK, "--epochs", epochs, "--threads", threads, "--seed", seed)
        common += ("--amp", amp) if amp else ()
        rates: dict[str, tuple[object, ...]] = {}
        if rate:
            rates = {
                f"{rate:.0%} wrong, no filter": (),
                f"{rate:.0%} wrong, --noise-rate {rate}": ("--noise-rate", rate),
            }
        if rate and auto:
            rates[f"{rate:.0%} wrong, --noise-rate auto"] = ("--noise-rate", "auto")
        results = {
            name: measure(["train.py"], scratch / "wrong.csv", scratch, (*common, *flags), seed=seed, flipped=flipped)
            for name, flags in rates.items()
        }
        if nan:
            results["right labels"] = measure(["train.py"], scratch / "right.csv", scratch, common, seed=seed)
            planted = f"right labels, NaN in {nan:.0%} of the batches"
            results[planted] = measure(
                ["-m", "bench.plant_nan", str(nan)], scratch / "right.csv", scratch, common, seed=seed
            )
    print(
        f"{images:,} training and {tests:,} test images of {Path(data).name}; {epochs} epochs, "
        f"--amp {amp or 'off'}; {describe_machine()}\n"
    )
    print(as_table(results))


def write_tables(
    folder: Path, data: str, *, images: int, tests: int, rate: float, draws: np.random.Generator
) -> set[str]:
    """Writes the images and two tables, right.csv and wrong.csv; returns the files whose label wrong.csv flips."""
    source = open_source(data)
    for name, count in (("train", images), ("test", tests)):
        if count > (most := len(source.splits[name])):
            sys.exit(f"error: {count:,} images of the {name} split of {data} are asked for; it has {most:,}")
    rows = [
        *_copy(source.splits["train"], folder, count=images, draws=draws),
        *_copy(source.splits["test"], folder, count=tests, draws=draws),
    ]
    flipped = set()
    wrong = []
    for path, label, split in rows:
        if split == "train" and draws.random() < rate:
            flipped.add(path)
            label = str(draws.choice([name for name in source.classes if name != label]))
        wrong.append((path, label, split))
    for name, table in (("right.csv", rows), ("wrong.csv", wrong)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *table])
    return flipped


def measure(
    program: Sequence[str],
    table: Path,
    folder: Path,
    flags: Sequence[object],
    *,
    seed: int,
    flipped: set[str] | None = None,
) -> Result:
    """Trains a run, evaluates its weights on the test split and compares what its log names with what was flipped."""
    run = folder / "run"
    words = [*program, "--data", table, "--out", run, "--overwrite", *flags]
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    command: list[str | Path] = [sys.executable, "-m", "imgcls.cli.main", "evaluate", run, "--test", f"test={table}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    accuracy = json.loads((run / "metrics.json").read_text())["test_sets"]["test"]["accuracy"]
    print(f"test accuracy {accuracy:.4f} after {seconds:.0f} s: {' '.join(map(str, flags))}", file=sys.stderr)
    if not (named := read_dropped(run / "rejections.csv")) or flipped is None:
        return Result(accuracy, None, None, seconds)
    trained = flipped & read_trained(table, seed=seed)
    return Result(accuracy, len(named & trained) / len(named), len(named & trained) / len(trained), seconds)


def read_dropped(path: Path) -> set[str]:
    """Returns the files that a log leaves dropped at its end."""
    with path.open(newline="") as file:
        last = {row["file"]: row["event"] for row in csv.DictReader(file) if row["event"] in {"drop", "return"}}
    return {name for name, event in last.items() if event == "drop"}


def read_trained(table: Path, *, seed: int) -> set[str]:
    """Returns the files that a run of train.py trains on, its validation images left out."""
    return {sample.name for sample in open_source(str(table), seed=seed).splits["train"].samples}


def as_table(results: dict[str, Result]) -> str:
    """Returns the results as a table in Markdown."""
    lines = ["| run | test accuracy | named: precision | recall | seconds |", "|---|---:|---:|---:|---:|"]
    for name, each in results.items():
        named = [f"{value:.1%}" if value is not None else "" for value in (each.precision, each.recall)]
        lines.append(f"| {name} | {each.accuracy:.2%} | {named[0]} | {named[1]} | {each.seconds:.0f} |")
    return "\n".join(lines)


def _copy(split: ImageSet, folder: Path, *, count: int, draws: np.random.Generator) -> list[tuple[str, str, str]]:
    chosen = draws.permutation(len(split))[:count]
    rows = []
    (folder / split.name).mkdir()
    for number in chosen:
        sample = split.samples[number]
        path = f"{split.name}/{number:06}{Path(sample.name).suffix or '.png'}"
        (folder / path).write_bytes(sample.read())
        rows.append((path, split.classes[sample.label], split.name))
    return rows
