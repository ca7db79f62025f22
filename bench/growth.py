"""`python -m bench growth`: how the time of an image grows with the batch and with the image's size, without a server.

One process, one thread; engines and sizes take turns in every round; medians.
"""

import io
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from bench import describe_machine
from bench.environments import PeerError
from bench.running import ONE_THREAD
from bench.subject import list_images, make_run
from bench.torchserve import build_ours, unpack
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.engines.records import read_records
from model.preprocess import pixels_from_bytes
from model.spec import SPEC_FILE, read_spec

BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (256, 375, 750, 1500, 3000, 6000)  # shorter ones, of 4 : 3
SIZED_IMAGES = 5


def growth(
    *,
    network: Annotated[str, typer.Option(help="timm/<name>, or efficientnet-lite0.")] = "timm/resnet18",
    images: Annotated[Path | None, typer.Option(help="Folder of JPEGs. [default: made ones]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of all engines and sizes in turn.")] = 5,
) -> None:
    """Measures milliseconds an image by engine and batch, and of decoding by size, and prints tables in Markdown."""
    os.environ |= ONE_THREAD
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        scratch = Path(temporary)
        try:
            files, kind = list_images(images, scratch=scratch / "images")
            archive = unpack(
                build_ours(make_run(scratch / "run", network=network, images=files), scratch, engine="auto")
            )
        except (PeerError, ValueError) as err:
            sys.exit(f"error: {err}")
        print(f"{network}, {kind}; one thread, {rounds} rounds, medians; {describe_machine()}\n")
        print(_measure_batches(archive, files, rounds=rounds))
        print(_measure_sizes(archive, files, rounds=rounds))


def _measure_batches(archive: Path, files: list[Path], *, rounds: int) -> str:
    spec = read_spec(archive / SPEC_FILE)
    pixels = np.stack([pixels_from_bytes(file.read_bytes(), spec) for file in files])
    pixels = np.resize(pixels, (max(BATCHES), *pixels.shape[1:]))  # (N, C, H, W), repeated
    names = [record.engine for record in read_records(archive) if record.is_accepted]
    engines = {
        name: Classifier(spec, choose_engine(archive, spec, wanted=name, threads=1, batch_sizes=BATCHES).engine)
        for name in names
    }
    spent = defaultdict[tuple[str, int], list[float]](list)
    for _ in range(rounds):
        for name, classifier in engines.items():
            for size in BATCHES:
                began = time.perf_counter()
                classifier.probabilities(pixels[:size])
                spent[name, size].append((time.perf_counter() - began) / size * 1000)
    rows = [f"| ms an image, in a batch of | {' | '.join(map(str, BATCHES))} |", "|---" * (len(BATCHES) + 1) + "|"]
    for name in engines:
        rows.append(f"| {name} | {' | '.join(f'{statistics.median(spent[name, size]):.1f}' for size in BATCHES)} |")
    return "\n".join(rows) + "\n"


def _measure_sizes(archive: Path, files: list[Path], *, rounds: int) -> str:
    spec = read_spec(archive / SPEC_FILE)
    sized = {side: [_resize(file, side) for file in files[:SIZED_IMAGES]] for side in SIDES}
    spent = defaultdict[tuple[int, bool], list[float]](list)
    for _ in range(rounds):
        for side, contents in sized.items():
            for exact in (False, True):
                for data in contents:
                    began = time.perf_counter()
                    pixels_from_bytes(data, spec, exact=exact, max_pixels=100_000_000)
                    spent[side, exact].append((time.perf_counter() - began) * 1000)
    rows = [f"| ms to decode and resize, shorter side | {' | '.join(f'{side:,}' for side in SIDES)} |"]
    rows += ["|---" * (len(SIDES) + 1) + "|"]
    rows += [f"| kB | {' | '.join(f'{np.mean([len(data) for data in sized[side]]) / 1000:,.0f}' for side in SIDES)} |"]
    for exact, name in ((False, "as served"), (True, "exact")):
        rows.append(f"| {name} | {' | '.join(f'{statistics.median(spent[side, exact]):.1f}' for side in SIDES)} |")
    return "\n".join(rows)


def _resize(file: Path, side: int) -> bytes:
    image = Image.open(file).convert("RGB").resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
