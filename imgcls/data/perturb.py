"""Perturbations of test images, such as `digits,noise=25`: does the network generalise, or did it learn the pixels?

An image, or each of its bands, is changed after decoding and before `to_pixels`, in the order of a camera: it is
turned (rotate), out of focus (blur), under other light (brightness), on a noisy sensor (noise), and compressed (jpeg).
Alpha is only rotated.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from imgcls.errors import UsageError
from model.bands import Bands

# key: (lowest, highest, what the number means)
RANGES = {
    "noise": (0.0, 255.0, "standard deviation of gaussian noise, in grey levels of 0..255"),
    "rotate": (0.0, 180.0, "rotation by at most this many degrees to either side"),
    "blur": (0.0, 100.0, "radius of a gaussian blur, in pixels of the file"),
    "brightness": (0.0, 10.0, "factor on the brightness"),
    "jpeg": (1.0, 100.0, "JPEG quality"),
}


@dataclass(frozen=True)
class Perturbation:
    """Changes a decoded image; the defaults change nothing. Its units are those of RANGES."""

    noise: float = 0.0
    rotate: float = 0.0
    blur: float = 0.0
    brightness: float = 1.0
    jpeg: float | None = None

    def __call__(self, image: Image.Image | Bands, seed: int) -> Image.Image | Bands:
        """Returns the changed image, of the same size and mode; equal seeds give equal images."""
        random = np.random.default_rng(seed)
        degrees = random.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        if isinstance(image, Bands):
            return image.map(lambda plane: self._change(plane, random, degrees=degrees))
        return self._change(image, random, degrees=degrees)

    def _change(self, image: Image.Image, random: np.random.Generator, *, degrees: float) -> Image.Image:
        if degrees:
            image = _rotate(image, degrees=degrees)
        if image.mode != "RGBA":
            return self._change_colours(image, random)
        changed = self._change_colours(image.convert("RGB"), random)
        changed.putalpha(image.getchannel("A"))
        return changed

    def _change_colours(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur))
        if self.brightness != 1:
            image = ImageEnhance.Brightness(image).enhance(self.brightness)
        if self.noise:
            image = _add_noise(image, random, deviation=self.noise)
        if self.jpeg is not None:
            image = _compress(image, quality=round(self.jpeg))
        return image


def parse_perturbation(settings: dict[str, str]) -> Perturbation | None:
    """Builds the perturbation of a source string's `key=value` parts; None where there are none.

    Raises:
        UsageError: a key is unknown, or a value is no number in its range.
    """
    values = {key: _parse_value(key, value) for key, value in settings.items()}
    return Perturbation(**values) if values else None


def _parse_value(key: str, text: str) -> float:
    if key not in RANGES:
        raise UsageError(f"unknown key {key!r} in {key}={text}; accepted are {', '.join(RANGES)} and split")
    low, high, meaning = RANGES[key]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # also where it is NaN
        raise UsageError(f"{key} is {text!r}; expected a number from {low:g} to {high:g}: {meaning}")
    return value


def _rotate(image: Image.Image, *, degrees: float) -> Image.Image:
    """Rotates about the centre; the corners that appear take the mean of the image's border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mean = border.mean(axis=0).round().astype(int)
    fill = int(mean) if image.mode == "L" else tuple(mean.tolist())
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)


def _add_noise(image: Image.Image, random: np.random.Generator, *, deviation: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + random.normal(0.0, deviation, pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _compress(image: Image.Image, *, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer, formats=("JPEG",)).convert(image.mode)
