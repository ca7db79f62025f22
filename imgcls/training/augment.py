"""Augmentation: of a batch on the device where it lies, of single images before, and of pairs of images with labels.

What is drawn is a function of seed and position (imgcls.training.randomness), so a resumed run draws the same.
"""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop, v2

from imgcls.data.pixels import Crop
from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig
from model.bands import Bands
from model.spec import ModelSpec

Transform = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def augment(
    pixels: Tensor,
    *,
    flip: bool,
    shift: int,
    generator: Generator,
    vertical_flip: bool = False,
    places: Tensor | None = None,
    count: int = 0,
) -> Tensor:
    """Mirrors half of the images and moves each by up to `shift` pixels; the border repeats the image mirrored.

    Args:
        pixels: uint8 (B, C, H, W).
        flip: whether to mirror, left to right.
        vertical_flip: whether to mirror top to bottom, independently of it.
        shift: 0 for none.
        generator: on the CPU, so that a run draws the same on every device.
        places: int64 (B,), of these images among the `count` that are drawn for; None where they are all.
        count: how many images to draw for, those of other processes included.

    Returns:
        uint8 (B, C, H, W).
    """
    places, count = (torch.arange(len(pixels)), len(pixels)) if places is None else (places, count)
    for dimension in ([3] if flip else []) + ([2] if vertical_flip else []):
        chosen = (torch.rand(count, generator=generator) < 0.5)[places]
        pixels = torch.where(chosen.to(pixels.device).view(-1, 1, 1, 1), pixels.flip(dimension), pixels)
    if shift:
        offsets = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)[:, places]
        pixels = _shift(pixels, offsets.to(pixels.device), shift=shift)
    return pixels


def make_transform(config: TrainConfig, spec: ModelSpec) -> Transform | None:
    """Returns torchvision's augmentation of one image, uint8 (C, H, W) -> the same, or None where none is asked for.

    Raises:
        UsageError: the images are no pictures of one or three channels, for which its colour operations are made.
    """
    steps: list[Transform] = []
    for flag, is_given in (("--auto-augment", config.auto_augment), ("--color-jitter", config.color_jitter)):
        if is_given and spec.ranges is not None:
            raise UsageError(f"{flag} is for pictures; the images are bands; leave it off")
        if is_given and spec.channels not in {1, 3}:
            raise UsageError(f"{flag} is for 1 or 3 channels; the images have {spec.channels}; leave it off")
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    if config.auto_augment:
        steps.append(v2.RandAugment() if config.auto_augment == "randaugment" else v2.TrivialAugmentWide())
    if config.erase:
        steps.append(v2.RandomErasing(p=config.erase))
    return v2.Compose(steps) if steps else None


def make_crop(config: TrainConfig) -> Crop | None:
    """Returns what draws the part of an image for torchvision's random resized crop, or None where none is asked for.

    It has `crop_scale` to all of the image's area, and is up to a third wider than high or higher than wide.
    """
    if config.crop_scale is None:
        return None
    return partial(_draw_crop, least=config.crop_scale)


def make_mix(config: TrainConfig, *, classes: int) -> Mix | None:
    """Returns what mixes images of a batch and their labels, or None; with both, each batch gets one or the other.

    It takes float32 (B, C, H, W) and int64 (B,), and returns the images and float32 (B, classes).
    """
    kinds: list[Mix] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    return v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0] if kinds else None


def _draw_crop(image: Image.Image | Bands, *, least: float) -> tuple[float, float, float, float]:
    """Can be pickled, as on macOS the processes that decode do not inherit it."""
    width, height = image.size
    shape = torch.empty(1, height, width, device="meta")
    top, left, height, width = RandomResizedCrop.get_params(shape, [least, 1.0], [3 / 4, 4 / 3])
    return left, top, left + width, top + height


def _shift(pixels: Tensor, offsets: Tensor, *, shift: int) -> Tensor:
    batch, channels, height, width = pixels.shape
    mode = "reflect" if shift < min(height, width) else "replicate"
    padded = functional.pad(pixels.float(), (shift,) * 4, mode=mode).to(torch.uint8)
    rows = (offsets[0] + torch.arange(height, device=pixels.device)).view(batch, 1, height, 1)
    columns = (offsets[1] + torch.arange(width, device=pixels.device)).view(batch, 1, 1, width)
    image = torch.arange(batch, device=pixels.device).view(batch, 1, 1, 1)
    channel = torch.arange(channels, device=pixels.device).view(1, channels, 1, 1)
    return padded[image, channel, rows, columns]  # (B, C, H, W)
