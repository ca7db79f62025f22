"""Sends a test set's images to a running server and compares each answer with the offline evaluation's.

    python recipes/compare_served.py runs/cifar10 --test test --data cifar10.zip --count 2000

Reads RUN/predictions_TEST.csv, which `imgcls evaluate` wrote; exits 1 when a served label differs.
"""

import csv
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from imgcls.client import Client
from imgcls.data.images import Sample
from imgcls.data.sources import open_source
from imgcls.errors import DataError, ImgclsError
from imgcls.serving.access import inference_client
from imgcls.serving.state import DEFAULT_FOLDER, StateFolder


def compare(
    run: Annotated[Path, typer.Argument(help="Run directory that was evaluated.")],
    *,
    test: Annotated[str, typer.Option(help="Name of the evaluated test set.")] = "test",
    data: Annotated[str, typer.Option(help="The test set's source, as it was given to imgcls evaluate.")],
    count: Annotated[int, typer.Option(min=1, help="Images to send, evenly spread over the set.")] = 2000,
    connections: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    state: Annotated[Path, typer.Option(help="State folder of the server.")] = DEFAULT_FOLDER,
) -> None:
    """Compares served labels and probabilities with offline ones, and prints how many are equal."""
    offline = read_predictions(run / f"predictions_{test}.csv")
    source = open_source(data)
    samples = choose([s for s in source.splits[source.chosen].samples if s.name in offline], count=count)
    folder = StateFolder(state)
    with inference_client(folder.read_running(), folder) as client, ThreadPoolExecutor(connections) as pool:
        started = time.perf_counter()
        served = list(pool.map(lambda sample: ask(client, sample), samples))
        seconds = time.perf_counter() - started
    expected = [offline[sample.name] for sample in samples]
    different = [s.name for s, a, b in zip(samples, served, expected, strict=True) if a[0] != b[0]]
    largest = max(abs(a[1] - b[1]) for a, b in zip(served, expected, strict=True))
    right = sum(answer[0] == source.classes[s.label] for s, answer in zip(samples, served, strict=True))
    print(
        f"{len(samples)} images in {seconds:.1f} s ({len(samples) / seconds:.0f} images/s, {connections} connections): "
        f"{len(samples) - len(different)} served labels equal the offline ones, largest difference of a probability "
        f"{largest:.1e}; accuracy as served {right / len(samples):.4f}"
    )
    if different:
        raise DataError(f"{len(different)} served labels differ from the offline ones, first that of {different[0]}")


def read_predictions(path: Path) -> dict[str, tuple[str, float]]:
    """Reads predicted label and probability by image name."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; run imgcls evaluate first")
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"]: (row["predicted"], float(row["probability"])) for row in csv.DictReader(file)}


def choose(samples: list[Sample], *, count: int) -> list[Sample]:
    """Returns `count` samples, evenly spread, so that every class is among them."""
    if len(samples) < count:
        raise DataError(f"the test set has {len(samples)} evaluated images; expected at least {count}")
    return [samples[index * len(samples) // count] for index in range(count)]


def ask(client: Client, sample: Sample) -> tuple[str, float]:
    """Returns the served label and its probability."""
    best = client.predict(sample.read(), top_k=1).best
    return best.label, best.probability


if __name__ == "__main__":
    try:
        typer.run(compare)
    except ImgclsError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
