"""How near an engine comes to eager float32: on which images, by how much, and whether that is near enough."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgcls.data.pixels import load_pixels
from imgcls.data.progress import show_progress
from imgcls.data.sources import open_source
from imgcls.errors import ImgclsError
from imgcls.evaluation.predict import rename_classes
from imgcls.evaluation.run import read_run_data
from imgcls.training.record import describe_source
from model.classifier import softmax
from model.engines.engine import Engine, Logits, Pixels
from model.engines.kinds import Precision
from model.engines.records import Comparison, Tolerance
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, GOLDEN_TOLERANCE, GoldenItem, parse_golden
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec

_HALF = Tolerance(probability_shift=0.02, top1_loss=0.005, accuracy_drop=0.005, golden=0.03)
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(probability_shift=0.001, top1_loss=0.001, accuracy_drop=0.002, golden=GOLDEN_TOLERANCE),
    "bf16": _HALF,
    "fp16": _HALF,
    "int8": Tolerance(probability_shift=0.05, top1_loss=0.01, accuracy_drop=0.01, golden=0.03),
}
BATCH = 16
_DIGITS = 4  # of what is recorded: the last bits differ between two machines


@dataclass(frozen=True)
class Images:
    """Images to compare on or to calibrate with: uint8 (N, C, H, W), labels (N,) where known, and what they are."""

    text: str
    pixels: Pixels
    labels: npt.NDArray[np.int64] | None = None


def load_split(
    run: Path, spec: ModelSpec, *, split: str, limit: int, on_problem: Callable[[str], None]
) -> Images | None:
    """Loads images of a run's own data, spread evenly over the split; None where the data is not at hand.

    Args:
        run: whose train_config.yaml names the data.
        spec: of the network.
        split: "train" or "val".
        limit: the most images to load.
        on_problem: told why there are none.
    """
    try:
        config = read_run_data(run)
        if config.data is None:
            on_problem("train_config.yaml names no data")
            return None
        source = open_source(
            config.data,
            seed=config.seed,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            download=False,
        )
        if split not in source.splits:
            on_problem(f"{config.data} has no {split} split")
            return None
        images = rename_classes(source.splits[split], spec.classes)
        places = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images)), dtype=int))
        chosen = replace(images, samples=tuple(images.samples[place] for place in places))
        loaded = load_pixels(chosen, spec)
    except ImgclsError as err:
        on_problem(str(err))
        return None
    kind = {"train": "training", "val": "validation"}[split]
    text = f"{len(loaded)} of {len(images)} {kind} images of {describe_source(config.data)}"
    return Images(text, loaded.pixels.numpy(), loaded.labels.numpy())


def read_golden(folder: Path) -> tuple[GoldenItem, ...]:
    """Reads the golden inputs of a staged archive."""
    golden = folder / GOLDEN_FOLDER
    return parse_golden((golden / EXPECTED_FILE).read_bytes(), read_file=lambda name: (golden / name).read_bytes())


def decode_golden(items: tuple[GoldenItem, ...], spec: ModelSpec) -> Images:
    """Decodes golden inputs."""
    pixels = np.stack([pixels_from_bytes(item.data, spec) for item in items])
    return Images(f"{len(items)} golden image{'' if len(items) == 1 else 's'}", pixels)


def run_all(engine: Engine, images: Images) -> Logits:
    """Returns an engine's logits (N, classes) of all images."""
    starts = range(0, len(images.pixels), BATCH)
    text = f"comparing {engine.kind.name}"
    return np.concatenate(
        [engine.run(images.pixels[at : at + BATCH]) for at in show_progress(starts, text, total=len(starts))]
    )


def compare(logits: Logits, reference: Logits, images: Images, *, temperature: float) -> Comparison:
    """Compares logits (N, classes) with those of eager float32 on the same images; probabilities as they are served."""
    probabilities, expected = (softmax(each, temperature=temperature) for each in (logits, reference))
    rows, best, eager_best = np.arange(len(logits)), logits.argmax(axis=1), reference.argmax(axis=1)
    is_right = None if images.labels is None else best == images.labels
    eager_is_right = None if images.labels is None else eager_best == images.labels
    return Comparison(
        compared_on=images.text,
        images=len(logits),
        largest_logit_difference=_round(np.abs(logits - reference).max()),
        top1_agreement=_round((best == eager_best).mean()),
        top1_loss=_round((expected[rows, eager_best] - expected[rows, best]).mean()),
        probability_shift=_round(np.abs(probabilities - expected)[rows, eager_best].mean()),
        accuracy=None if is_right is None else _round(is_right.mean()),
        reference_accuracy=None if eager_is_right is None else _round(eager_is_right.mean()),
    )


def find_fault(comparison: Comparison, tolerance: Tolerance) -> str | None:
    """Returns in what an engine is outside its tolerance, or None.

    Of accuracy one image's worth is always allowed: on few images it says nothing.
    """
    drop = round((comparison.reference_accuracy or 0) - (comparison.accuracy or 0), _DIGITS)
    one_image = 1 / max(1, comparison.images) + 10**-_DIGITS  # both accuracies are rounded
    limits = {
        "the probability of eager's best class moves": (comparison.probability_shift, tolerance.probability_shift),
        "its best class is less probable, as eager sees it,": (comparison.top1_loss, tolerance.top1_loss),
        "its accuracy is lower": (drop, max(tolerance.accuracy_drop, one_image)),
    }
    found = [f"{what} by {got:.4f}, at most {limit:.4f}" for what, (got, limit) in limits.items() if got > limit]
    return f"{'; '.join(found)} is accepted; on {comparison.compared_on}" if found else None


def _round(value: np.floating) -> float:
    return round(float(value), _DIGITS)
