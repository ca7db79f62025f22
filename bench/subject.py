"""What is measured: a network as a run directory, with random weights or real ones, and photographs to send."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.lite0 import LITE0, load_lite0, make_lite0_spec
from imgcls.training.run import write_weights
from imgcls.tuning.images import make_photograph
from model.golden import GOLDEN_FOLDER
from model.labels import dump_labels
from model.network import build_network
from model.normalise import Normalise
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec, dump_spec

MADE_IMAGES = 50
LIMIT = 50  # k6 holds the images once a connection
SETTLED_IMAGES = 32
GOLDEN_IMAGES = 16


def make_run(folder: Path, *, network: str, images: Sequence[Path]) -> Path:
    """Writes a run directory: 1000 classes, 224 px.

    Random weights cost as much as trained ones, once their batch norms have seen images: without that the answers do
    not depend on the image, and nothing could be compared. efficientnet-lite0 has the weights of `bench.lite0`.
    """
    classes = tuple(f"class {index:03}" for index in range(1000))
    if network == LITE0:
        spec = make_lite0_spec(classes)
        _write_run(folder, spec, load_lite0(build_network(spec)))
    else:
        spec = ModelSpec(
            network=network,
            size=224,
            resize=256,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            classes=classes,
        )
        torch.manual_seed(0)
        _write_run(folder, spec, _settle(build_network(spec), spec, images))
    golden = folder / GOLDEN_FOLDER
    golden.mkdir()
    for image in images[:GOLDEN_IMAGES]:  # the int8 engine's ranges come from these, as there is no training data
        shutil.copyfile(image, golden / f"{image.stem}.jpg")
    return folder


def _settle(network: nn.Module, spec: ModelSpec, images: Sequence[Path]) -> nn.Module:
    pixels = np.stack([pixels_from_bytes(image.read_bytes(), spec) for image in images[:SETTLED_IMAGES]])
    batch = Normalise(spec)(torch.from_numpy(pixels))  # (B, C, H, W)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of this batch
            module.reset_running_stats()
            nn.init.ones_(module.weight)  # timm starts the last of each block at zero, which leaves the block out
    with torch.inference_mode():
        network.train()(batch)
    return network.eval()


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
    torch.manual_seed(0)
    return _write_run(folder, spec, build_network(spec))


def _write_run(folder: Path, spec: ModelSpec, network: nn.Module) -> Path:
    folder.mkdir()
    (folder / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
    (folder / "index_to_name.json").write_text(dump_labels(spec.classes), encoding="utf-8")
    write_weights(folder, network)
    return folder


def list_images(folder: Path | None, *, scratch: Path, limit: int = LIMIT) -> tuple[list[Path], str]:
    """Returns JPEGs, evenly chosen where there are more than the limit, and a word on what they are.

    Raises:
        ValueError: the folder has none.
    """
    if folder is None:
        scratch.mkdir(exist_ok=True)
        files = [make_photograph(scratch / f"{number}.jpg", seed=number) for number in range(MADE_IMAGES)]
        return files, f"{len(files)} made JPEGs of 500 x 375"
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise ValueError(f"{folder}: holds no JPEG; give a folder with .jpg or .jpeg files, or leave --images out")
    files = found[:: -(-len(found) // limit)]
    size_kb = sum(file.stat().st_size for file in files) / len(files) / 1000
    return files, f"{len(files)} photographs of {size_kb:.0f} kB on average"
