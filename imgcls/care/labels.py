"""Suspicious labels, by cleanlab, from probabilities of a model that has not seen the image.

Without a run, a small network is trained on the images at SIDE pixels, by cross-validation over all of them. It learns
digits and simple objects; where it is right too rarely, its doubt means nothing, and that is said instead of a list. A
run's own network is better, but has seen its training images: its answers are asked for the other splits only.

Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, arXiv:1911.00068.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.care.examine import Examined
from imgcls.care.findings import Finding
from imgcls.care.pictures import show
from imgcls.data.progress import show_progress
from imgcls.errors import DataError

SIDE = 16
FOLDS = 5
LIMIT = 20_000  # images that the small network is trained on
WEAKEST = 0.6  # cross-validated accuracy; below, its doubt is not told
HIDDEN = 128

Probabilities = npt.NDArray[np.float64]


def find_label_issues(
    images: Sequence[Examined], classes: Sequence[str], *, run: Path | None = None, progress: bool = True
) -> tuple[list[Finding] | None, list[str]]:
    """Finds labels that a model does not believe, the least believed first.

    Args:
        images: of all splits.
        classes: of the source.
        run: a run directory to ask, on the splits that it was not trained on.
        progress: show bars on a terminal.

    Returns:
        The findings, None where nothing could be asked; and notes on how they were found or why not.

    Raises:
        DataError, ModelError: the run cannot be asked, or answers with NaN or infinity.
    """
    index = {name: place for place, name in enumerate(classes)}
    if run:
        chosen = [image for image in images if image.split != "train"]
        if not chosen:
            return None, ["labels were not checked: the source has training images only, which the run has seen"]
        probabilities = _ask_run(run, chosen, classes, progress=progress)
        how = f"the run {run.resolve().name}, on the splits it was not trained on"
    else:
        chosen = _thin(images)
        labels = np.array([index[image.label] for image in chosen])
        fewest = min(Counter(labels.tolist()).values())
        if fewest < 2 or len(set(labels.tolist())) < 2:
            return None, ["labels were not checked: a class has a single image, or there is only one class"]
        folds = min(FOLDS, fewest)
        probabilities = _cross_validate(chosen, labels, classes=len(classes), folds=folds, progress=progress)
        how = f"a small network at {SIDE} pixels, cross-validated"
    labels = np.array([index[image.label] for image in chosen])
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    if accuracy < WEAKEST:
        return None, [
            f"labels were not checked: {how} is right about {accuracy:.0%} only, and its doubt would say nothing; "
            "give a trained run with --run"
        ]
    found = _ask_cleanlab(labels, probabilities)
    findings = [_describe(chosen[place], probabilities[place], classes, label=int(labels[place])) for place in found]
    return findings, [f"labels were checked by {how}, which agrees with {accuracy:.1%} of {len(chosen):,}"]


def _ask_cleanlab(labels: npt.NDArray[np.int64], probabilities: Probabilities) -> list[int]:
    """Returns the places of suspicious labels; cleanlab wants labels without gaps."""
    from cleanlab.filter import find_label_issues as find

    present = np.unique(labels)
    rows = probabilities[:, present] + 1e-9
    dense = np.searchsorted(present, labels)
    ranked = find(dense, rows / rows.sum(axis=1, keepdims=True), return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(place) for place in ranked]


def _ask_run(run: Path, images: Sequence[Examined], classes: Sequence[str], *, progress: bool) -> Probabilities:
    from imgcls.data.images import ImageSet
    from imgcls.evaluation.metrics import require_finite
    from imgcls.evaluation.predict import predict_images, rename_classes
    from model.classifier import Classifier

    classifier = Classifier.load(run)
    as_set = ImageSet("images", tuple(classes), tuple(image.sample for image in images))
    answered = predict_images(classifier, rename_classes(as_set, classifier.spec.classes), progress=progress)
    if len(answered.labels) != len(images):
        raise DataError(f"{len(images) - len(answered.labels)} images changed while they were read; run it again")
    require_finite(answered.probabilities)
    columns = {name: place for place, name in enumerate(classifier.spec.classes)}
    places = [columns.get(name) for name in classes]
    rows = [np.zeros(len(images)) if place is None else answered.probabilities[:, place] for place in places]
    return np.asarray(np.stack(rows, axis=1), dtype=np.float64)


def _cross_validate(
    images: Sequence[Examined], labels: npt.NDArray[np.int64], *, classes: int, folds: int, progress: bool
) -> Probabilities:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = np.stack(
        [_shrink(image.open()) for image in show_progress(images, "checking labels", total=len(images), show=progress)]
    )
    answers = np.zeros((len(images), classes))
    for seen, unseen in StratifiedKFold(folds, shuffle=True, random_state=0).split(pixels, labels):
        network = make_pipeline(
            StandardScaler(),
            MLPClassifier((HIDDEN,), alpha=0.01, batch_size=min(64, len(seen)), max_iter=40, tol=0, random_state=0),
        )
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # it stops after its epochs
            network.fit(pixels[seen], labels[seen])
        answers[np.ix_(unseen, network.classes_)] = network.predict_proba(pixels[unseen])
    return answers


def _shrink(image: Image.Image) -> npt.NDArray[np.float32]:
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX if min(image.size) > SIDE else Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).reshape(-1) / np.float32(255)


def _thin(images: Sequence[Examined]) -> list[Examined]:
    places = np.unique(np.linspace(0, len(images) - 1, min(LIMIT, len(images)), dtype=int))
    return [images[place] for place in places]


def _describe(image: Examined, row: Probabilities, classes: Sequence[str], *, label: int) -> Finding:
    best = int(row.argmax())
    note = f"looks like {classes[best]} ({row[best]:.0%}); its label has {row[label]:.0%}"
    return Finding(kind="labels", detail=f"labelled {image.label}, {note}", images=[show(image, note=note)])
