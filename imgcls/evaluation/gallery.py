"""evaluation/NAME.gallery.json: small pictures of the worst mistakes and of the most confused pairs of classes.

Made while the test set is at hand, so that a report needs the images no more. The pictures are what the model was
shown, perturbed where the set is.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.data.images import Sample
from imgcls.errors import RunError
from model.bands import Bands
from model.errors import ImageError
from model.preprocess import decode_whole
from model.spec import ModelSpec

if TYPE_CHECKING:
    from imgcls.data.images import Perturb

WORST = 24
PAIRS = 8
EXAMPLES = 3
SIDE = 112  # pixels
_ENLARGED = 56  # a smaller picture is shown larger, in whole pixels


class Picture(BaseModel):
    """One mistake; `own` is the probability of the true class, `image` a data URI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str
    predicted: str
    probability: float
    own: float
    image: str


class Pair(BaseModel):
    """Images of class `label` that were taken for `predicted`, and their share of the class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    predicted: str
    count: int
    share: float
    examples: list[Picture]


class Gallery(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worst: list[Picture]
    pairs: list[Pair]


def make_gallery(
    samples: Sequence[Sample],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    *,
    spec: ModelSpec,
    perturb: "Perturb | None",
) -> Gallery:
    """Picks the mistakes with the least probability of the true class, and the pairs with the most mistakes."""
    predicted = probabilities.argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(own[wrong], kind="stable")]

    def show(place: int) -> Picture:
        return Picture(
            name=samples[place].name,
            label=spec.classes[labels[place]],
            predicted=spec.classes[predicted[place]],
            probability=float(probabilities[place, predicted[place]]),
            own=float(own[place]),
            image=make_thumbnail(samples[place], spec=spec, perturb=perturb),
        )

    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")[:PAIRS]
    return Gallery(
        worst=[show(place) for place in wrong[:WORST]],
        pairs=[
            Pair(
                label=spec.classes[pairs[row, 0]],
                predicted=spec.classes[pairs[row, 1]],
                count=int(counts[row]),
                share=float(counts[row] / (labels == pairs[row, 0]).sum()),
                examples=[show(place) for place in _find_pair(wrong, labels, predicted, pairs[row])[:EXAMPLES]],
            )
            for row in ranked
        ],
    )


def make_thumbnail(sample: Sample, *, spec: ModelSpec, perturb: "Perturb | None" = None) -> str:
    """Returns a small picture as a data URI; an empty one where the file went away since."""
    try:
        image = decode_whole(sample.read(), spec)
    except (ImageError, OSError):
        return ""
    image = perturb(image, zlib.crc32(sample.name.encode())) if perturb else image
    return encode_thumbnail(image.to_picture() if isinstance(image, Bands) else image)


def encode_thumbnail(image: Image.Image) -> str:
    """Shrinks a picture to at most SIDE, and enlarges a tiny one by whole numbers so that its pixels are seen."""
    is_tiny = max(image.size) <= _ENLARGED
    if is_tiny:
        factor = SIDE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    kind = "PNG" if is_tiny or image.mode == "RGBA" else "JPEG"
    image.save(buffer, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_gallery(path: Path) -> Gallery:
    """Reads a gallery.

    Raises:
        RunError: it is missing or broken.
    """
    try:
        return Gallery.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        raise RunError(f"{path}: cannot be read: {str(err).splitlines()[0]}; evaluate again") from err


def _find_pair(
    wrong: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.intp],
    pair: npt.NDArray[np.int64],
) -> npt.NDArray[np.intp]:
    found: npt.NDArray[np.intp] = wrong[(labels[wrong] == pair[0]) & (predicted[wrong] == pair[1])]
    return found
