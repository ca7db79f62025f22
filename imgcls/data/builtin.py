"""Sources with a name instead of a path: `digits`, and some of torchvision's data sets.

Their arrays are encoded as PNG when they are read, so that they enter as files do.
"""

import io
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.data.listing import Entry, Listing
from imgcls.errors import DataError, UsageError

TORCHVISION_ROOT = Path("data") / "torchvision"  # under the working directory
TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "FashionMNIST", "Flowers102", "MNIST")


def list_digits() -> Listing:
    """Lists scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, their 17 grey levels spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return _list_arrays("digits", pixels, [str(label) for label in digits.target], split=None)


def list_torchvision(name: str, *, download: bool, root: Path = TORCHVISION_ROOT) -> Listing:
    """Lists one of TORCHVISION_SETS with its own splits, downloading it to `root` where it is missing.

    Raises:
        UsageError: the name is not one of TORCHVISION_SETS.
        DataError: the data set is not there and cannot be downloaded.
    """
    if name not in TORCHVISION_SETS:
        raise UsageError(f"torchvision:{name} is unknown; accepted are torchvision: with {', '.join(TORCHVISION_SETS)}")
    try:
        loaded = _load_torchvision(name, download=download, root=root)
    except (urllib.error.URLError, RuntimeError, OSError) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        hint = "check the network" if download else "allow the download"
        raise DataError(f"torchvision:{name}: not usable in {root}: {reason}; {hint}, or use a local folder") from err
    return Listing(tuple(entry for split, data in loaded.items() for entry in _list_dataset(name, data, split=split)))


def _load_torchvision(name: str, *, download: bool, root: Path) -> dict[str, Any]:
    from torchvision import datasets

    build = partial(getattr(datasets, name), root, download=download)
    if name == "Flowers102":
        return {split: build(split=split) for split in ("train", "val", "test")}
    return {"train": build(train=True), "test": build(train=False)}


def _list_dataset(name: str, data: Any, *, split: str) -> tuple[Entry, ...]:
    if name == "Flowers102":  # files on disk; torchvision has no public names for them
        labels = [data.classes[label] for label in data._labels]
        pairs = zip(data._image_files, labels, strict=True)
        return tuple(Entry(f"{name}/{path.name}", label, split, path.read_bytes) for path, label in pairs)
    labels = [data.classes[int(label)] for label in data.targets]
    return _list_arrays(f"{name}/{split}", np.asarray(data.data), labels, split=split).entries


def _list_arrays(prefix: str, pixels: npt.NDArray[np.uint8], labels: list[str], *, split: str | None) -> Listing:
    pairs = enumerate(zip(pixels, labels, strict=True))
    digits = len(str(len(labels) - 1))
    return Listing(
        tuple(
            Entry(f"{prefix}/{number:0{digits}}", label, split, partial(_encode_png, array))
            for number, (array, label) in pairs
        )
    )


def _encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
