"""`python -m bench serve`: this project beside TorchServe as it comes, other servers, and no server at all.

In each round every server is started in turn, asked for some answers, warmed, loaded, and ended; what has been measured
is saved after each. Absolute figures of a shared machine mean little: read the ratios.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bench import describe_machine
from bench.environments import PeerError
from bench.measure import Bench, Measured, Plan
from bench.peers.settings import BATCH, DELAY_MS, WORKERS
from bench.plot import draw
from bench.registry import choose
from bench.report import as_markdown, save, summarise
from bench.subject import list_images, make_run

RESULTS = Path("bench/results")


def serve(
    *,
    network: Annotated[
        str, typer.Option(help="timm/<name>, or efficientnet-lite0 with real weights.")
    ] = "timm/resnet18",
    images: Annotated[Path | None, typer.Option(help="Folder of JPEGs. [default: made ones]")] = None,
    only: Annotated[str, typer.Option(help="Which rows: patterns such as ours*,stock,*-docs (see --list).")] = "*",
    without: Annotated[str, typer.Option(help="Which rows not, as --only.")] = "",
    connections: Annotated[str, typer.Option(help="Of the closed loops.")] = "1,16,64",
    rates: Annotated[str, typer.Option(help="Arrivals a second of the open loops.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Of all servers in turn.")] = 3,
    duration_s: Annotated[float, typer.Option("--duration", min=1, help="Seconds of each load.")] = 8,
    limit_minutes: Annotated[float, typer.Option(help="Start no server later than this. [default: no limit]")] = 0,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS,
    plot: Annotated[Path | None, typer.Option(help="PNG. [default: beside the results]")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Print the ids of the rows, and measure nothing.")] = False,
) -> None:
    """Measures servers on one network, and prints and saves a table and a plot."""
    try:
        subjects = choose(_words(only), without=_words(without))
        plan = Plan(tuple(map(int, _words(connections))), tuple(map(int, _words(rates))), duration_s)
    except ValueError as err:
        raise typer.BadParameter(str(err)) from err
    if list_only:
        print("\n".join(f"{subject.id:18} {subject.server}; pipeline: {subject.pipeline}" for subject in subjects))
        return
    signal.signal(signal.SIGTERM, _interrupt)
    target = out / f"serve-{network.removeprefix('timm/')}"
    began = time.monotonic()
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        scratch = Path(temporary)
        try:
            files, kind = list_images(images, scratch=scratch / "images")
            bench = Bench(make_run(scratch / "run", network=network, images=files), files, scratch=scratch)
        except (PeerError, ValueError) as err:
            sys.exit(f"error: {err}")
        settings = {
            "command": " ".join(sys.argv[1:]),
            "network": network,
            "images": kind,
            "rounds": rounds,
            "duration_s": duration_s,
            "workers": WORKERS,
            "machine": describe_machine(),
        }
        try:
            for number in range(1, rounds + 1):
                for place, subject in enumerate(subjects, 1):
                    if limit_minutes and time.monotonic() - began > limit_minutes * 60:
                        _tell("the time is over")
                        raise TimeoutError
                    _tell(f"round {number} of {rounds}, {place} of {len(subjects)}: {subject.id}", end=" … ")
                    measured.append(bench.measure(subject, plan, number=number))
                    _tell(_describe(measured[-1]))
                    save(target, summarise(subjects, measured), measured, title=_title(settings), settings=settings)
        except (KeyboardInterrupt, TimeoutError):
            _tell("stopped; what was measured is kept")
    rows = summarise(subjects, measured)
    save(target, rows, measured, title=_title(settings), settings=settings)
    print(as_markdown(rows, title=_title(settings)))
    key = 16 if 16 in plan.connections else plan.connections[-1]
    picture = plot or target.with_suffix(".png")
    if draw(rows, picture, load=f"closed {key}", title=_picture_title(settings, key)):
        _tell(f"results: {target}.md, {target}.json, {picture}")


def _title(settings: dict[str, object]) -> str:
    return (
        f"`python -m bench {settings['command']}`\n\n"
        f"{settings['network']}, {settings['images']}; {WORKERS} workers of one thread each, k6 on the same cores; our "
        f"pipeline in batches of up to {BATCH} within {DELAY_MS} ms where the server can gather them; "
        f"{settings['rounds']} rounds of {settings['duration_s']:g} s, medians; {settings['machine']}"
    )


def _picture_title(settings: dict[str, object], connections: int) -> str:
    return f"{settings['network']}, {connections} connections, {WORKERS} workers of one thread; {settings['machine']}"


def _describe(measured: Measured) -> str:
    if measured.error:
        return f"not measured: {measured.error}"
    loads = ", ".join(f"{name}: {load.images_per_s:.1f}/s" for name, load in measured.loads.items())
    return f"{loads}; {measured.pss_mb or 0:.0f} MB, up in {measured.start_s or 0:.1f} s"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _tell(text: str, *, end: str = "\n") -> None:
    print(text, file=sys.stderr, end=end, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
