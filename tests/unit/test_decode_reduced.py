"""Decoding at a reduced scale against the exact path, on pictures with a photograph's statistics."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from model.errors import ImageTooLargeError
from model.images import decode_image
from model.preprocess import ENOUGH, decode_for, pixels_from_bytes, to_pixels
from model.spec import ModelSpec

Encode = Callable[..., bytes]
SIDE = 64
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MEAN, PERCENTILE_95 = 1.0, 3  # of 255
ORIENTATION = 274  # EXIF tag


def make_spec(*, channels: int = 3, interpolation: str = "bilinear") -> ModelSpec:
    return ModelSpec(
        channels=channels,
        size=56,
        resize=SIDE,
        interpolation=interpolation,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        classes=("a", "b"),
    )


def make_photograph(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls with its frequency, alike but not the same in the three channels."""
    generator = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1
    spectrum = np.fft.fft2(generator.standard_normal((3, height, width))) / frequencies**0.9
    picture = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    picture = 128 + 50 * (picture - picture.mean()) / picture.std()
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def assert_alike(pixels: np.ndarray, reference: np.ndarray) -> None:
    difference = np.abs(pixels.astype(int) - reference)
    assert difference.mean() <= MEAN
    assert np.percentile(difference, 95) <= PERCENTILE_95


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(511, 384), (701, 523), (1021, 1029), (1500, 1100)])
def test_reduced_pixels_are_those_of_the_exact_path(size, interpolation, encode: Encode):
    data, spec = encode(make_photograph(*size), "JPEG", quality=90), make_spec(interpolation=interpolation)
    assert decode_for(data, spec).image.width < size[0]
    assert_alike(pixels_from_bytes(data, spec), pixels_from_bytes(data, spec, exact=True))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"progressive": True}),
        ("CMYK", {}),
        ("CMYK", {"progressive": True}),
    ],
    ids=str,
)
def test_each_kind_of_jpeg_can_be_reduced(mode, options, channels, encode: Encode):
    data = encode(make_photograph(601, 403).convert(mode), "JPEG", quality=90, **options)
    spec = make_spec(channels=channels)
    image = decode_for(data, spec).image
    assert (image.mode, image.size) == (MODES[channels], (301, 202))
    assert_alike(pixels_from_bytes(data, spec), pixels_from_bytes(data, spec, exact=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_reduced_and_upright(orientation, encode: Encode):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data, spec = encode(make_photograph(601, 403), "JPEG", quality=90, exif=exif), make_spec()
    assert decode_for(data, spec).image.size == ((202, 301) if orientation >= 5 else (301, 202))
    assert_alike(pixels_from_bytes(data, spec), pixels_from_bytes(data, spec, exact=True))


@pytest.mark.parametrize(
    ("shorter", "scale"),
    [
        (2 * ENOUGH * SIDE - 1, 1),
        (2 * ENOUGH * SIDE, 2),
        (4 * ENOUGH * SIDE - 1, 2),
        (4 * ENOUGH * SIDE, 4),
        (8 * ENOUGH * SIDE - 1, 4),
        (8 * ENOUGH * SIDE, 8),
        (16 * ENOUGH * SIDE, 8),
    ],
)
@pytest.mark.parametrize("is_high", [True, False])
def test_the_shorter_side_keeps_several_times_what_it_is_resized_to(shorter, scale, is_high, encode: Encode):
    longer = shorter + 64
    data = encode(Image.new("L", (shorter, longer) if is_high else (longer, shorter)), "JPEG")
    image = decode_for(data, make_spec(channels=1)).image
    assert min(image.size) == -(-shorter // scale)
    assert min(image.size) >= ENOUGH * SIDE


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_only_jpeg_is_reduced(kind, encode: Encode):
    assert decode_for(encode(Image.new("RGB", (512, 512)), kind), make_spec()).image.size == (512, 512)


def test_nothing_is_reduced_where_single_pixels_are_picked(encode: Encode):
    data, spec = encode(make_photograph(601, 403), "JPEG"), make_spec(interpolation="nearest")
    assert np.array_equal(pixels_from_bytes(data, spec), pixels_from_bytes(data, spec, exact=True))


def test_a_jpeg_near_the_input_is_decoded_exactly(encode: Encode):
    data, spec = encode(make_photograph(330, 2 * ENOUGH * SIDE - 1), "JPEG"), make_spec()
    assert np.array_equal(pixels_from_bytes(data, spec), pixels_from_bytes(data, spec, exact=True))


def test_decode_image_alone_never_reduces(encode: Encode):
    assert decode_image(encode(Image.new("L", (2000, 2000)), "JPEG"), channels=1).size == (2000, 2000)


def test_the_pixel_limit_counts_the_file_not_the_reduced_picture(encode: Encode):
    data, spec = encode(Image.new("L", (1024, 1024)), "JPEG"), make_spec(channels=1)
    assert decode_for(data, spec, max_pixels=1024 * 1024).image.size == (256, 256)
    with pytest.raises(ImageTooLargeError, match="1024 x 1024 pixels"):
        decode_for(data, spec, max_pixels=1024 * 1024 - 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_averaging_before_resampling_makes_little_difference(interpolation):
    image, spec = make_photograph(1500, 1101), make_spec(interpolation=interpolation)
    pixels, reference = to_pixels(image, spec), to_pixels(image, spec, exact=True)
    assert not np.array_equal(pixels, reference)
    assert_alike(pixels, reference)
