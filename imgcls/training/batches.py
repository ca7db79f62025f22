"""Batches of uint8 pixels and labels: from memory where the split fits, decoded on demand where it does not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imgcls.data.images import ImageSet, Problem
from imgcls.data.pixels import PixelDataset, PixelSet, drop_unreadable, estimate_bytes, load_pixels
from imgcls.training.config import TrainConfig
from imgcls.training.randomness import Draw, generator_at
from model.spec import ModelSpec

MEMORY_PART = 0.4  # of the memory that is free: a split larger than this is decoded on demand
STATISTICS_IMAGES = 2_000


class Batch(NamedTuple):
    """One batch on the CPU.

    Attributes:
        pixels: uint8 (B, C, H, W).
        labels: int64 (B,).
        indices: int64 (B,), of the images in their split.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Batches:
    """One split, as a supply of batches; `shuffle` says whether the order is drawn anew for each epoch."""

    data: PixelSet | PixelDataset
    batch_size: int
    shuffle: bool
    workers: int
    seed: int = 0

    def __len__(self) -> int:
        """Returns the number of batches of an epoch; the last may be smaller.

        In training it is never a single image, which batch norm cannot take: that one is left out of the epoch.
        """
        full, rest = divmod(len(self.data), self.batch_size)
        drops_rest = self.shuffle and full > 0 and rest == 1
        return full if rest == 0 or drops_rest else full + 1

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, by index."""
        if isinstance(self.data, PixelSet):
            return self.data.names
        return tuple(sample.name for sample in self.data.images.samples)

    def draw(self, epoch: int = 0, *, first: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from number `first` on; their order is a function of seed and epoch."""
        parts = torch.split(self._draw_order(epoch), self.batch_size)[first : len(self)]
        if isinstance(self.data, PixelSet):
            for indices in parts:
                yield Batch(self.data.pixels[indices], self.data.labels[indices], indices)
            return
        loader = DataLoader(
            _Indexed(self.data),
            batch_sampler=[part.tolist() for part in parts],
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws the workers' seed from torch's global state
            pin_memory=torch.cuda.is_available(),
        )
        for pixels, labels, indices in loader:
            yield Batch(pixels, labels, indices)

    def _draw_order(self, epoch: int) -> Tensor:
        count = len(self.data)
        if not self.shuffle:
            return torch.arange(count)
        return torch.randperm(count, generator=generator_at(Draw.ORDER, self.seed, epoch))

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
    return Batches(data, config.batch_size, shuffle=shuffle, workers=workers, seed=config.seed), problems


class _Indexed(Dataset[tuple[Tensor, int, int]]):
    """A data set whose items tell their index too."""

    def __init__(self, data: PixelDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return *self.data[index], index
