import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from imgcls.data.images import ImageSet, Sample
from imgcls.data.pixels import PixelDataset
from imgcls.errors import UsageError
from imgcls.training.augment import augment, make_crop, make_transform
from imgcls.training.config import read_config
from model.bands import Bands
from model.spec import ModelSpec

SPEC = ModelSpec(channels=3, size=16, resize=20, mean=(0,) * 3, std=(1,) * 3, classes=("a", "b"))


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def make_pixels(count: int = 64, height: int = 5, width: int = 6) -> Tensor:
    return torch.arange(count * 3 * height * width).remainder(251).to(torch.uint8).view(count, 3, height, width)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_nothing_is_changed_and_nothing_drawn_without_augmentation():
    pixels, generator = make_pixels(), seeded()
    assert torch.equal(augment(pixels, flip=False, shift=0, generator=generator), pixels)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_flip_mirrors_about_half_of_the_images_and_keeps_the_others():
    pixels = make_pixels()
    flipped = augment(pixels, flip=True, shift=0, generator=seeded())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, pixels, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, pixels, strict=True)]
    assert sum(mirrored) + sum(kept) == len(pixels)
    assert 20 < sum(mirrored) < 44


def test_the_two_flips_are_drawn_independently():
    pixels = make_pixels(400)
    flipped = augment(pixels, flip=True, vertical_flip=True, shift=0, generator=seeded())
    counts = [
        sum(torch.equal(a, b.flip(dimensions)) for a, b in zip(flipped, pixels, strict=True))
        for dimensions in ([], [1], [2], [1, 2])
    ]
    assert sum(counts) == 400
    assert all(70 < count < 130 for count in counts)
    upright = augment(pixels, flip=False, vertical_flip=True, shift=0, generator=seeded())
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(1)) for a, b in zip(upright, pixels, strict=True))


def test_a_crop_lies_in_the_image_and_has_its_part_of_the_area_and_its_shape():
    torch.manual_seed(0)
    crop = make_crop(configure("--crop-scale", 0.2))
    photo, narrow = Image.new("RGB", (500, 375)), Bands(tuple(Image.new("L", (37, 90)) for _ in range(5)))
    for image, most in ((photo, 1.0), (narrow, 37 * 37 * 4 / 3 / (37 * 90))):
        width, height = image.size
        parts = []
        for _ in range(300):
            left, top, right, bottom = crop(image)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert 0.7 < (right - left) / (bottom - top) < 1.45
            parts.append((right - left) * (bottom - top) / (width * height))
        assert 0.18 < min(parts) < 0.25
        assert 0.85 * most < max(parts) < 1.03 * most
    assert make_crop(configure()) is None


def test_what_is_drawn_for_single_images_reaches_a_process_that_inherits_nothing():
    config = configure("--crop-scale", 0.5, "--color-jitter", 0.5, "--auto-augment", "randaugment", "--erase", 0.5)
    image = torch.arange(768).remainder(251).to(torch.uint8).view(3, 16, 16)
    for drawn, given in ((make_crop(config), Image.new("RGB", (9, 9))), (make_transform(config, SPEC), image)):
        there = pickle.loads(pickle.dumps(drawn))  # as macOS starts processes
        found = []
        for function in (drawn, there):
            torch.manual_seed(1)
            found.append(torch.as_tensor(function(given)))
        assert torch.equal(*found)


def test_a_crop_is_stretched_to_the_input():
    noise = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    images = ImageSet("train", SPEC.classes, (Sample("noise.png", 1, file.getvalue),))
    pixels, label = PixelDataset(images, SPEC).read(0, crop=lambda _: (10, 5, 42, 37))
    assert label == 1
    expected = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR, box=(10, 5, 42, 37))
    assert np.array_equal(pixels.numpy().transpose(1, 2, 0), np.asarray(expected))
    whole, _ = PixelDataset(images, SPEC)[0]
    assert not torch.equal(whole, pixels)


@pytest.mark.parametrize(("flag", "value"), [("--auto-augment", "trivial"), ("--color-jitter", 0.4)])
def test_what_is_made_for_pictures_is_refused_for_other_images(flag, value):
    four = ModelSpec(channels=4, size=16, resize=16, mean=(0,) * 4, std=(1,) * 4, classes=("a", "b"))
    with pytest.raises(UsageError, match=f"{flag} is for 1 or 3 channels; the images have 4; leave it off"):
        make_transform(configure(flag, value), four)
    bands = four.model_copy(update={"ranges": ((0, 1),) * 4})
    with pytest.raises(UsageError, match=f"{flag} is for pictures; the images are bands; leave it off"):
        make_transform(configure(flag, value), bands)


def test_colours_vary_and_the_image_stays_where_it_is():
    torch.manual_seed(0)
    jitter = make_transform(configure("--color-jitter", 0.5), SPEC)
    image = torch.full((3, 16, 16), 60, dtype=torch.uint8)
    image[0, 4:8, 4:8] = 200
    varied = [jitter(image) for _ in range(20)]
    assert len({tuple(each[:, 5, 5].tolist()) for each in varied}) > 15
    assert all(len(each.flatten(1).unique(dim=1).T) == 2 for each in varied)
    gray = SPEC.model_copy(update={"channels": 1, "mean": (0,), "std": (1,)})
    assert make_transform(configure("--color-jitter", 0.5), gray)(image[:1]).shape == (1, 16, 16)


def test_shift_moves_each_image_by_its_own_offset():
    pixels = make_pixels()
    shifted = augment(pixels, flip=False, shift=2, generator=seeded())
    assert (shifted.shape, shifted.dtype) == (pixels.shape, torch.uint8)
    offsets = set()
    for moved, image in zip(shifted, pixels, strict=True):
        padded = torch.nn.functional.pad(image.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(moved, padded[:, y : y + 5, x : x + 6])]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 15  # of 25


@pytest.mark.parametrize("shift", [5, 9])
def test_a_shift_beyond_the_image_repeats_its_border(shift):
    shifted = augment(make_pixels(8), flip=False, shift=shift, generator=seeded())
    assert shifted.shape == (8, 3, 5, 6)


def test_the_same_seed_draws_the_same():
    one, same = (augment(make_pixels(), flip=True, shift=2, generator=seeded(1)) for _ in range(2))
    other = augment(make_pixels(), flip=True, shift=2, generator=seeded(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
