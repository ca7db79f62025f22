"""Augmentation of a batch of pixels: mirror and shift, drawn for each image, on the device where the batch lies."""

import torch
from torch import Generator, Tensor
from torch.nn import functional


def augment(pixels: Tensor, *, flip: bool, shift: int, generator: Generator) -> Tensor:
    """Mirrors half of the images and moves each by up to `shift` pixels; the border repeats the image mirrored.

    Args:
        pixels: uint8 (B, C, H, W).
        flip: whether to mirror.
        shift: 0 for none.
        generator: on the CPU, so that a run draws the same on every device.

    Returns:
        uint8 (B, C, H, W).
    """
    if flip:
        chosen = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(chosen.to(pixels.device).view(-1, 1, 1, 1), pixels.flip(3), pixels)
    if shift:
        pixels = _shift(pixels, shift, generator=generator)
    return pixels


def _shift(pixels: Tensor, shift: int, *, generator: Generator) -> Tensor:
    batch, channels, height, width = pixels.shape
    mode = "reflect" if shift < min(height, width) else "replicate"
    padded = functional.pad(pixels.float(), (shift,) * 4, mode=mode).to(torch.uint8)
    offsets = torch.randint(2 * shift + 1, (2, batch, 1), generator=generator).to(pixels.device)
    rows = (offsets[0] + torch.arange(height, device=pixels.device)).view(batch, 1, height, 1)
    columns = (offsets[1] + torch.arange(width, device=pixels.device)).view(batch, 1, 1, width)
    image = torch.arange(batch, device=pixels.device).view(batch, 1, 1, 1)
    channel = torch.arange(channels, device=pixels.device).view(1, channels, 1, 1)
    return padded[image, channel, rows, columns]  # (B, C, H, W)
