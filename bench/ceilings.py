"""`python -m bench ceilings`: images a second from JPEG to labels, beside what each part of the way could do alone.

    frontend   TorchServe with a handler that answers a constant, with the same workers, batches and connections
    decode     the workers' decoding, on all their threads
    network    the workers' engine, on batches that lie decoded in memory; on a GPU the copy to it and back included
    served     the archive, through TorchServe

The lowest of the first three bounds the fourth. On a machine with a GPU the workers are on it; where decoding and
network have the same cores, or the same card, what both together could do is the bound.
"""

import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench import describe_device, describe_machine
from bench.bodies import write_bodies
from bench.environments import PeerError
from bench.load import load_server
from bench.one_part import READY
from bench.running import ROOT, Running, clean_environment
from bench.subject import list_images, make_run
from bench.torchserve import BATCHES, build_noop, run_ours, run_torchserve, unpack
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.errors import ImgclsError
from imgcls.training.start import choose_device
from model.errors import ModelError

WARM_UP_S = 10  # Java is still compiling what it runs
PARTS = ("decode", "network")


def ceilings(
    *,
    network: Annotated[str, typer.Option(help="timm/<name>, or efficientnet-lite0.")] = "timm/resnet50",
    images: Annotated[Path | None, typer.Option(help="Folder of JPEGs. [default: made ones]")] = None,
    engine: Annotated[str, typer.Option(help="That the workers take, such as eager-fp16 on a GPU.")] = "auto",
    decode: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where workers on a GPU decode.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Of TorchServe.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Most requests of a batch.")] = 8,
    delay_ms: Annotated[int, typer.Option(min=1, help="How long TorchServe waits for a batch to fill.")] = 1,
    connections: Annotated[int, typer.Option(min=1, help="Of the closed loop.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Of all four in turn.")] = 3,
    duration_s: Annotated[float, typer.Option("--duration", min=1, help="Seconds of each.")] = 8,
) -> None:
    """Measures the served path and its three ceilings, and prints a table in Markdown."""
    device = choose_device("auto")
    measured = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        scratch = Path(temporary)
        try:
            files, kind = list_images(images, scratch=scratch / "images")
            run = make_run(scratch / "run", network=network, images=files)
            options = ServingOptions(workers, batch_size, delay_ms, engine=engine, decode=decode)
            archive = build_archive(run, scratch / "store", options=options, engines=(engine,))
            config = BATCHES.format(workers=workers, batch_size=batch_size, delay_ms=delay_ms)
            noop, unpacked = build_noop(scratch, config=config), unpack(archive)
            bodies, image = write_bodies(files, "raw", folder=scratch / "bodies"), files[0].read_bytes()
            for number in range(rounds):
                folder = scratch / str(number)
                with run_torchserve(noop, tuned_config=True, one_thread=False, folder=folder, image=image) as running:
                    measured["frontend"].append(_load(running, bodies, connections, duration_s))
                for part in PARTS:
                    command = [part, str(unpacked), str(device), str(bodies), str(duration_s)]
                    measured[part].append(_run_part(command, workers=workers))
                with run_ours(archive, folder=folder / "served", image=image) as running:
                    measured["served"].append(_load(running, bodies, connections, duration_s))
        except (PeerError, ImgclsError, ModelError, ValueError) as err:
            sys.exit(f"error: {err}")
    decoder = decode if device.type == "cuda" else "cpu"
    print(f"{network}, engine {engine}, on {describe_device(device)}, decoding on {decoder}; {kind}")
    print(f"{workers} workers, batches of up to {batch_size} within {delay_ms} ms, {connections} connections; ", end="")
    print(f"{rounds} rounds of {duration_s:g} s, medians; {describe_machine()}\n")
    print(_as_markdown(measured))
    if device.type == "cpu" or decode == "gpu":
        both = 1 / sum(1 / statistics.median(measured[part]) for part in PARTS)
        share, shared = statistics.median(measured["served"]) / both, "cores" if device.type == "cpu" else "card"
        print(f"\ndecode and network on the same {shared}: {both:,.0f} images/s at most; served {share:.2f} of it")


def _load(running: Running, bodies: Path, connections: int, duration_s: float) -> float:
    """Returns images a second of a closed loop, after one that warms up."""
    for stretch_s in (WARM_UP_S, duration_s):
        load = load_server(
            running.url, headers=running.headers, bodies=bodies, duration_s=stretch_s, connections=connections
        )
        if load.failed:
            raise PeerError(f"{load.failed} requests failed")
    return load.images_per_s


def _run_part(command: list[str], *, workers: int) -> float:
    """Returns images a second of a part, in as many processes as there are workers, which begin together."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.one_part", *command],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(workers)
    ]
    try:
        ready = [child.stdout.readline().strip() if child.stdout else "" for child in children]
        for child in children:
            if child.stdin:
                child.stdin.close()
        texts = [child.stdout.read() if child.stdout else "" for child in children]
        if set(ready) != {READY} or "" in texts:
            raise PeerError(f"{command[0]} does not run by itself; see above")
        return sum(map(float, texts))
    finally:
        for child in children:
            child.kill()
            child.wait()


def _as_markdown(measured: Mapping[str, list[float]]) -> str:
    medians = {part: statistics.median(values) for part, values in measured.items()}
    lowest = min((part for part in medians if part != "served"), key=medians.__getitem__)
    rows = ["| | images/s, median | lowest | highest | served of it |", "|---|---:|---:|---:|---:|"]
    for part, values in measured.items():
        ratio = medians["served"] / medians[part]
        name = f"**{part}**" if part in {"served", lowest} else part
        rows.append(f"| {name} | {medians[part]:,.0f} | {min(values):,.0f} | {max(values):,.0f} | {ratio:.2f} |")
    return "\n".join(rows)
