"""From images to probabilities, through the same Classifier that serves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imgcls.data.images import ImageSet, Perturb, Problem, Sample
from imgcls.data.pixels import estimate_bytes, load_pixels
from imgcls.data.progress import show_progress
from imgcls.errors import DataError
from model.classifier import Classifier

_MEMORY_BYTES = 1 << 30  # of pixels held at once


@dataclass(frozen=True)
class Predictions:
    """The answers for one test set: samples and labels (N,), probabilities (N, classes), and what was left out."""

    samples: tuple[Sample, ...]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    problems: tuple[Problem, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The samples' names."""
        return tuple(sample.name for sample in self.samples)


def predict_probabilities(
    classifier: Classifier, pixels: Tensor, *, batch_size: int = 256, progress: bool = True, text: str = "predicting"
) -> npt.NDArray[np.float32]:
    """uint8 (N, C, H, W) -> probabilities (N, classes); NaN where the network answers so."""
    batches = torch.split(pixels, batch_size)
    return np.concatenate(
        [classifier.probabilities(batch) for batch in show_progress(batches, text, total=len(batches), show=progress)]
    )


def predict_images(
    classifier: Classifier,
    images: ImageSet,
    *,
    perturb: Perturb | None = None,
    batch_size: int = 256,
    strict: bool = False,
    progress: bool = True,
    memory_bytes: int = _MEMORY_BYTES,
) -> Predictions:
    """Decodes and classifies a split, a stretch that fits into memory at a time.

    Raises:
        DataError: nothing in a stretch could be decoded, or, where strict, something could not.
    """
    parts = []
    for stretch in _cut(images, estimate_bytes(images, classifier.spec), memory_bytes=memory_bytes):
        loaded = load_pixels(stretch, classifier.spec, perturb=perturb, strict=strict, progress=progress)
        answers = predict_probabilities(
            classifier, loaded.pixels, batch_size=batch_size, progress=progress, text=f"predicting {images.name}"
        )
        left_out = {problem.name for problem in loaded.problems}
        samples = tuple(sample for sample in stretch.samples if sample.name not in left_out)
        parts.append(Predictions(samples, loaded.labels.numpy(), answers, loaded.problems))
    return _join(parts)


def rename_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Returns the split with its labels as indices into `classes`, matched by name.

    Raises:
        DataError: the split has images of a class that is not among them.
    """
    index = {name: position for position, name in enumerate(classes)}
    unknown = [name for name, count in images.count_classes().items() if count and name not in index]
    if unknown:
        raise DataError(
            f"{images.name} has images of {', '.join(map(repr, unknown[:5]))}{', …' if len(unknown) > 5 else ''}, "
            f"which the run was not trained on; expected a subset of its {len(index)} classes, such as {classes[0]!r}"
        )
    samples = tuple(replace(sample, label=index[images.classes[sample.label]]) for sample in images.samples)
    return ImageSet(images.name, tuple(classes), samples)


def _cut(images: ImageSet, size_bytes: int, *, memory_bytes: int) -> Iterator[ImageSet]:
    """Yields even stretches: a short last one could consist of bad files only, and fail for no good reason."""
    count = max(1, -(-size_bytes // memory_bytes))
    for places in np.array_split(np.arange(len(images)), min(count, len(images))):
        yield replace(images, samples=tuple(images.samples[place] for place in places))


def _join(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        samples=tuple(sample for part in parts for sample in part.samples),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        problems=tuple(problem for part in parts for problem in part.problems),
    )
