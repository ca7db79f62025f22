"""Batches of uint8 pixels and labels: from memory where the split fits, decoded on demand where it does not."""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from imgcls.data.images import ImageSet, Problem
from imgcls.data.pixels import PixelDataset, PixelSet, drop_unreadable, estimate_bytes, load_pixels
from imgcls.training.config import TrainConfig
from model.spec import ModelSpec

MEMORY_PART = 0.4  # of the memory that is free: a split larger than this is decoded on demand
STATISTICS_IMAGES = 2_000


@dataclass(frozen=True)
class Batches:
    """One split, as a supply of batches; `shuffle` says whether the order is drawn anew for each epoch."""

    data: PixelSet | PixelDataset
    batch_size: int
    shuffle: bool
    workers: int

    def __len__(self) -> int:
        """Returns the number of batches of an epoch; the last may be smaller.

        In training it is never a single image, which batch norm cannot take: that one is left out of the epoch.
        """
        full, rest = divmod(len(self.data), self.batch_size)
        return full if rest == 0 or self._drops_rest else full + 1

    @property
    def _drops_rest(self) -> bool:
        return self.shuffle and len(self.data) > 1 and len(self.data) % self.batch_size == 1

    def draw(self, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields an epoch of (uint8 (B, C, H, W), int64 (B,)) on the CPU."""
        if isinstance(self.data, PixelDataset):
            yield from DataLoader(
                self.data,
                self.batch_size,
                shuffle=self.shuffle,
                drop_last=self._drops_rest,
                num_workers=self.workers,
                generator=generator,
                pin_memory=torch.cuda.is_available(),
            )
            return
        count = len(self.data)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for number in range(len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self.data.pixels[indices], self.data.labels[indices]

    def sample_pixels(self) -> Tensor:
        """Returns some of the split's pixels, uint8 (N, C, H, W), to measure mean and standard deviation on."""
        if isinstance(self.data, PixelSet):
            return self.data.pixels
        step = max(1, len(self.data) // STATISTICS_IMAGES)
        return torch.stack([self.data[index][0] for index in range(0, len(self.data), step)])


def open_batches(
    images: ImageSet, spec: ModelSpec, config: TrainConfig, *, shuffle: bool
) -> tuple[Batches, tuple[Problem, ...]]:
    """Opens a split for training or validation; returns it with the files that had to be left out.

    Raises:
        DataError: nothing can be decoded, or, with config.strict, something cannot.
    """
    data: PixelSet | PixelDataset
    if estimate_bytes(images, spec) <= MEMORY_PART * psutil.virtual_memory().available:
        data = load_pixels(images, spec, strict=config.strict, workers=config.workers)
        problems = data.problems
    else:
        readable, problems = drop_unreadable(images, spec, workers=config.workers)
        data = PixelDataset(readable, spec)
    workers = config.workers or torch.get_num_threads()
    return Batches(data, config.batch_size, shuffle=shuffle, workers=workers), problems
