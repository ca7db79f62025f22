"""The one definition of preprocessing: training, evaluation and serving call these two steps.

    bytes ─ decode_for ─► picture or bands ─ to_pixels ─► uint8 (C, H, W) ─ stack ─► Normalise ─► float32 (B, C, H, W)

A JPEG much larger than the input is decoded at a reduced scale, and what is much larger still is averaged before it is
resampled: docs/preprocessing.md has the rule, and what it costs in accuracy. `exact=True` is the reference.

The cut lies at uint8: it is what a data set caches, what augmentation works on, what crosses to a GPU (a quarter of the
bytes of float32) and what an engine takes. What lies left of it needs no torch; `Normalise` is in model.normalise.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.bands import Bands, decode_bands
from model.decode_limits import MAX_BYTES, MAX_PIXELS
from model.images import Picture, decode_picture
from model.spec import ModelSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


REDUCING_GAP = 3.0  # of Pillow's resize: average whole pixels first, until this many an output pixel are left
ENOUGH = 3  # a reduced picture's shorter side keeps this many times spec.resize


def decode_for(
    data: bytes, spec: ModelSpec, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, exact: bool = False
) -> Picture | Bands:
    """Decodes one image file with as many pixels as `to_pixels` has a use for.

    Errors are those of `decode_picture`, or of `decode_bands` where the spec has ranges.

    Args:
        data: the file's bytes.
        spec: whose channels, ranges, resize and interpolation count.
        max_pixels: the most pixels to decode, counted at the file's full size; of bands, the most samples.
        max_bytes: the most bytes of the file.
        exact: decode a JPEG at its full size, however large it is.
    """
    if spec.ranges is not None:
        return decode_bands(data, ranges=spec.ranges, max_pixels=max_pixels, max_bytes=max_bytes)
    is_whole = exact or spec.interpolation == "nearest"  # which picks pixels, where the others average
    return decode_picture(
        data,
        channels=spec.channels,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        enough_side=None if is_whole else ENOUGH * spec.resize,
    )


def decode_whole(data: bytes, spec: ModelSpec) -> Image.Image | Bands:
    """Decodes one image file at its full size; errors as in `decode_for`."""
    decoded = decode_for(data, spec, exact=True)
    return decoded if isinstance(decoded, Bands) else decoded.image


def to_pixels(
    image: Image.Image | Bands,
    spec: ModelSpec,
    *,
    box: tuple[float, float, float, float] | None = None,
    exact: bool = False,
) -> npt.NDArray[np.uint8]:
    """Resizes and crops an image to the network's input.

    What torchvision's ImageClassification preset does (shorter side to `spec.resize`, centre crop of `spec.size`), in
    one step: only the part that the crop keeps is resampled, with antialiasing. A 1 x 50,000,000 image therefore costs
    no more than any other.

    Args:
        image: mode L, RGB or RGBA as `spec.channels` says, or as many bands; any size.
        spec: whose size, resize and interpolation count.
        box: the part of it that counts, left, top, right and bottom; None: all of it.
        exact: resample in one step, even where averaging whole pixels first would make little difference.

    Returns:
        uint8, shape (spec.channels, spec.size, spec.size).
    """
    return resample(image, spec, find_square(box or (0, 0, *image.size), spec), exact=exact)


def resample(
    image: Image.Image | Bands, spec: ModelSpec, box: tuple[float, float, float, float], *, exact: bool = False
) -> npt.NDArray[np.uint8]:
    """Resizes a part of an image, of any shape, to the network's input; arguments and result as in `to_pixels`."""
    squares = [
        part.resize(
            (spec.size, spec.size),
            _RESAMPLING[spec.interpolation],
            box=box,
            reducing_gap=None if exact else REDUCING_GAP,
        )
        for part in (image.planes if isinstance(image, Bands) else [image])
    ]
    # (H, W, C) -> (C, H, W), half numpy's time
    planes = bytearray().join(plane.tobytes() for square in squares for plane in square.split())
    return np.frombuffer(planes, np.uint8).reshape(spec.channels, spec.size, spec.size)


def find_square(box: tuple[float, float, float, float], spec: ModelSpec) -> tuple[float, float, float, float]:
    """Returns which part of a box becomes the network's input; both are left, top, right and bottom, in pixels."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top) * spec.size / spec.resize
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    return left, top, left + side, top + side


def pixels_from_bytes(
    data: bytes, spec: ModelSpec, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, exact: bool = False
) -> npt.NDArray[np.uint8]:
    """Decodes, resizes and crops one image file; arguments and errors as in `decode_for`, result as in `to_pixels`."""
    decoded = decode_for(data, spec, max_pixels=max_pixels, max_bytes=max_bytes, exact=exact)
    if isinstance(decoded, Bands):
        return to_pixels(decoded, spec, exact=exact)
    return to_pixels(decoded.image, spec, box=decoded.box, exact=exact)
