"""Draws a heat map over what the network saw of an image."""

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

SMALLEST_SIDE = 256  # in pixels; an input of 32 x 32 would be too small to look at
STRONGEST = 0.7  # how far the hottest colour hides the image
COLD, WARM, HOT = "#30123b", "#fb8022", "#fff43d"


def draw_overlay(
    pixels: npt.NDArray[np.uint8], heat_map: npt.NDArray[np.float32], *, are_bands: bool, texts: Mapping[str, str]
) -> bytes:
    """Returns a PNG, RGB, square, at least SMALLEST_SIDE wide: the hotter, the more colour lies over the image.

    Args:
        pixels: uint8 (C, H, W).
        heat_map: (rows, columns), 0..1.
        are_bands: whether the pixels are no colours: of three and more the first three are shown, else the first.
        texts: go into the PNG's text chunks.
    """
    image = _to_rgb(pixels, are_bands=are_bands)
    side = max(image.width, SMALLEST_SIDE)
    image = image.resize((side, side), Image.Resampling.NEAREST)
    levels = Image.fromarray((heat_map * 255).round().astype(np.uint8))
    heat = levels.resize((side, side), Image.Resampling.BICUBIC)
    colors = ImageOps.colorize(heat, black=COLD, mid=WARM, white=HOT)
    overlay = Image.composite(colors, image, heat.point([round(level * STRONGEST) for level in range(256)]))
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    overlay.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _to_rgb(pixels: npt.NDArray[np.uint8], *, are_bands: bool) -> Image.Image:
    """(C, H, W) -> a picture; transparent pixels become white."""
    rows = pixels.transpose(1, 2, 0)
    if len(pixels) < 3:
        return Image.fromarray(rows[:, :, 0]).convert("RGB")
    if len(pixels) == 4 and not are_bands:
        layer = Image.fromarray(np.ascontiguousarray(rows))
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(rows[:, :, :3]))
