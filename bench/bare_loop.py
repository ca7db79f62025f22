"""`python -m bench.bare_loop RUN DATA`: what a training loop costs that does nothing but train.

The run's network, images, batches, precision (float32 or bf16) and device, and the optimiser of `bench.train_loop`, in
as few lines as it takes: no checkpoint, filter, log, validation, schedule or signal. Prints images a second of one
epoch after a warm-up.
"""

import sys
import time
from pathlib import Path

import torch
import yaml
from torch import nn

from imgcls.data.pixels import load_pixels
from imgcls.data.sources import open_source
from imgcls.training.config import TrainConfig
from imgcls.training.start import choose_device
from model.network import build_network
from model.normalise import Normalise
from model.spec import read_spec

WARM_UP = 5


def main(run: Path, data: str) -> None:
    """Trains one epoch."""
    config = TrainConfig(**yaml.safe_load((run / "train_config.yaml").read_text()))
    torch.set_num_threads(config.threads or 1)
    torch.manual_seed(0)
    device, spec = choose_device(config.device), read_spec(run / "spec.yaml")
    split = load_pixels(open_source(data).splits["train"], spec, progress=False)
    network = build_network(spec).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    normalise = Normalise(spec).to(device)  # as fast as it gets: one pass
    size = config.batch_size
    batches = [part for part in torch.split(torch.randperm(len(split)), size) if len(part) == size]
    for number, at in enumerate(batches):
        if number == WARM_UP:
            began_s = read_clock(device)
        images = normalise(split.pixels[at].to(device)).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp == "bf16"):
            loss = criterion(network(images), split.labels[at].to(device))
        loss.backward()
        optimiser.step()
    print((len(batches) - WARM_UP) * size / (read_clock(device) - began_s))


def read_clock(device: torch.device) -> float:
    """Returns seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
