"""One process's share of a ceiling: `python -m bench.one_part PART ARCHIVE DEVICE IMAGES.json SECONDS`.

Does one part of a worker's job and nothing else, as the archive's model-config.yaml has it: decodes batch after batch,
or runs the engine on a batch that is decoded already. Prints a line once it is warm, begins when standard input ends,
and prints images a second.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import yaml

from handler.decoding import Decoder
from handler.errors import Failure
from handler.image_classifier import count_gpus
from handler.network import Pixels
from handler.options import Options
from handler.request import ImageRequest
from handler.settings import count_threads, read_settings
from handler.sources import RawImage
from imgcls.archive.pack import CONFIG_FILE
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.spec import SPEC_FILE, read_spec

WARM_UP = 5
READY = "ready"


def main(part: str, archive: Path, device: str, images: Path, duration_s: float) -> None:
    """Does the part for a while."""
    config = yaml.safe_load((archive / CONFIG_FILE).read_text(encoding="utf-8"))
    settings, spec, batch = read_settings(config), read_spec(archive / SPEC_FILE), int(config["batchSize"])
    threads = count_threads(settings, config, gpus=count_gpus(device))
    decoder = Decoder(spec, settings, device=device, threads=threads)
    contents = [Path(path).read_bytes() for path in json.loads(images.read_text())]
    endless = cycle([ImageRequest(RawImage(content), Options(top_k=settings.top_k)) for content in contents])

    def decode() -> list[Pixels | Failure]:
        return decoder.decode(list(islice(endless, batch)))

    step: Callable[[], object] = decode
    if part == "network":
        choice = choose_engine(
            archive, spec, wanted=settings.engine, device=device, threads=threads, batch_sizes=(1, batch)
        )
        classifier = Classifier(spec, choice.engine)
        pixels = np.stack([each for each in decode() if isinstance(each, np.ndarray)])  # (B, C, H, W)
        step = partial(classifier.probabilities, pixels)
    for _ in range(WARM_UP):
        step()
    print(READY, flush=True)
    sys.stdin.read()
    done, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < duration_s:
        step()
        done += batch
    print(done / (time.perf_counter() - began_s))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), float(sys.argv[5]))
