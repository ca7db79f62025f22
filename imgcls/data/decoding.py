"""Decodes an image of any kind that training may take, without a run that says which kind it is to be."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.bands import decode_bands, is_no_picture, read_bands
from model.images import decode_image


def decode_any(data: bytes) -> tuple[Image.Image, npt.NDArray[Any] | None]:
    """Returns a picture of an image, and the samples of one that is none: a TIFF of bands, (bands, height, width).

    Raises:
        ImageError: it cannot be decoded.
    """
    if not is_no_picture(data):
        return decode_image(data, channels=3), None
    samples, _ = read_bands(data)
    top = int(np.iinfo(samples.dtype).max)
    return decode_bands(data, ranges=[(0, top)] * len(samples)).to_picture(), samples
