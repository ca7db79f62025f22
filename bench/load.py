"""Load on a running server, from k6 (the `bench` extra): closed loops of connections, and open loops of arrivals."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.environments import PeerError

K6 = Path(sys.executable).parent / "k6"
SPARE_S = 150  # beyond the stretch: k6 itself, and requests that are still on their way
OPEN_CONNECTIONS = 128


@dataclass(frozen=True)
class Load:
    """What one stretch of load measured; latencies as the client sees them, of all answers.

    Attributes:
        images_per_s: answered with 200.
        p50_ms: median latency.
        p99_ms: 99th percentile.
        failed: other answers than 200, or none.
        dropped: of an open loop, arrivals that found all connections busy, and were not sent.
    """

    images_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int = 0
    dropped: int = 0


def load_server(
    url: str,
    *,
    headers: Mapping[str, str],
    bodies: Path,
    duration_s: float,
    connections: int | None = None,
    rate: int | None = None,
) -> Load:
    """Sends bodies for a while: over some connections one after the other, or so many a second.

    Args:
        url: of the predictions.
        headers: of each request.
        bodies: a JSON file with a list of files.
        duration_s: of the stretch.
        connections: of a closed loop.
        rate: of an open loop, per second.

    Raises:
        PeerError: k6 measured nothing.
    """
    settings = {
        "URL": url,
        "HEADERS": json.dumps(dict(headers)),
        "BODIES": str(bodies),
        "DURATION": f"{duration_s}s",
        "VUS": str(connections or OPEN_CONNECTIONS),
        "RATE": str(rate or ""),
    }
    flags = [part for key, value in settings.items() for part in ("-e", f"{key}={value}")]
    script = Path(__file__).with_name("load.js")
    command = [str(K6), "run", "--quiet", "--no-usage-report", "--no-color", *flags, str(script)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + SPARE_S, check=False)
        return Load(**json.loads(result.stdout.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired as err:
        raise PeerError(f"the load did not end within {duration_s + SPARE_S:.0f} s") from err
    except (IndexError, ValueError, TypeError) as err:
        raise PeerError(f"k6 measured nothing: {result.stderr[-300:]}") from err
