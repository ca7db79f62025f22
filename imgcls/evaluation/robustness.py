"""How much accuracy a run keeps under the corruptions of ImageNet-C, on a part of a test set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from imgcls.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imgcls.data.images import ImageSet, count_files
from imgcls.data.pixels import PixelSet, load_pixels
from imgcls.data.progress import show_progress
from imgcls.errors import DataError, UsageError
from imgcls.evaluation.bootstrap import find_wilson
from imgcls.evaluation.metrics import require_finite
from imgcls.evaluation.opening import Tell
from imgcls.evaluation.predict import predict_probabilities
from imgcls.evaluation.reports import hash_weights
from imgcls.evaluation.robustness_record import Corrupted, Robustness
from imgcls.evaluation.run import choose_device, describe_left_out, name_images, open_tests
from imgcls.evaluation.stored import EVALUATION_FOLDER
from imgcls.files import refuse_unwritable, write_atomic
from model.classifier import Classifier

LIMIT = 300


def measure_robustness(
    run: Path,
    *,
    tests: dict[str, str],
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    limit: int = LIMIT,
    device: str = "auto",
    progress: bool = True,
    on_note: Tell = lambda _: None,
) -> dict[str, Robustness]:
    """Measures a run on corrupted test sets, and writes evaluation/NAME.robustness.json for each.

    Args:
        run: a run directory.
        tests: source strings by name; empty for the test split of the run's own data.
        corruptions: names of CORRUPTIONS; empty for all.
        severities: of 1 to 5; empty for all.
        limit: the most images of each test set, spread evenly over it.
        device: auto, cpu or cuda.
        progress: show a bar on a terminal.
        on_note: told, in a line, of each test set that was drawn, and of files that were left out.

    Raises:
        UsageError: a corruption or severity is unknown, or the run takes bands.
        DataError, RunError, ModelError: as `evaluate_run`.
    """
    names, levels = _choose(corruptions, severities)
    opened = open_tests(run, tests, on_note=on_note)
    classifier = Classifier.load(run, device=choose_device(device))
    if classifier.spec.ranges is not None:
        raise UsageError(
            f"{run}: takes bands, and ImageNet-C corrupts pictures; evaluate with ,noise= or ,blur= instead"
        )
    found = {}
    for test, (source, images) in opened.items():
        try:
            pixels = load_pixels(_thin(images, limit), classifier.spec, perturb=source.perturb, progress=progress)
        except DataError as err:
            raise DataError(f"{source.text}: {err}") from err
        problems = (*source.problems, *pixels.problems)
        for line in describe_left_out(test, problems):
            on_note(line)
        pairs = [(name, severity) for name in names for severity in levels]
        results = [
            _measure(classifier, pixels, name, severity)
            for name, severity in show_progress(pairs, f"corrupting {test}", total=len(pairs), show=progress)
        ]
        found[test] = Robustness(
            weights_sha256=hash_weights(run),
            source=source.text,
            images_sha256=name_images(source, images, progress=progress),
            samples=len(pixels),
            skipped=count_files(problems),
            clean=_count_right(classifier, pixels.pixels, pixels) / len(pixels),
            results=results,
        )
        folder = run / EVALUATION_FOLDER
        with refuse_unwritable(folder, advice="make room or mend permissions"):
            folder.mkdir(exist_ok=True)
            write_atomic(folder / f"{test}.robustness.json", found[test].model_dump_json(indent=1) + "\n")
    return found


def _choose(corruptions: Sequence[str], severities: Sequence[int]) -> tuple[list[str], list[int]]:
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise UsageError(f"--corruption is {name!r}; expected one of {', '.join(CORRUPTIONS)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UsageError(f"--severity is {severity}; expected 1 to 5")
    return list(dict.fromkeys(corruptions or CORRUPTIONS)), sorted(set(severities or SEVERITIES))


def _thin(images: ImageSet, limit: int) -> ImageSet:
    places = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images)), dtype=int))
    return replace(images, samples=tuple(images.samples[place] for place in places))


def _measure(classifier: Classifier, images: PixelSet, corruption: str, severity: int) -> Corrupted:
    changed = np.stack(
        [
            corrupt(each.numpy(), corruption, severity=severity, name=name)
            for each, name in zip(images.pixels, images.names, strict=True)
        ]
    )
    right = _count_right(classifier, torch.from_numpy(changed), images)
    return Corrupted(
        corruption=corruption,
        severity=severity,
        accuracy=right / len(images),
        interval=find_wilson(right, len(images)),
    )


def _count_right(classifier: Classifier, pixels: torch.Tensor, images: PixelSet) -> int:
    answers = predict_probabilities(classifier, pixels, progress=False)
    require_finite(answers)
    return int((answers.argmax(axis=1) == images.labels.numpy()).sum())
