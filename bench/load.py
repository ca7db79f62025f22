"""Load on a running server, from k6 (the `bench` extra), and the same work in this process's own children."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

K6 = Path(sys.executable).parent / "k6"


@dataclass(frozen=True)
class Load:
    """What one stretch of load measured; latencies as the client sees them."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def load_server(url: str, *, token: str, images: Path, connections: int, duration_s: int) -> Load:
    """Sends images over a number of connections, each waiting for its answer before it sends the next.

    Args:
        url: of the model's predictions.
        token: of the inference API.
        images: a JSON file with a list of image paths.
        connections: at a time.
        duration_s: of the stretch.
    """
    settings = {
        "URL": url,
        "TOKEN": token,
        "IMAGES": str(images),
        "VUS": str(connections),
        "DURATION": f"{duration_s}s",
    }
    flags = [part for key, value in settings.items() for part in ("-e", f"{key}={value}")]
    script = Path(__file__).with_name("load.js")
    command = [str(K6), "run", "--quiet", "--no-usage-report", "--no-color", *flags, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 120, check=True)
    return Load(**json.loads(result.stdout.strip().splitlines()[-1]))


def load_in_process(run: Path, *, images: Path, processes: int, duration_s: int) -> Load:
    """Runs the handler's pipeline, from bytes to probabilities, without a server: `processes` of one thread each."""
    command = [sys.executable, "-m", "bench.inprocess", str(run), str(images), str(duration_s)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    measured = [json.loads(child.communicate(timeout=duration_s + 120)[0]) for child in children]
    return Load(
        images_per_s=sum(each["images_per_s"] for each in measured),
        p50_ms=sum(each["p50_ms"] for each in measured) / processes,
        p99_ms=max(each["p99_ms"] for each in measured),
        failed=0,
    )
