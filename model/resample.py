"""Pillow's resampling as two products with matrices, on any device.

    uint8 (3, H, W) ─ (W, S) ─► rounded to uint8 ─ (S, H) ─► uint8 (3, S, S)

The definition is that of `model.preprocess.to_pixels` with `exact=True`: the same box, the same filters stretched over
what is averaged, whole numbers between the two. Pillow 13 takes the rows of some tall pictures first, and then values
differ by one; they do so too where its integers round an exact half the other way.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


def resample(image: Tensor, *, box: Box, size: int, interpolation: str) -> Tensor:
    """Resamples a part of an image to a square.

    Args:
        image: uint8 (3, H, W).
        box: of the part, left, top, right and bottom, in pixels and parts of them.
        size: side of the result.
        interpolation: one of INTERPOLATIONS.

    Returns:
        uint8 (3, size, size).
    """
    left, top, right, bottom = box
    height, width = image.shape[1:]
    row, rows = _weigh(height, top, bottom, size, interpolation, image.device)
    column, columns = _weigh(width, left, right, size, interpolation, image.device)
    part = image[:, row : row + rows.shape[1], column : column + columns.shape[1]].contiguous().float()  # (3, h, w)
    narrow = _to_whole(part @ columns.T)  # (3, h, size)
    return _to_whole(rows @ narrow).to(torch.uint8)


@lru_cache(maxsize=16)  # the images of one sender often have one size; one of 10,000 pixels takes 9 MB
def _weigh(
    length: int, start: float, stop: float, size: int, interpolation: str, device: torch.device
) -> tuple[int, Tensor]:
    """Returns the first pixel of an axis that counts, and how much each of the n from there does: float32 (size, n)."""
    kernel, support = _KERNELS[interpolation]
    scale = (stop - start) / size
    stretch = max(scale, 1.0)  # enlarging averages nothing
    first = max(0, math.floor(start + 0.5 * scale - support * stretch))
    last = min(length, math.ceil(stop - 0.5 * scale + support * stretch))
    centres = start + (torch.arange(size, dtype=torch.float64, device=device) + 0.5) * scale
    pixels = torch.arange(first, last, dtype=torch.float64, device=device) + 0.5
    weights = kernel((pixels - centres[:, None]) / stretch)  # (size, n)
    return first, (weights / weights.sum(1, keepdim=True)).float()


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


_KERNELS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
INTERPOLATIONS = frozenset(_KERNELS)  # "nearest" picks pixels, and is not among them


def _to_whole(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
