"""WhitenedCNN: a small classifier that learns in few epochs, as the fastest known ones for CIFAR-10 do.

Its first convolution is not learned but computed: it takes from the pixels of each 2x2 patch what neighbours have in
common, so that the blocks behind it start with inputs of one size, none of which tells what another does. Its last
feature map is not flattened: of each channel the largest value counts, wherever it stands. And it may look at an image
more than once, mirrored and moved, and say what it makes of all of that (test-time augmentation).

Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498, and Page, "How to Train Your
ResNet".
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from model.errors import SpecError
from model.simple_cnn import Width, make_block
from model.written import Written

PATCH = 2  # side, in pixels
SMALLEST_VARIANCE = 5e-4  # added to each, of normalised pixels: what varies less is noise, not to be blown up
LOGIT_SCALE = 0.2  # of what the last layer says: without it the first steps are too sure

Views = Literal[1, 2, 6]


class WhitenedCNNParameters(Written):
    """Parameters of `whitened_cnn`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 256, 256)
    convolutions: Width = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    views: Views = 1


class WhitenedCNN(nn.Module):
    """A whitening 2x2 convolution, blocks of 3x3 convolutions, the largest value of each channel, one linear layer.

    The pooling of a block comes after its first convolution; a batch norm and a GELU follow each.

    Args:
        channels: of the input image.
        size: side of the input in pixels; at least 2 ** len(widths) + 1, as the first convolution takes one and each
            block halves the rest.
        classes: how many logits come out.
        widths: output channels of each block.
        convolutions: in each block.
        dropout: probability, before the last layer.
        views: of an image, over which the logits are averaged outside training: 1 as it is, 2 mirrored too, 6 each of
            these moved by a pixel to either side too, which then count half.
    """

    whitening: Tensor  # (8 * channels, channels, 2, 2); a buffer, as it is computed from images and not learned

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        widths: Sequence[int] = (64, 256, 256),
        convolutions: int = 2,
        dropout: float = 0.0,
        views: Views = 1,
    ) -> None:
        super().__init__()
        if (size - PATCH + 1) >> len(widths) < 1:
            raise SpecError(
                f"parameters.widths has {len(widths)} blocks; expected at most {max(size - 1, 1).bit_length() - 1}, "
                f"as each halves the {size - 1} pixels that the first convolution leaves of {size}"
            )
        values = channels * PATCH**2
        self.register_buffer("whitening", _as_filters(torch.eye(values), channels=channels))
        self.offset = nn.Parameter(torch.zeros(2 * values))
        blocks = [
            make_block(a, b, convolutions=convolutions, norm="batch", pooling="first", activation=nn.GELU)
            for a, b in zip((2 * values, *widths), widths, strict=False)
        ]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], classes)
        self.views = views

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, channels, size, size) -> logits (B, classes)."""
        if self.training or self.views == 1:
            return self._classify(images)
        seen, weights = _look(images, views=self.views)
        logits = self._classify(torch.cat(seen)).view(len(seen), -1, self.classifier.out_features)
        mean: Tensor = torch.tensordot(logits.new_tensor(weights), logits, dims=1)
        return mean

    def _classify(self, images: Tensor) -> Tensor:
        patches = functional.gelu(functional.conv2d(images, self.whitening, self.offset))
        largest = self.features(patches).amax((2, 3))  # (B, widths[-1])
        logits: Tensor = self.classifier(self.dropout(largest)) * LOGIT_SCALE
        return logits

    @torch.no_grad()
    def whiten(self, batches: Iterable[Tensor]) -> None:
        """Computes the first convolution from batches of images, float32 (B, channels, H, W), as the network gets them.

        Its filters are the eigenvectors of the covariance of their patches, each over the root of its eigenvalue, and
        the negatives of these, as a GELU would lose one half of each.
        """
        channels = self.whitening.shape[1]
        products, count = torch.zeros(channels * PATCH**2, channels * PATCH**2, dtype=torch.float64), 0
        for images in batches:
            patches = functional.unfold(images.double(), PATCH)  # (B, channels * 4, places)
            products += torch.einsum("nip,njp->ij", patches, patches).cpu()
            count += patches.shape[0] * patches.shape[2]
        variances, directions = torch.linalg.eigh(products / count)  # ascending; a direction a column
        scaled = directions / (variances + SMALLEST_VARIANCE).sqrt()
        self.whitening.copy_(_as_filters(scaled.T.flip(0).float(), channels=channels))


def _look(images: Tensor, *, views: Views) -> tuple[list[Tensor], list[float]]:
    """Returns the views of images, the images themselves first, each (B, C, H, W), and what each counts, 1 in all."""
    seen, weights = [images], [1.0]
    if views == 6:
        height, width = images.shape[2:]
        padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
        seen += [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
        weights = [0.5, 0.25, 0.25]
    return [*seen, *(view.flip(3) for view in seen)], [weight / 2 for weight in weights * 2]


def _as_filters(rows: Tensor, *, channels: int) -> Tensor:
    """Returns each row, and each row's negative, as a filter: (2 * rows, channels, 2, 2)."""
    return torch.cat((rows, -rows)).view(-1, channels, PATCH, PATCH)
