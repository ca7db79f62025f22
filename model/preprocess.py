"""The one definition of preprocessing: training, evaluation and serving call these two steps.

    bytes ─ decode_image ─► picture ─ to_pixels ─► uint8 (C, H, W) ─ stack ─► Normalise ─► float32 (B, C, H, W)

The cut lies at uint8: it is what a data set caches, what augmentation works on, what crosses to a GPU (a quarter of the
bytes of float32) and what an engine takes. What lies left of it needs no torch; `Normalise` is in model.normalise.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.images import MAX_PIXELS, decode_image
from model.spec import ModelSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_pixels(image: Image.Image, spec: ModelSpec) -> npt.NDArray[np.uint8]:
    """Resizes and crops an image to the network's input.

    What torchvision's ImageClassification preset does (shorter side to `spec.resize`, centre crop of `spec.size`), in
    one step: only the part that the crop keeps is resampled, with antialiasing. A 1 x 50,000,000 image therefore costs
    no more than any other.

    Args:
        image: mode L, RGB or RGBA as `spec.channels` says, any size.
        spec: whose size, resize and interpolation count.

    Returns:
        uint8, shape (spec.channels, spec.size, spec.size).
    """
    width, height = image.size
    side = min(width, height) * spec.size / spec.resize
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((spec.size, spec.size), _RESAMPLING[spec.interpolation], box=box)
    pixels = np.asarray(square).reshape(spec.size, spec.size, spec.channels)
    return pixels.transpose(2, 0, 1).copy()  # (H, W, C) -> (C, H, W), contiguous and writable


def pixels_from_bytes(data: bytes, spec: ModelSpec, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decodes, resizes and crops one image file; errors as in `decode_image`, result as in `to_pixels`."""
    return to_pixels(decode_image(data, channels=spec.channels, max_pixels=max_pixels), spec)
