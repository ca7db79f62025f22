"""Batches of uint8 pixels and labels: from memory where the split fits, decoded on demand where it does not."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from imgcls.data.images import ImageSet, Problem
from imgcls.data.pixels import Crop, PixelDataset, PixelSet, drop_unreadable, estimate_bytes, load_pixels
from imgcls.errors import DataError, UsageError
from imgcls.memory import measure_free_bytes
from imgcls.training.augment import Transform, make_crop, make_transform
from imgcls.training.balance import draw_balanced
from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World
from imgcls.training.poisson import PoissonSampling
from imgcls.training.randomness import Draw, drawing_at, generator_at
from model.spec import ModelSpec

MEMORY_PART = 0.4  # of the memory that is free: a split larger than this is decoded on demand
STATISTICS_IMAGES = 2_000
VALIDATION_BATCH = 256


class Batch(NamedTuple):
    """This process's part of the images of one step, on the CPU.

    Attributes:
        pixels: uint8 (B, C, H, W).
        labels: int64 (B,).
        indices: int64 (B,), of the images in their split.
        places: int64 (B,), of the images among all of the step.
        among: int64 (S,), the indices of all images of the step.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor
    places: Tensor
    among: Tensor

    def split(self, parts: int, *, least: int = 1) -> "list[Batch]":
        """Returns it in that many parts of nearly equal size; fewer, where one would have less than `least` images."""
        parts = max(1, min(parts, len(self.labels) // least))
        if parts == 1:
            return [self]
        pieces = torch.tensor_split(torch.arange(len(self.labels)), parts)
        return [Batch(self.pixels[at], self.labels[at], self.indices[at], self.places[at], self.among) for at in pieces]


@dataclass(frozen=True)
class Batches:
    """One split, as a supply of batches.

    Attributes:
        data: the images.
        batch_size: of a step, over all processes.
        shuffle: for training: the order is drawn anew for each epoch, and a last batch that is too small left out.
        workers: processes that decode or transform.
        seed: of the order and the transform.
        transform: of one image, uint8 (C, H, W) -> the same.
        crop: of one image as its file has it, before that; of a split that is decoded on demand.
        is_balanced: each class is drawn equally often.
        sampling: of a private run, which draws each step's images on its own.
        rank: of this process.
        processes: how many share each batch.
    """

    data: PixelSet | PixelDataset
    batch_size: int
    shuffle: bool
    workers: int
    seed: int = 0
    transform: Transform | None = None
    crop: Crop | None = None
    is_balanced: bool = False
    sampling: PoissonSampling | None = None
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        """Returns the number of batches of an epoch; the last may be smaller.

        In training each process has at least two images of it, as batch norm cannot take one: fewer are left out of
        the epoch.
        """
        if self.sampling:
            return self.sampling.steps
        full, rest = divmod(len(self.data), self.batch_size)
        drops_rest = self.shuffle and full > 0 and rest < 2 * self.processes
        return full if rest == 0 or drops_rest else full + 1

    @property
    def labels(self) -> Tensor:
        """The images' labels, int64 (N,)."""
        if isinstance(self.data, PixelSet):
            return self.data.labels
        return torch.tensor([sample.label for sample in self.data.images.samples], dtype=torch.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, by index."""
        if isinstance(self.data, PixelSet):
            return self.data.names
        return tuple(sample.name for sample in self.data.images.samples)

    def draw(self, epoch: int = 0, *, first: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from number `first` on; their order is a function of seed and epoch."""
        parts = self._draw_parts(epoch, first=first)
        if isinstance(self.data, PixelSet) and self.transform is None:
            for among in parts:
                places = torch.arange(self.rank, len(among), self.processes)
                indices = among[places]
                yield Batch(self.data.pixels[indices], self.data.labels[indices], indices, places, among)
            return
        items = _Items(self, epoch)
        loader = DataLoader(
            items,
            batch_sampler=[self._locate(part, step) for step, part in enumerate(parts, start=first)],
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws the workers' seed from torch's global state
            pin_memory=torch.cuda.is_available(),
            collate_fn=items.collate,
        )
        for drawn, among in zip(loader, parts, strict=True):
            if isinstance(drawn, DataError):
                raise drawn
            pixels, labels, indices = drawn
            yield Batch(pixels, labels, indices, torch.arange(self.rank, len(among), self.processes), among)

    def _draw_parts(self, epoch: int, *, first: int) -> Sequence[Tensor]:
        """Returns the indices of each step's images."""
        if self.sampling:
            return [self.sampling.draw(epoch, step) for step in range(first, len(self))]
        return torch.split(self._draw_order(epoch), self.batch_size)[first : len(self)]

    def _locate(self, part: Tensor, step: int) -> list[tuple[int, ...]]:
        """Returns what decides each transform of this process's images of a step.

        It is the image's index, and, where an image may come again within the epoch, its place there.
        """
        indices = part[self.rank :: self.processes].tolist()
        if not self.is_balanced and not self.sampling:
            return [(index,) for index in indices]
        return [(index, step, self.rank + number * self.processes) for number, index in enumerate(indices)]

    def _draw_order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.data))
        generator = generator_at(Draw.ORDER, self.seed, epoch)
        if self.is_balanced:
            return draw_balanced(self.labels, generator)
        return torch.randperm(len(self.data), generator=generator)

    def sample_pixels(self) -> Tensor:
        """Returns some of the split's pixels, uint8 (N, C, H, W), to measure mean and standard deviation on."""
        if isinstance(self.data, PixelSet):
            return self.data.pixels
        step = max(1, len(self.data) // STATISTICS_IMAGES)
        return torch.stack([self.data[index][0] for index in range(0, len(self.data), step)])


def open_batches(
    images: ImageSet, spec: ModelSpec, config: TrainConfig, *, shuffle: bool, world: World
) -> tuple[Batches, tuple[Problem, ...]]:
    """Opens a split for training or validation; returns it with the files that had to be left out.

    Raises:
        DataError: nothing can be decoded, or, with config.strict, something cannot.
        UsageError: the batches are too small to be shared by the processes, or a learning rate is sought by several.
    """
    if config.find_lr and world.size > 1:
        raise UsageError(f"--find-lr is for one process, not {world.size}; run python train.py")
    if config.batch_size < 2 * world.size > 2:
        raise UsageError(
            f"--batch-size is {config.batch_size} for {world.size} processes; expected at least {2 * world.size}, "
            "as all of them share each batch"
        )
    data: PixelSet | PixelDataset
    crop = make_crop(config) if shuffle else None
    if crop is None and estimate_bytes(images, spec) <= MEMORY_PART * measure_own_bytes():
        data = load_pixels(images, spec, strict=config.strict, workers=config.workers)
        problems = data.problems
    else:
        readable, problems = drop_unreadable(images, spec, workers=config.workers)
        data = PixelDataset(readable, spec)
    workers = config.workers or torch.get_num_threads()
    if not shuffle:
        size = VALIDATION_BATCH * world.size
        return Batches(data, size, False, workers, rank=world.rank, processes=world.size), problems
    batches = Batches(
        data,
        config.batch_size,
        shuffle=True,
        workers=workers,
        seed=config.seed,
        transform=make_transform(config, spec),
        crop=crop,
        is_balanced=config.balanced,
        sampling=PoissonSampling(len(data), config.batch_size) if config.is_private else None,
        rank=world.rank,
        processes=world.size,
    )
    return batches, problems


def measure_own_bytes() -> int:
    """Returns the memory that this process may take: its part, as torchrun's processes on a machine share it."""
    return measure_free_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_least_part(network: nn.Module, config: TrainConfig, world: World) -> int:
    """Returns how many images must at least go through the network at once: two, where a batch norm compares them.

    Raises:
        UsageError: the batches are too small for that; not of a run that is resumed, as it has come through.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return 1
    if config.batch_size < (least := 2 * config.accumulate * world.size) and not config.resume:
        raise UsageError(
            f"--batch-size is {config.batch_size}; expected at least {least}, as a batch norm takes no single image "
            f"(--accumulate {config.accumulate}, processes: {world.size})"
        )
    return 2


class _Items(Dataset[tuple[Tensor, int, int] | DataError]):
    """The images of an epoch by what `Batches._locate` says, transformed, with label and index.

    An error is handed on as an item, as one that a worker raises is printed with the worker's traceback.
    """

    def __init__(self, batches: Batches, epoch: int) -> None:
        self.batches = batches
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches.data)

    def __getitem__(self, place: tuple[int, ...]) -> tuple[Tensor, int, int] | DataError:
        data, crop, transform = self.batches.data, self.batches.crop, self.batches.transform
        index = place[0]
        with drawing_at(Draw.TRANSFORM, self.batches.seed, self.epoch, *place):
            if isinstance(data, PixelSet):
                pixels, label = data.pixels[index], int(data.labels[index])
            else:
                try:
                    pixels, label = data.read(index, crop=crop)
                except DataError as err:
                    return err
            return transform(pixels) if transform else pixels, label, index

    def collate(self, items: list[tuple[Tensor, int, int] | DataError]) -> list[Tensor] | DataError:
        """Stacks the images of a step; a private one may have none."""
        some = items or [self[(0,)]]
        if unread := next((item for item in some if isinstance(item, DataError)), None):
            return unread
        stacked: list[Tensor] = default_collate(some)
        return stacked if items else [each[:0] for each in stacked]
