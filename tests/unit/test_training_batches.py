"""Batches that a batch norm can take, and images that come again in an epoch."""

import pytest
import torch
from torch import nn

from imgcls.data.pixels import PixelSet
from imgcls.errors import UsageError
from imgcls.training.batches import Batch, Batches, choose_least_part
from imgcls.training.config import read_config
from imgcls.training.distributed import World
from imgcls.training.poisson import PoissonSampling

BATCH_NORM = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def make_batch(count: int) -> Batch:
    numbers = torch.arange(count)
    return Batch(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), numbers, numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("images", "parts", "least", "sizes"),
    [
        (4, 4, 1, [1, 1, 1, 1]),
        (4, 4, 2, [2, 2]),
        (3, 4, 1, [1, 1, 1]),
        (3, 4, 2, [3]),
        (5, 2, 2, [3, 2]),
        (64, 4, 2, [16] * 4),
        (0, 1, 1, [0]),
    ],
)
def test_a_batch_is_cut_into_parts_of_enough_images(images, parts, least, sizes):
    pieces = make_batch(images).split(parts, least=least)
    assert [len(piece.labels) for piece in pieces] == sizes
    assert torch.cat([piece.indices for piece in pieces]).tolist() == list(range(images))


def test_a_batch_too_small_for_a_batch_norm_is_refused():
    with pytest.raises(UsageError, match=r"--batch-size is 1; expected at least 2, as a batch norm takes no single"):
        choose_least_part(BATCH_NORM, configure("--batch-size", 1), World())
    shared = configure("--batch-size", 15, "--accumulate", 2)
    with pytest.raises(UsageError, match=r"expected at least 16, .* \(--accumulate 2, processes: 4\)"):
        choose_least_part(BATCH_NORM, shared, World(0, 4))
    assert choose_least_part(BATCH_NORM, configure("--batch-size", 1, "--resume"), World()) == 2
    assert choose_least_part(BATCH_NORM, configure("--batch-size", 16, "--accumulate", 2), World(0, 4)) == 2
    assert choose_least_part(nn.Linear(2, 2), configure("--batch-size", 1, "--accumulate", 2), World()) == 1


def test_a_last_batch_in_parts_never_leaves_a_batch_norm_one_image(tmp_path, train_photos):
    # 26 training images: the last batch of 2 would be two parts of one, on which this network's batch norms see 1 x 1.
    options = ("--network", "timm/resnet10t", "--size", 32, "--accumulate", 4)
    assert train_photos(tmp_path / "run", *options) == 0


class Noise:
    """A transform that makes noise of each image, as it is drawn."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.randint(256, pixels.shape, dtype=torch.uint8)


@pytest.mark.parametrize("repeats", [{"is_balanced": True}, {"sampling": PoissonSampling(40, 15)}])
def test_an_image_that_comes_again_within_an_epoch_is_transformed_anew(repeats):
    labels = torch.tensor([0] * 36 + [1] * 4)
    data = PixelSet("train", ("a", "b"), torch.zeros(40, 3, 8, 8, dtype=torch.uint8), labels, ("",) * 40, ())

    def draw(*, first: int = 0, rank: int = 0, processes: int = 1) -> list[tuple[int, int, bytes]]:
        batches = Batches(
            data, 30, shuffle=True, workers=0, transform=Noise(), rank=rank, processes=processes, **repeats
        )
        return [
            (step, int(place), pixels.numpy().tobytes())
            for step, batch in enumerate(batches.draw(1, first=first), start=first)
            for place, pixels in zip(batch.places, batch.pixels, strict=True)
        ]

    whole = draw()
    assert len({pixels for _, _, pixels in whole}) == len(whole)
    assert draw(first=1) == [drawn for drawn in whole if drawn[0] >= 1]
    assert sorted(draw(rank=0, processes=2) + draw(rank=1, processes=2)) == whole
