"""From a split to uint8 pixels, through the model's own preprocessing: all in memory, or on demand.

Threads decode large files, one alone decodes small ones: Pillow lets go of the interpreter's lock only inside a codec.
Measured on 2 cores: 10,000 CIFAR-10 JPEGs take 1.4 s in one thread and 2.6 s in two; 200 photographs of 110 kB take
0.77 s and 0.33 s. Processes are not used: each would import torch anew.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imgcls.data.images import ImageSet, Perturb, Problem, Sample
from imgcls.data.progress import show_progress
from imgcls.errors import DataError
from model.bands import Bands
from model.errors import ImageError
from model.preprocess import decode_whole, pixels_from_bytes, resample, to_pixels
from model.spec import ModelSpec

Crop = Callable[[Image.Image | Bands], tuple[float, float, float, float]]  # left, top, right and bottom
_Decoded = npt.NDArray[np.uint8] | Problem

_SMALL_FILE_BYTES = 16_384
_NAMED = 3  # how many files an error names


@dataclass(frozen=True)
class PixelSet:
    """One split in memory.

    Attributes:
        name: "train", "val" or "test".
        classes: what `labels` are indices into.
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,).
        names: the samples' names, N of them.
        problems: the samples that could not be decoded and are not among the N.
    """

    name: str
    classes: tuple[str, ...]
    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.names)


def estimate_bytes(images: ImageSet, spec: ModelSpec) -> int:
    """Returns the memory that `load_pixels` will hold, in bytes."""
    return len(images) * spec.channels * spec.size * spec.size


def load_pixels(
    images: ImageSet,
    spec: ModelSpec,
    *,
    perturb: Perturb | None = None,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> PixelSet:
    """Decodes a whole split into memory.

    Args:
        images: the split.
        spec: whose preprocessing to apply.
        perturb: changes each decoded image; its seed depends on the sample's name only.
        strict: raise where a file cannot be decoded, instead of leaving it out.
        workers: threads; None chooses by the size of the files.
        progress: show a bar on a terminal.

    Raises:
        DataError: nothing could be decoded, or, where strict, something could not.
    """
    pixels = np.empty((len(images), spec.channels, spec.size, spec.size), dtype=np.uint8)
    problems: list[Problem] = []
    kept: list[int] = []
    for position, decoded in enumerate(_decode_all(images, spec, perturb=perturb, workers=workers, progress=progress)):
        if isinstance(decoded, Problem):
            problems.append(decoded)
        else:
            pixels[position] = decoded
            kept.append(position)
    _refuse(images, problems, strict=strict)
    samples = [images.samples[position] for position in kept]
    return PixelSet(
        name=images.name,
        classes=images.classes,
        pixels=torch.from_numpy(pixels[kept] if problems else pixels),
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        names=tuple(sample.name for sample in samples),
        problems=tuple(problems),
    )


def drop_unreadable(
    images: ImageSet, spec: ModelSpec, *, workers: int | None = None, progress: bool = True
) -> tuple[ImageSet, tuple[Problem, ...]]:
    """Decodes a split once without keeping it, and returns it without the files that cannot be decoded.

    For splits that `PixelDataset` will read on demand, where a bad file would end an epoch.

    Raises:
        DataError: nothing could be decoded.
    """
    results = list(_check_all(images, spec, workers=workers, progress=progress))
    problems = [result for result in results if result is not None]
    _refuse(images, problems, strict=False)
    good = tuple(sample for sample, result in zip(images.samples, results, strict=True) if result is None)
    return replace(images, samples=good), tuple(problems)


class PixelDataset(Dataset[tuple[Tensor, int]]):
    """A split that does not fit into memory: item i is (uint8 (C, H, W), label), decoded when it is asked for.

    Raises DataError where a file cannot be decoded; `drop_unreadable` finds such files beforehand.
    """

    def __init__(self, images: ImageSet, spec: ModelSpec, *, perturb: Perturb | None = None) -> None:
        self.images = images
        self.spec = spec
        self.perturb = perturb

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decodes one image."""
        return self.read(index)

    def read(self, index: int, *, crop: Crop | None = None) -> tuple[Tensor, int]:
        """Decodes one image; of a crop, that part of it is stretched to the network's input."""
        sample = self.images.samples[index]
        decoded = _decode(sample, self.spec, perturb=self.perturb, crop=crop)
        if isinstance(decoded, Problem):
            raise DataError(
                f"{decoded.name}: {decoded.reason}; it could be read before: put it back, then go on with --resume"
            )
        return torch.from_numpy(decoded), sample.label


def _check_all(images: ImageSet, spec: ModelSpec, *, workers: int | None, progress: bool) -> Iterator[Problem | None]:
    for decoded in _decode_all(images, spec, perturb=None, workers=workers, progress=progress):
        yield decoded if isinstance(decoded, Problem) else None


def _decode_all(
    images: ImageSet, spec: ModelSpec, *, perturb: Perturb | None, workers: int | None, progress: bool
) -> Iterator[_Decoded]:
    """Yields each sample's pixels or problem, in order."""

    def decode(sample: Sample) -> _Decoded:
        return _decode(sample, spec, perturb=perturb)

    threads = workers or _choose_workers(images.samples)
    decoded = map(decode, images.samples) if threads == 1 else _map_threads(decode, images.samples, threads=threads)
    return show_progress(decoded, f"decoding {images.name}", total=len(images), show=progress)


def _map_threads(
    decode: Callable[[Sample], _Decoded], samples: Sequence[Sample], *, threads: int
) -> Iterable[_Decoded]:
    """Maps in order, a bounded stretch at a time, so that decoded images never pile up."""
    stretch = threads * 64
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), stretch):
            yield from pool.map(decode, samples[start : start + stretch])


def _choose_workers(samples: Sequence[Sample]) -> int:
    sizes = [_measure(sample) for sample in samples[:: max(1, len(samples) // 16)]]
    is_small = sum(sizes) < len(sizes) * _SMALL_FILE_BYTES
    return 1 if is_small else min(16, os.cpu_count() or 1)


def _measure(sample: Sample) -> int:
    try:
        return len(sample.read())
    except OSError:
        return 0


def _decode(sample: Sample, spec: ModelSpec, *, perturb: Perturb | None, crop: Crop | None = None) -> _Decoded:
    try:
        if perturb is None and crop is None:
            return pixels_from_bytes(sample.read(), spec)
        image = decode_whole(sample.read(), spec)
    except (ImageError, OSError) as err:
        return Problem(sample.name, str(err))
    if perturb is not None:
        image = perturb(image, zlib.crc32(sample.name.encode()))
    return to_pixels(image, spec) if crop is None else resample(image, spec, crop(image))


def _refuse(images: ImageSet, problems: Sequence[Problem], *, strict: bool) -> None:
    if not images.samples:
        raise DataError(f"{images.name}: the split is empty; expected at least one image")
    if not problems or (not strict and len(problems) < len(images)):
        return
    named = "; ".join(f"{problem.name}: {problem.reason}" for problem in problems[:_NAMED])
    more = "; …" if len(problems) > _NAMED else ""
    count = f"{len(problems)} of {len(images)} files cannot be decoded"
    raise DataError(f"{images.name}: {count}: {named}{more}; remove or replace them")
