"""One process's share of the in-process limit: `python -m bench.inprocess IMAGES.json SECONDS BATCH` prints JSON.

Archive and engine come from the environment, as of a peer (`bench.peers.settings`).
"""

import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil

from bench.bodies import read_best
from bench.peers.pipeline import load_pipeline
from bench.peers.settings import Settings

WARM_UP = 5


def main(images: Path, duration_s: float, batch: int) -> None:
    """Classifies one batch after the other on one thread for a while."""
    pipeline = load_pipeline(Settings.from_environment())
    contents = [Path(path).read_bytes() for path in json.loads(images.read_text())]
    best = [read_best(json.dumps(pipeline.answer([contents[0]])[0]).encode())]
    ready_s = time.time()
    best += [read_best(json.dumps(pipeline.answer([data])[0]).encode()) for data in contents[1:20]]
    endless = cycle(contents)
    latencies_ms: list[float] = []
    started = time.perf_counter()
    number = 0
    while time.perf_counter() - started < duration_s or number <= WARM_UP:
        if number == WARM_UP:
            started, latencies_ms = time.perf_counter(), []
        begin = time.perf_counter()
        pipeline.answer(list(islice(endless, batch)))
        latencies_ms.append((time.perf_counter() - begin) * 1000)
        number += 1
    p50_ms, p99_ms = np.percentile(latencies_ms, [50, 99])
    result = {
        "images_per_s": batch * len(latencies_ms) / (time.perf_counter() - started),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "pss_mb": psutil.Process().memory_full_info().pss / 1e6,
        "ready_s": ready_s,
        "best": best,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
