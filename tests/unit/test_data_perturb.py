import numpy as np
import pytest
from PIL import Image

from imgcls.data.perturb import RANGES, Perturbation, parse_perturbation

MODES = {"L": (32, 24), "RGB": (32, 24, 3), "RGBA": (32, 24, 4)}


def make_image(mode: str) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, MODES[mode], dtype=np.uint8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", RANGES)
def test_each_key_changes_the_pixels_and_neither_size_nor_mode(key: str, mode: str) -> None:
    image = make_image(mode)
    perturb = parse_perturbation({key: "0.5" if key == "brightness" else "20"})
    assert perturb is not None
    changed = perturb(image, 1)
    assert (changed.size, changed.mode) == (image.size, mode)
    assert not np.array_equal(np.asarray(changed), np.asarray(image))
    assert np.array_equal(np.asarray(changed), np.asarray(perturb(image, 1)))


@pytest.mark.parametrize("key", ["noise", "rotate"])
def test_seeds_draw_different_images(key: str) -> None:
    perturb = Perturbation(**{key: 20.0})
    one, other = (np.asarray(perturb(make_image("RGB"), seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_alpha_is_kept_under_noise() -> None:
    image = make_image("RGBA")
    changed = Perturbation(noise=50)(image, 1)
    assert changed.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_noise_has_the_standard_deviation_asked_for() -> None:
    grey = Image.new("L", (200, 200), 128)
    assert np.asarray(Perturbation(noise=25)(grey, 1)).std() == pytest.approx(25, rel=0.03)


def test_corners_of_a_rotated_image_take_the_mean_of_its_border() -> None:
    image = Image.new("RGB", (40, 40), (10, 20, 30))
    image.paste((255, 255, 255), (15, 15, 25, 25))
    assert Perturbation(rotate=45)(image, 5).getpixel((0, 0)) == (10, 20, 30)


def test_no_settings_are_no_perturbation() -> None:
    assert parse_perturbation({}) is None
