"""What the load sends: photographs of the user's, made ones, or the archive's golden inputs."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

from imgcls.archive.golden import read_golden
from imgcls.tuning.errors import LoadError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MOST_IMAGES = 20  # each of k6's connections holds all of them in memory
MADE_IMAGES = 20


@dataclass(frozen=True)
class Images:
    """The files, a JSON list of them for k6, and a word on what they are."""

    files: tuple[Path, ...]
    listing: Path
    kind: str


def gather_images(folder: Path | None, *, archive: Path, scratch: Path) -> Images:
    """Lists the images to send; without a folder makes some that cost a server what photographs do.

    Args:
        folder: the user's; None: made ones, or the archive's golden inputs where Pillow or numpy is missing.
        archive: that is tuned.
        scratch: a folder for what is made.

    Raises:
        LoadError: the folder holds no images.
    """
    if folder is not None:
        files = _list_folder(folder)
        kind = f"{len(files)} images of {folder}"
    else:
        files, kind = _make_images(archive, scratch)
    listing = scratch / "images.json"
    listing.write_text(json.dumps([str(file.absolute()) for file in files]), encoding="utf-8")
    average_bytes = sum(file.stat().st_size for file in files) / len(files)
    return Images(tuple(files), listing, f"{kind}, {average_bytes / 1000:,.0f} kB on average")


def _list_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise LoadError(f"--images: {folder} is no folder; name one with images to send")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise LoadError(f"--images: {folder} holds no image ({', '.join(sorted(SUFFIXES))}); name a folder with some")
    count = min(MOST_IMAGES, len(files))
    return [files[number * len(files) // count] for number in range(count)]  # of each class, where they are sorted


def _make_images(archive: Path, scratch: Path) -> tuple[list[Path], str]:
    try:
        files = [make_photograph(scratch / f"{number}.jpg", seed=number) for number in range(MADE_IMAGES)]
    except (
        ModuleNotFoundError
    ):  # a server without Pillow or numpy would not serve either; but its golden inputs are there
        files = []
        for number, item in enumerate(read_golden(archive)[:MOST_IMAGES]):
            files.append(scratch / f"golden-{number}{Path(item.file).suffix}")
            files[-1].write_bytes(item.data)
        return files, f"the archive's {len(files)} golden inputs"
    return files, f"{len(files)} made JPEGs of 500 x 375"


def make_photograph(path: Path, *, seed: int) -> Path:
    """Writes a JPEG of some 100 kB with a photograph's statistics: noise whose amplitude falls with its frequency."""
    import numpy as np  # here, because --images does without
    from PIL import Image

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
