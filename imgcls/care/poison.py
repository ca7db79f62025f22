"""Screens for images that were planted among the training images to give a network a back door.

    features of a class ─┬─ spectral signature ─► images that stand out along one direction
                         └─ activation clusters ─► a small part that lies apart ─► whose neighbours, as pictures, are
                                                   labelled otherwise ─► the class is suspect

A network that has learnt a trigger, such as a patch, sees its planted images otherwise than the rest of the class that
they are labelled as. Both screens look for that; neither proves anything.

Source: Tran et al., "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv:1811.00636; Chen et al., "Detecting
Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018, arXiv:1811.03728.
"""

import csv
import io
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from imgcls.care.features import Features

POISON_FILE = "poison.csv"
SHARE = 0.05  # of a class that may be planted
MARGIN = 1.5  # times that share is named by the spectral signature, as in its source
FEWEST = 30  # images without which a class is not judged
DIMENSIONS = 10  # that features are reduced to before they are clustered, as in their source
SLIGHTEST = 1e-6  # of the largest variance: a direction with less is none
MOST_COMPARED = 10_000  # images of a class among which the silhouette is measured, by all their distances
LEAST_SILHOUETTE = 0.3  # of 8 planted classes of ten digits 6 reach it, of 102 clean ones 9: docs/data-report.md
LARGEST_CLUSTER = 0.35  # of its class; where both clusters are large, a class merely has two looks

NEIGHBOURS = 5
MOST_OWN = 0.25  # of the neighbours' agreement in the rest of the class: a part that has less looks like another class
LOOKED_AT = 200  # images of the rest of a class whose neighbours are asked

Values = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(_Part):
    """An image that a screen names; `score` is its spectral one, in medians of its class."""

    name: str
    label: str
    reasons: tuple[Literal["cluster", "spectral"], ...]
    score: float


class ClassScreen(_Part):
    """What the screens found in one class; None where it has too few images, or features that are not finite.

    `neighbours` is the part of the small cluster's nearest images, as pictures, that have its label, as a multiple of
    that of the rest of the class; None where the cluster is too large, or not apart.
    """

    label: str
    images: int
    silhouette: float | None = None
    cluster_share: float | None = None
    neighbours: float | None = None
    is_suspect: bool = False
    named: tuple[Named, ...] = ()


class Screen(_Part):
    """The whole answer."""

    source: str
    unreadable: int
    share: float
    classes: tuple[ClassScreen, ...]

    @property
    def suspects(self) -> list[ClassScreen]:
        """The classes that are suspect."""
        return [each for each in self.classes if each.is_suspect]

    @property
    def unjudged(self) -> list[ClassScreen]:
        """The classes with too few images, or features that are not finite."""
        return [each for each in self.classes if each.silhouette is None]


def screen_features(features: Features, *, share: float = SHARE) -> Screen:
    """Screens each class of a run's training images.

    Args:
        features: of the images.
        share: of a class that may be planted, above 0 and below 0.5: the spectral signature names 1.5 times as many.
    """
    classes = []
    for index, label in enumerate(features.classes):
        places = np.flatnonzero(features.labels == index)
        classes.append(_screen_class(features, label, places, share=share))
    return Screen(
        source=features.source,
        unreadable=sum(problem.files for problem in features.problems),
        share=share,
        classes=tuple(classes),
    )


def score_spectral(values: Values) -> Values:
    """Returns how far each image of a class, (N, D), stands out along the direction in which it varies most, (N,).

    It is the squared projection of the centred features on their first right singular vector.
    """
    centred = values - values.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    scores: Values = (centred @ directions[0]) ** 2
    return scores


def cluster(values: Values) -> tuple[npt.NDArray[np.bool_], float]:
    """Cuts the images of a class, (N, D), in two; returns which are in the smaller part, (N,), and the silhouette.

    The cut is made where independent components have equal variance, so that a few planted images are not outweighed by
    two common looks of a class; how far apart the parts are is measured before that.
    """
    from sklearn.cluster import KMeans  # here, because it costs a second
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    if np.ptp(values, axis=0).max() == 0:  # all are the same to the network
        return np.zeros(len(values), dtype=bool), 0.0
    reduced = PCA(min(DIMENSIONS, *values.shape), random_state=0).fit_transform(values)
    spread = reduced.var(axis=0)
    reduced = reduced[:, spread > SLIGHTEST * spread[0]]
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # as far as it came is good enough
        whitened = FastICA(random_state=0, whiten="unit-variance").fit_transform(reduced)
    labels = KMeans(2, n_init=10, random_state=0).fit_predict(whitened)
    is_small = labels == np.bincount(labels, minlength=2).argmin()
    if len(np.unique(labels)) < 2:
        return np.zeros(len(values), dtype=bool), 0.0
    silhouette = silhouette_score(reduced, labels, sample_size=min(MOST_COMPARED, len(values)), random_state=0)
    return is_small, float(silhouette)


def format_named(screen: Screen) -> str:
    """Returns poison.csv: the named images, those of suspect classes first, and of a class the farthest first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "class", "class_is_suspect", "reason", "score"))
    for found in sorted(screen.classes, key=lambda each: not each.is_suspect):
        for each in found.named:
            suspect = "yes" if found.is_suspect else "no"
            writer.writerow((each.name, each.label, suspect, "+".join(each.reasons), f"{each.score:.4g}"))
    return text.getvalue()


def compare_neighbours(features: Features, places: Places, *, is_small: npt.NDArray[np.bool_]) -> float:
    """Returns how often a cluster's nearest images have its label, as a multiple of how often those of the rest do.

    It stands for Chen et al.'s reclassification by a network that is trained without the cluster: what was planted
    under a wrong label looks like the class that it was taken from. Its neighbours are looked for outside the cluster.
    """
    from sklearn.neighbors import NearestNeighbors

    label = features.labels[places[0]]
    inside, rest = places[is_small], places[~is_small]
    others = np.setdiff1d(np.arange(len(features.labels)), inside)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS + 1, len(others)), algorithm="brute")
    nearest.fit(features.thumbnails[others].astype(np.float32))

    def count_own(asked: Places, *, skip: int) -> float:
        found = nearest.kneighbors(features.thumbnails[asked].astype(np.float32), return_distance=False)
        return float((features.labels[others[found[:, skip:]]] == label).mean())

    some = rest[np.unique(np.linspace(0, len(rest) - 1, min(LOOKED_AT, len(rest)), dtype=int))]
    own = count_own(some, skip=1)  # the nearest is the image itself
    return count_own(inside, skip=0) / own if own else 1.0


def _screen_class(features: Features, label: str, places: Places, *, share: float) -> ClassScreen:
    names = [features.names[place] for place in places]
    values = features.values[places].astype(np.float64)
    if len(names) < FEWEST or not np.isfinite(values).all():
        return ClassScreen(label=label, images=len(names))
    scores = score_spectral(values)
    scores /= max(float(np.median(scores)), np.finfo(np.float64).tiny)
    farthest = np.argsort(-scores, kind="stable")
    is_far = np.zeros(len(names), dtype=bool)
    is_far[farthest[: round(MARGIN * share * len(names))]] = True
    is_small, silhouette = cluster(values)
    cluster_share = float(is_small.mean())
    neighbours = None
    if silhouette >= LEAST_SILHOUETTE and 0 < cluster_share <= LARGEST_CLUSTER:
        neighbours = compare_neighbours(features, places, is_small=is_small)
    is_suspect = neighbours is not None and neighbours <= MOST_OWN
    named = []
    for place in farthest:
        reasons: list[Literal["cluster", "spectral"]] = ["cluster"] if is_suspect and is_small[place] else []
        reasons += ["spectral"] if is_far[place] else []
        if reasons:
            named.append(Named(name=names[place], label=label, reasons=tuple(reasons), score=float(scores[place])))
    return ClassScreen(
        label=label,
        images=len(names),
        silhouette=silhouette,
        cluster_share=cluster_share,
        neighbours=neighbours,
        is_suspect=is_suspect,
        named=tuple(named),
    )
