"""SimpleCNN: the reference classifier, the network of the published listing with its numbers made parameters."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from torch import Tensor, nn

from model.errors import SpecError
from model.written import Written

Width = Annotated[int, Field(ge=1)]


class SimpleCNNParameters(Written):
    """Parameters of `simple_cnn`; the defaults are those of the published listing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (32,)
    convolutions: Width = 1
    hidden: Width = 10
    norm: Literal["none", "batch"] = "none"
    pooling: Literal["last", "first"] = "last"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SimpleCNN(nn.Module):
    """The reference classifier: blocks of 3x3 convolution, ReLU and 2x2 max pooling, then two linear layers.

    The published listing is one block of 32 channels for 16 x 16 RGB images and ten classes, with the 32*8*8 features
    of that size written into it. Here input channels, size, widths, number of blocks and classes are parameters.
    More `convolutions` of a block follow its pooling, each with a ReLU; `norm="batch"` puts a batch norm before every
    ReLU of a block, and `pooling="first"` the pooling before both, which then have a quarter of the values to work on;
    `dropout` acts before the last layer.

    Args:
        channels: of the input image.
        size: side of the input in pixels; at least 2 ** len(widths), as each block halves it.
        classes: how many logits come out.
        widths: output channels of each block.
        convolutions: in each block, the first before its pooling.
        hidden: width of the layer between features and logits.
        norm: whether the blocks have batch norms.
        pooling: "last" of its block's convolution, norm and ReLU, or "first" after the convolution.
        dropout: probability.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        widths: Sequence[int] = (32,),
        convolutions: int = 1,
        hidden: int = 10,
        norm: Literal["none", "batch"] = "none",
        pooling: Literal["last", "first"] = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = size >> len(widths)
        if side < 1:
            raise SpecError(
                f"parameters.widths has {len(widths)} blocks; expected at most {size.bit_length() - 1}, "
                f"as each halves the input of size {size}"
            )
        blocks = [
            make_block(a, b, convolutions=convolutions, norm=norm, pooling=pooling)
            for a, b in zip((channels, *widths), widths, strict=False)
        ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, channels, size, size) -> logits (B, classes)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def make_block(
    channels_in: int,
    channels_out: int,
    *,
    convolutions: int,
    norm: Literal["none", "batch"],
    pooling: Literal["last", "first"],
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Returns 3x3 convolutions, each with its norm and its activation, and after the first a 2x2 max pooling.

    (B, channels_in, H, W) -> (B, channels_out, H // 2, W // 2).
    """
    layers: list[nn.Module] = []
    for number in range(convolutions):
        width_in = channels_out if number else channels_in
        layers.append(nn.Conv2d(width_in, channels_out, kernel_size=3, padding=1, bias=norm == "none"))
        norms: list[nn.Module] = [nn.BatchNorm2d(channels_out)] if norm == "batch" else []
        pool: list[nn.Module] = [] if number else [nn.MaxPool2d(2)]
        layers += [*pool, *norms, activation()] if pooling == "first" else [*norms, activation(), *pool]
    return nn.Sequential(*layers)
