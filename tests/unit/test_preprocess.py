import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from model.normalise import Normalise
from model.preprocess import pixels_from_bytes, to_pixels
from model.spec import ModelSpec

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TOLERANCE = 1.5  # of 255, on average: torchvision rounds the resized side and the crop's corner to whole pixels


def make_spec(**fields: object) -> ModelSpec:
    channels = fields.setdefault("channels", 3)
    fields = {
        "size": 32,
        "resize": 36,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "classes": ("a", "b"),
    } | fields
    return ModelSpec(**fields)


def make_photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth noise: what photographs look like to a resize."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, len(mode)), dtype=np.uint8)
    return Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def preprocess_with_torchvision(image: Image.Image, spec: ModelSpec) -> np.ndarray:
    resized = reference.resize(image, spec.resize, InterpolationMode(spec.interpolation))
    return reference.pil_to_tensor(reference.center_crop(resized, [spec.size, spec.size])).numpy()


@pytest.mark.parametrize("size", [(200, 200), (300, 200), (200, 301), (1000, 90), (33, 90), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_pixels_are_those_of_torchvision(size, interpolation):
    image, spec = make_photo(*size), make_spec(interpolation=interpolation)
    difference = np.abs(to_pixels(image, spec).astype(int) - preprocess_with_torchvision(image, spec))
    assert difference.mean() < TOLERANCE


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_whole_numbers_leave_no_difference_to_torchvision(channels):
    image, spec = make_photo(96, 72, MODES[channels]), make_spec(channels=channels)
    difference = np.abs(to_pixels(image, spec).astype(int) - preprocess_with_torchvision(image, spec))
    assert difference.max() <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_an_image_of_the_input_size_is_left_as_it_is(interpolation):
    image, spec = make_photo(32, 32), make_spec(resize=32, interpolation=interpolation)
    assert np.array_equal(to_pixels(image, spec).transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_any_size_and_channel_count_gives_the_input_shape(size, channels):
    pixels = to_pixels(Image.new(MODES[channels], size), make_spec(channels=channels))
    assert (pixels.shape, pixels.dtype) == ((channels, 32, 32), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_an_extreme_strip_costs_no_more_than_its_pixels(encode):
    data = encode(Image.new("L", (40_000_000, 1), 9), "PNG", compress_level=1)
    assert len(data) < 200_000
    assert (pixels_from_bytes(data, make_spec(channels=1)) == 9).all()


def test_the_centre_is_kept():
    image = Image.new("RGB", (100, 100), "black")
    image.paste((255, 255, 255), (25, 25, 75, 75))
    pixels = to_pixels(image, make_spec(size=4, resize=8, interpolation="nearest"))
    assert (pixels == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalise_is_the_plain_formula(channels):
    mean, std = (0.4, 0.5, 0.6, 0.1)[:channels], (0.2, 0.25, 0.3, 1.5)[:channels]
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, channels, 1, 1)
    normalised = Normalise(make_spec(channels=channels, mean=mean, std=std))(pixels)
    plain = (pixels.double() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised, plain.float(), atol=2e-6)
