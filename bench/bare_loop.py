"""`python -m bench.bare_loop RUN DATA THREADS`: what a training loop costs that does nothing but train.

The same network, images and optimiser as the run's, in as few lines as it takes: no checkpoint, filter, log,
validation, schedule or signal. Prints images a second of one epoch after a warm-up.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from imgcls.data.pixels import load_pixels
from imgcls.data.sources import open_source
from model.network import build_network
from model.normalise import Normalise
from model.spec import read_spec

BATCH = 128
WARM_UP = 5


def main(run: Path, data: str, threads: int) -> None:
    """Trains one epoch."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = read_spec(run / "spec.yaml")
    split = load_pixels(open_source(data).splits["train"], spec, progress=False)
    network = build_network(spec).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    normalise = Normalise(spec)  # as fast as it gets: one pass
    batches = [part for part in torch.split(torch.randperm(len(split)), BATCH) if len(part) == BATCH]
    for number, at in enumerate(batches):
        if number == WARM_UP:
            began_s = time.perf_counter()
        images = normalise(split.pixels[at]).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        criterion(network(images), split.labels[at]).backward()
        optimiser.step()
    print((len(batches) - WARM_UP) * BATCH / (time.perf_counter() - began_s))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
