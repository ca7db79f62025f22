"""One process's share of the in-process limit: `python -m bench.inprocess RUN IMAGES.json SECONDS` prints JSON."""

import json
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from model.classifier import Classifier
from model.preprocess import pixels_from_bytes

WARM_UP = 5


def main(run: Path, images: Path, duration_s: float) -> None:
    """Classifies one image after the other on one thread for a while."""
    torch.set_num_threads(1)
    classifier = Classifier.load(run)
    contents = [Path(path).read_bytes() for path in json.loads(images.read_text())]
    latencies_ms: list[float] = []
    started = end = time.perf_counter()
    for number, data in enumerate(cycle(contents)):
        begin = time.perf_counter()
        if number == WARM_UP:
            started, latencies_ms = begin, []
        classifier.probabilities(pixels_from_bytes(data, classifier.spec)[None])
        end = time.perf_counter()
        latencies_ms.append((end - begin) * 1000)
        if number > WARM_UP and end - started > duration_s:
            break
    p50_ms, p99_ms = np.percentile(latencies_ms, [50, 99])
    print(json.dumps({"images_per_s": len(latencies_ms) / (end - started), "p50_ms": p50_ms, "p99_ms": p99_ms}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
