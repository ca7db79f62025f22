"""`python -m bench archive`: what building and verifying a large archive costs over hashing and copying its weights.

The yardstick is `sha256sum` of the weights plus one `cp` of them, as an administrator would do by hand. Interleaved
rounds; medians, and ratios within the run.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from bench import describe_machine
from bench.subject import make_large_run

IMGCLS = str(Path(sys.executable).with_name("imgcls"))
POLL_S = 0.2


@dataclass(frozen=True)
class Cost:
    """One command: its time, and the largest resident memory of itself and of the processes that it started.

    `children_own_mb` leaves out what is mapped from files, as weights are: the system can take that back at any time.
    """

    seconds: float
    own_mb: float
    children_mb: float
    children_own_mb: float


def archive(
    *,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the weights.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Of all measurements in turn.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where to write; needs four times the size.")] = None,
) -> None:
    """Measures building and verifying an archive of the given size, and prints a table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-", dir=folder) as temporary:
        scratch = Path(temporary)
        run = make_large_run(scratch / "run", size_bytes=megabytes * 1_000_000)
        weights, mar = str(run / "weights.safetensors"), str(scratch / "store" / "imgcls.mar")
        commands = {
            "sha256sum": ["sha256sum", weights],
            "cp": ["cp", weights, str(scratch / "copy")],
            "of a build: link, hash, pack, publish": [
                sys.executable,
                "-m",
                "bench.packing",
                str(run),
                str(scratch / "s"),
            ],
            "imgcls archive build": [IMGCLS, "archive", "build", str(run), "--store", str(scratch / "store")],
            "imgcls archive build, the first on a machine": [
                *("env", "XDG_CACHE_HOME=/dev/null"),
                *(IMGCLS, "archive", "build", str(run), "--store", str(scratch / "store")),
            ],
            "imgcls archive verify": [IMGCLS, "archive", "verify", mar],
            "imgcls archive scan, which judges all of it anew": [IMGCLS, "archive", "scan", mar],
        }
        measured: dict[str, list[Cost]] = {name: [] for name in commands}
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            order = list(commands.items())
            for name, command in order if number % 2 == 0 else reversed(order):  # none always comes after the same
                measured[name].append(measure(command))
    print(f"{megabytes:,} MB of weights; {rounds} rounds; {describe_machine()}\n")
    print(as_table(measured))


def measure(command: list[str]) -> Cost:
    """Runs a command to its end."""
    own, children, children_own = [0.0], [0.0], [0.0]
    os.sync()  # so that it does not wait for what the command before it has left to be written
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=_watch, args=(process, own, children, children_own))
    watcher.start()
    status = process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    if status != 0:
        sys.exit(f"error: {' '.join(command)} ended with {status}; nothing was measured")
    return Cost(seconds, max(own), max(children), max(children_own))


def _watch(process: psutil.Popen, own: list[float], children: list[float], children_own: list[float]) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may end in between
            own.append(process.memory_info().rss / 1e6)
            infos = [child.memory_info() for child in process.children(recursive=True)]
            children += [info.rss / 1e6 for info in infos]
            children_own += [(info.rss - info.shared) / 1e6 for info in infos]
        time.sleep(POLL_S)


def as_table(measured: dict[str, list[Cost]]) -> str:
    """Returns medians over the rounds as a Markdown table; the ratio is to sha256sum plus cp of the same round."""
    by_hand = [a.seconds + b.seconds for a, b in zip(measured["sha256sum"], measured["cp"], strict=True)]
    heads = "| | seconds | ratio to sha256sum + cp | own memory MB | largest child MB | without mapped files |"
    rows = [heads, "|---|---|---|---|---|---|"]
    for name, costs in measured.items():
        ratio = statistics.median(cost.seconds / unit for cost, unit in zip(costs, by_hand, strict=True))
        seconds = statistics.median(cost.seconds for cost in costs)
        sizes = [max(getattr(cost, field) for cost in costs) for field in ("own_mb", "children_mb", "children_own_mb")]
        rows.append(f"| {name} | {seconds:.2f} | {ratio:.2f} | {' | '.join(f'{size:.0f}' for size in sizes)} |")
    return "\n".join(rows)
