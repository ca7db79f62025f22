"""From untrusted bytes to the bands of an image: what a camera, a satellite or a microscope measured, not a picture.

A spec with `ranges` takes them: TIFFs with as many samples a pixel as the network has channels, of 8 or 16 bits; for
one channel also 8- and 16-bit gray PNGs. A sample is a number, with no meaning of a colour or of alpha; each band has a
range of its own that becomes 0 to 255, and what lies outside is clipped.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model.decode_limits import MAX_BYTES, MAX_PIXELS, check_file
from model.errors import EmptyImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model.tiff import is_tiff, read_samples, read_tiff_header

Range = tuple[int, int]
_ORIENTATION = 274
_GRAY_MODES = {"L", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class Bands:
    """An image of several bands.

    Attributes:
        planes: one image of mode L a band, all of one size.
    """

    planes: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.planes[0].size

    def map(self, change: Callable[[Image.Image], Image.Image]) -> "Bands":
        """Returns the bands with each of them changed."""
        return Bands(tuple(change(plane) for plane in self.planes))

    def to_picture(self) -> Image.Image:
        """Returns something to look at: the first three bands as red, green and blue, or the first one as gray."""
        if len(self.planes) < 3:
            return ImageOps.autocontrast(self.planes[0], preserve_tone=True)
        return ImageOps.autocontrast(Image.merge("RGB", self.planes[:3]))


def decode_bands(
    data: bytes, *, ranges: Sequence[Range], max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Bands:
    """Decodes one image, turned upright as its header says.

    Args:
        data: the file's bytes.
        ranges: of each band, the samples that become 0 and 255.
        max_pixels: the most samples to decode: width times height times bands.
        max_bytes: the most bytes of the file.

    Raises:
        EmptyImageError: no bytes.
        ImageTooLargeError: more than max_bytes or max_pixels.
        UnsupportedImageError: no TIFF, or not with as many bands, or not of 8 or 16 bits.
        UndecodableImageError: truncated or broken.
    """
    samples, orientation = read_bands(data, max_pixels=max_pixels, max_bytes=max_bytes, wanted=len(ranges))
    tables = [_make_table(low, high, np.iinfo(samples.dtype).max + 1) for low, high in ranges]
    planes = [Image.fromarray(table[band]) for table, band in zip(tables, samples, strict=True)]
    return Bands(tuple(_turn_upright(plane, orientation) for plane in planes))


def read_bands(
    data: bytes, *, wanted: int | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[npt.NDArray[Any], int]:
    """Reads the samples as they stand in the file; arguments and errors as in `decode_bands`.

    Returns:
        uint8 or uint16 (bands, height, width), and EXIF's orientation.
    """
    if not data:
        raise EmptyImageError("the image is empty; send the bytes of one image file")
    if len(data) > max_bytes:
        raise ImageTooLargeError(f"the image has {len(data)} bytes; at most {max_bytes} are accepted")
    if not is_tiff(data):
        return _read_gray(data, max_pixels=max_pixels, wanted=wanted)
    header = read_tiff_header(data)
    if wanted not in {None, header.samples}:
        raise UnsupportedImageError(f"the TIFF has {header.samples} bands; this model takes {wanted}")
    _check_size(header.width, header.height, bands=header.samples, max_pixels=max_pixels)
    return read_samples(data, header), header.orientation


def count_samples(data: bytes) -> int:
    """Returns width times height times bands of a TIFF, as its header has them, 0 where it cannot be read."""
    try:
        header = read_tiff_header(data) if is_tiff(data) else None
    except (UndecodableImageError, UnsupportedImageError, ImageTooLargeError):
        return 0
    return header.width * header.height * header.samples if header else 0


def is_no_picture(data: bytes) -> bool:
    """Whether the bytes are a TIFF that can be read as bands, and not as a picture."""
    if not count_samples(data):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data), formats=("TIFF",)).close()
    except Exception:  # hostile bytes make Pillow raise anything
        return True
    return False


def _check_size(width: int, height: int, *, bands: int, max_pixels: int) -> None:
    if width * height * bands > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} pixels of {bands} bands; at most {max_pixels} samples are accepted"
        )


def _read_gray(data: bytes, *, max_pixels: int, wanted: int | None) -> tuple[npt.NDArray[Any], int]:
    expected = f"a TIFF of {wanted or 'some'} bands" + (" or a gray PNG" if wanted in {None, 1} else "")
    if wanted not in {None, 1} or not data.startswith(b"\x89PNG"):
        raise UnsupportedImageError(f"the image is no TIFF; this model takes {expected}, of 8 or 16 bits")
    check_file(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                _check_size(*image.size, bands=1, max_pixels=max_pixels)
                if image.mode not in _GRAY_MODES:
                    raise UnsupportedImageError(f"the PNG has mode {image.mode}; this model takes {expected}")
                return np.asarray(image)[None], 1
        except (MemoryError, UnsupportedImageError, ImageTooLargeError):
            raise
        except Image.DecompressionBombError as err:
            raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are accepted") from err
        except Exception as err:  # as in model.images: hostile bytes make Pillow raise anything
            raise UndecodableImageError(f"the PNG is truncated or broken: {err}") from err


@lru_cache(maxsize=256)
def _make_table(low: int, high: int, levels: int) -> npt.NDArray[np.uint8]:
    """Returns what each sample becomes: 0 at low, 255 at high, in between to the nearest."""
    scaled = (np.arange(levels) - low) * (255 / (high - low))
    table: npt.NDArray[np.uint8] = scaled.clip(0, 255).round().astype(np.uint8)
    return table


def _turn_upright(plane: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return plane
    plane.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(plane)
