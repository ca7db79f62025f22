"""`python -m bench serve`: what serving through TorchServe costs over running the same pipeline in process.

Interleaved rounds on one machine; the table shows medians, and ratios within the run. Absolute figures of a shared
machine mean little.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench import describe_machine
from bench.load import Load, load_in_process, load_server
from bench.subject import list_images, make_run
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.serving.access import inference_token
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import StateFolder

REFERENCE = "in process, 1 thread"


def serve(
    *,
    network: Annotated[str, typer.Option(help="simple_cnn or timm/<name>.")] = "timm/resnet18",
    images: Annotated[Path | None, typer.Option(help="Folder of JPEGs. [default: made ones]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of all measurements in turn.")] = 3,
    duration_s: Annotated[int, typer.Option("--duration", min=1, help="Seconds of each measurement.")] = 10,
) -> None:
    """Measures one network, and prints a table in Markdown."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        scratch = Path(temporary)
        run = make_run(scratch / "run", network=network)
        listing, kind = list_images(images, scratch=scratch)
        archive = build_archive(run, scratch, options=ServingOptions(workers=cores))
        state = StateFolder(scratch / "state")
        server = start(ServeOptions(archive, config=Path("config.properties"), state=state.path, port=0))
        try:
            token = inference_token(server, state) or ""
            url = f"{server.inference_url}/predictions/{server.model}"
            measured: dict[str, list[Load]] = {}
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
                for processes, name in ((1, REFERENCE), (cores, f"in process, {cores} processes")):
                    load = load_in_process(run, images=listing, processes=processes, duration_s=duration_s)
                    measured.setdefault(name, []).append(load)
                for connections in (1, 16):
                    load = load_server(url, token=token, images=listing, connections=connections, duration_s=duration_s)
                    measured.setdefault(f"TorchServe, {cores} workers, {connections} connections", []).append(load)
        finally:
            stop(state)
    print(f"{network}, {kind}; {rounds} rounds of {duration_s} s; {describe_machine()}\n")
    print(as_table(measured))


def as_table(measured: dict[str, list[Load]]) -> str:
    """Returns medians over the rounds as a Markdown table, with ratios to the first row."""
    reference = _median(measured[REFERENCE])
    rows = ["| | images/s | ratio | p50 ms | ratio | p99 ms | failed |", "|---|---|---|---|---|---|---|"]
    for name, loads in measured.items():
        load = _median(loads)
        rows.append(
            f"| {name} | {load.images_per_s:.1f} | {load.images_per_s / reference.images_per_s:.2f} "
            f"| {load.p50_ms:.1f} | {load.p50_ms / reference.p50_ms:.2f} | {load.p99_ms:.1f} | {load.failed} |"
        )
    return "\n".join(rows)


def _median(loads: list[Load]) -> Load:
    return Load(
        images_per_s=statistics.median(load.images_per_s for load in loads),
        p50_ms=statistics.median(load.p50_ms for load in loads),
        p99_ms=statistics.median(load.p99_ms for load in loads),
        failed=sum(load.failed for load in loads),
    )
