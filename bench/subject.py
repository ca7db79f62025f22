"""What is measured: a network with random weights as a run directory, and photographs to send."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imgcls.training.run import write_weights
from model.labels import dump_labels
from model.network import build_network
from model.spec import ModelSpec, dump_spec

MADE_IMAGES = 50


def make_run(folder: Path, *, network: str) -> Path:
    """Writes a run directory: 1000 classes, 224 px; random weights cost as much as trained ones."""
    spec = ModelSpec(
        network=network,
        size=224,
        resize=256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=tuple(f"class {index:03}" for index in range(1000)),
    )
    return _write_run(folder, spec)


def make_large_run(folder: Path, *, size_bytes: int) -> Path:
    """Writes a run directory whose weights have about this size, nearly all of it in one linear layer."""
    features = 16 * 16 * 16
    spec = ModelSpec(
        parameters={"widths": [16], "hidden": max(1, size_bytes // (4 * features))},
        size=32,
        resize=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        classes=("even", "odd"),
    )
    return _write_run(folder, spec)


def _write_run(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
    (folder / "index_to_name.json").write_text(dump_labels(spec.classes), encoding="utf-8")
    write_weights(folder, build_network(spec))
    return folder


def list_images(folder: Path | None, *, scratch: Path) -> tuple[Path, str]:
    """Returns a JSON file that lists the images, and a word on what they are."""
    if folder is not None:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in {".jpg", ".jpeg"})
        kind = f"{len(files)} photographs"
    else:
        files = [make_photograph(scratch / f"{number}.jpg", seed=number) for number in range(MADE_IMAGES)]
        kind = f"{len(files)} made JPEGs of 500 x 375"
    listing = scratch / "images.json"
    listing.write_text(json.dumps([str(file.absolute()) for file in files]), encoding="utf-8")
    return listing, kind


def make_photograph(path: Path, *, seed: int) -> Path:
    """Writes a JPEG of some 100 kB with a photograph's statistics: noise whose amplitude falls with its frequency."""
    generator = np.random.default_rng(seed)
    height, width = 375, 500
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1
    spectrum = np.fft.fft2(generator.standard_normal((3, height, width))) / frequencies**0.9
    picture = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    picture = 128 + 50 * (picture - picture.mean()) / picture.std()
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())
    return path
