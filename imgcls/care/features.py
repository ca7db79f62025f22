"""What a trained network makes of its training images just before its last layer: the features that screens look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from imgcls.data.images import Problem
from imgcls.data.sources import open_source
from imgcls.errors import DataError, RunError, UsageError
from imgcls.evaluation.predict import predict_images, rename_classes
from imgcls.evaluation.run import CONFIG_FILE, choose_device, read_run_data
from imgcls.training.head import find_head
from model.classifier import Classifier
from model.engines.eager import EagerEngine

SIDE = 16  # of thumbnails, in pixels


@dataclass(frozen=True)
class Features:
    """The images of a split, as a network sees them.

    Attributes:
        source: the source string.
        classes: of the run.
        names: of the images, N of them.
        labels: int64 (N,).
        values: float32 (N, D), what comes into the last layer.
        thumbnails: uint8 (N, P), the pixels at a side of at most SIDE, which no training has touched.
        problems: what could not be decoded.
    """

    source: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    thumbnails: npt.NDArray[np.uint8]
    problems: tuple[Problem, ...]


def read_features(run: Path, *, data: str | None = None, device: str = "auto", progress: bool = True) -> Features:
    """Runs a run's network on the training split, drawn as the run drew it.

    Args:
        run: a run directory.
        data: a source string; None for what the run was trained on.
        device: auto, cpu or cuda.
        progress: show bars on a terminal.

    Raises:
        UsageError, DataError, RunError, ModelError: as each says.
    """
    config = read_run_data(run)
    text = data or config.data
    if text is None:
        raise RunError(f"{run}: {CONFIG_FILE} names no data; say where the training images are with --data SOURCE")
    source = open_source(
        text,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        plain=data is not None,
    )
    source.require("train")
    classifier = Classifier.load(run, device=choose_device(device))
    found: list[npt.NDArray[np.float32]] = []
    small: list[npt.NDArray[np.uint8]] = []

    def remember(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].flatten(1).float().cpu().numpy())

    def shrink(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        side = min(SIDE, inputs[0].shape[-1])
        pixels = functional.adaptive_avg_pool2d(inputs[0].float(), side)
        small.append(pixels.flatten(1).round().to(torch.uint8).cpu().numpy())

    network, head = _find_layers(classifier, run)
    watched = head.register_forward_pre_hook(remember), network.register_forward_pre_hook(shrink)
    try:
        images = rename_classes(source.splits["train"], classifier.spec.classes)
        answers = predict_images(classifier, images, progress=progress)
    except DataError as err:
        raise DataError(f"{text}: {err}") from err
    finally:
        for hook in watched:
            hook.remove()
    return Features(
        source=text,
        classes=classifier.spec.classes,
        names=answers.names,
        labels=answers.labels,
        values=np.concatenate(found),
        thumbnails=np.concatenate(small),
        problems=(*source.problems, *answers.problems),
    )


def _find_layers(classifier: Classifier, run: Path) -> tuple[nn.Module, nn.Module]:
    """Returns what takes the pixels, and what makes the logits."""
    if not isinstance(classifier.engine, EagerEngine):
        raise RunError(f"{run}: is not run by PyTorch itself; expected a run directory")
    try:
        return classifier.engine.module, find_head(classifier.engine.module.network)
    except UsageError as err:
        raise UsageError(f"{run}: its network has no last layer of its own, whose inputs could be screened") from err
