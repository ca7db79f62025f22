"""The 16-bit samples of pictures, of which training and serving take the high byte.

The data report compares all bits of them, and train.py says where their high byte tells next to nothing.
"""

from typing import Any

import numpy.typing as npt

from model.bands import read_bands
from model.errors import ImageError
from model.tiff import is_tiff, read_tiff_header

_PNG = b"\x89PNG"
_PNG_DEPTH = 24  # bytes into the file


def read_deep(data: bytes) -> npt.NDArray[Any] | None:
    """Returns the samples, little-endian uint16 (bands, height, width), as they lie in a gray PNG or a TIFF of 16 bits.

    None for any other image, and for one whose samples cannot be read; of a PNG in colour Pillow keeps 8 bits.
    """
    try:
        samples = read_bands(data)[0] if _is_deep(data) else None
    except ImageError:
        return None
    return None if samples is None or samples.itemsize == 1 else samples.astype("<u2", copy=False)


def _is_deep(data: bytes) -> bool:
    if is_tiff(data):
        return read_tiff_header(data).bits == 16
    return data.startswith(_PNG) and data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"
