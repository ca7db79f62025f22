import pytest
import torch
from torch import Generator, Tensor

from imgcls.training.augment import augment


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
