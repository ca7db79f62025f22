"""Reads every image of a source once: what it is, its hash, and a small copy for everything that follows."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from imgcls.data.bands import read_deep
from imgcls.data.decoding import decode_any
from imgcls.data.images import DataSource, Problem, Sample
from imgcls.data.progress import show_progress
from model.errors import ImageError


@dataclass(frozen=True)
class Examined:
    """One image that can be decoded.

    Attributes:
        sample: where it comes from.
        split: that it is in.
        label: the name of its class.
        width: in pixels, of the file.
        height: in pixels, of the file.
        mode: Pillow's, of the file.
        format: Pillow's.
        size_bytes: of the file.
        sha256: of the decoded pixels, with all 16 bits of samples that have them, so that the same picture in another
            file is found.
    """

    sample: Sample
    split: str
    label: str
    width: int
    height: int
    mode: str
    format: str
    size_bytes: int
    sha256: str

    def open(self) -> Image.Image:
        """Decodes the image as RGB, as training and serving do; of bands, what there is to look at."""
        return decode_any(self.sample.read())[0]


def examine(source: DataSource, *, progress: bool = True) -> tuple[list[Examined], list[tuple[str, Problem]]]:
    """Examines all splits; returns the images, and by split what cannot be decoded."""
    found: list[Examined] = []
    problems: list[tuple[str, Problem]] = [("", problem) for problem in source.problems]
    total = sum(len(images) for images in source.splits.values())
    for split, sample in show_progress(_walk(source), "reading", total=total, show=progress):
        try:
            found.append(_examine(sample, split, source.classes[sample.label]))
        except (ImageError, OSError) as err:
            problems.append((split, Problem(sample.name, str(err))))
    return found, problems


def _walk(source: DataSource) -> Iterator[tuple[str, Sample]]:
    for split, images in source.splits.items():
        for sample in images.samples:
            yield split, sample


def _examine(sample: Sample, split: str, label: str) -> Examined:
    data = sample.read()
    picture, samples = decode_any(data)
    if samples is not None:
        mode, kind, (width, height) = f"{len(samples)} bands of {8 * samples.itemsize} bits", "TIFF", picture.size
    else:
        with Image.open(io.BytesIO(data)) as header:
            mode, kind, (width, height) = header.mode, str(header.format), header.size
    content = picture.tobytes() + _read_low_bytes(data) if samples is None else samples.tobytes()
    digest = hashlib.sha256(f"{picture.size} ".encode() + content).hexdigest()
    return Examined(sample, split, label, width, height, mode, kind, len(data), digest)


def _read_low_bytes(data: bytes) -> bytes:
    """Returns what the samples of a 16-bit picture say beside their high byte: nothing where 8 bits were widened."""
    samples = read_deep(data)
    if samples is None or not (samples & 255).any() or not (samples % 257).any():
        return b""
    return (samples & 255).astype(np.uint8).tobytes()
