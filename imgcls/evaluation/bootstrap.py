"""How sure a number is: percentile bootstrap over the images of a test set, seeded, not stratified.

Every number that depends only on a few integers an image (its true class, what was predicted, whether the five best
hold it) needs no resampled images: images that share these integers are one cell, and a resample is a multinomial draw
of the cells' counts. That is the plain bootstrap, exactly, at the cost of cells instead of images. AUROC depends on
every image's score; there the draw is one weight an image.

Not stratified, because the class mix of a test set is as much of a sample as its images are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.sparse import csr_array
from scipy.stats import binomtest

RESAMPLES = 2000
LEVEL = 0.95
TOP = 5
CELL_METRICS = ("accuracy", "top5", "precision_macro", "recall_macro", "f1_macro")
WEIGHTED = ("precision_weighted", "recall_weighted", "f1_weighted")
PROPORTIONS = ("accuracy", "top5")

_CHUNK = 4_000_000  # numbers held at once
_AUROC_WORK = 100_000_000  # resamples x images x classes that are worth waiting for: some seconds
_FEWEST = 200

Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Interval(BaseModel):
    """Where a number lies with 95 % confidence; `method` is bootstrap or, where that says nothing, wilson or tango."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    method: str = "bootstrap"
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Answers:
    """What one model said of N images: its best class (N,), and whether the five best hold the true one, bool (N,)."""

    predicted: Labels
    in_top: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, labels: Labels, probabilities: npt.NDArray[np.float32]) -> "Answers":
        """Reads them off labels (N,) and probabilities (N, classes); of equal ones the first is best, as in argmax."""
        own = probabilities[np.arange(len(labels)), labels][:, None]
        is_earlier = np.arange(probabilities.shape[1]) < labels[:, None]
        better = (probabilities > own) | ((probabilities == own) & is_earlier)
        return cls(probabilities.argmax(axis=1), better.sum(axis=1) < TOP)

    def take(self, places: npt.NDArray[np.intp]) -> "Answers":
        """Returns those of some images."""
        return Answers(self.predicted[places], self.in_top[places])


def score(labels: Labels, answers: Answers, *, classes: int) -> dict[str, float]:
    """Returns the CELL_METRICS and WEIGHTED averages of one model."""
    cells, counts = _count_cells(labels, [answers])
    return {
        name: float(value[0]) for name, value in _score_cells(cells, counts[None], model=0, classes=classes).items()
    }


def bootstrap_scores(
    labels: Labels, answers: Sequence[Answers], *, classes: int, seed: int = 0, resamples: int = RESAMPLES
) -> list[dict[str, Floats]]:
    """Resamples the images, for all models the same ones, so that differences between them are paired.

    Returns:
        For each model the CELL_METRICS and WEIGHTED averages, (resamples,) each.
    """
    cells, counts = _count_cells(labels, answers)
    random = np.random.default_rng(seed)
    parts: list[list[dict[str, Floats]]] = [[] for _ in answers]
    for size in _cut(resamples, width=len(counts)):
        drawn = random.multinomial(int(counts.sum()), counts / counts.sum(), size=size)
        for place, found in enumerate(parts):
            found.append(_score_cells(cells, drawn, model=place, classes=classes))
    names = (*CELL_METRICS, *WEIGHTED)
    return [{name: np.concatenate([part[name] for part in found]) for name in names} for found in parts]


def measure_intervals(
    labels: Labels, answers: Answers, *, classes: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Returns the interval of each of the CELL_METRICS, and of the WEIGHTED averages.

    Where all or none are right every resample is the same; a proportion then gets Wilson's interval. Weighted recall is
    the accuracy, by its definition.
    """
    [drawn] = bootstrap_scores(labels, [answers], classes=classes, seed=seed, resamples=resamples)
    intervals = {name: find_interval(values) for name, values in drawn.items()}
    rights = {"accuracy": answers.predicted == labels, "top5": answers.in_top}
    for name in PROPORTIONS:
        if intervals[name].low == intervals[name].high:
            intervals[name] = find_wilson(int(rights[name].sum()), len(labels))
    intervals["recall_weighted"] = intervals["accuracy"]
    return intervals


def find_interval(values: Floats, *, level: float = LEVEL) -> Interval:
    """Returns the percentile interval of resampled values."""
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high), resamples=len(values))


def find_wilson(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    """Returns Wilson's interval of a proportion."""
    found = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(low=max(0.0, float(found.low)), high=min(1.0, float(found.high)), method="wilson", resamples=0)


def measure_auroc(labels: Labels, probabilities: npt.NDArray[np.float32]) -> float | None:
    """Returns the mean over the classes of one-versus-rest AUROC; None where no class has both sides."""
    values = _weigh_auroc(labels, probabilities, np.ones((1, len(labels)), dtype=np.int32))
    return None if values is None else float(values[0])


def bootstrap_auroc(
    labels: Labels,
    probabilities: Sequence[npt.NDArray[np.float32]],
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> list[Floats] | None:
    """Resamples the AUROC of each model, on the same images; fewer times for many images and classes.

    A resample that drew images of one class alone has no AUROC. It is left out, not counted as a model without skill.

    Returns:
        (resamples,) for each model, of the same resamples; None where it is not defined on the images themselves.
    """
    images, classes = probabilities[0].shape
    total = resamples or int(np.clip(_AUROC_WORK // (images * classes), _FEWEST, RESAMPLES))
    random = np.random.default_rng(seed)
    parts: list[list[Floats]] = [[] for _ in probabilities]
    for size in _cut(total, width=images):
        weights = random.multinomial(images, np.full(images, 1 / images), size=size).astype(np.int32)
        for place, each in enumerate(probabilities):
            values = _weigh_auroc(labels, each, weights)
            if values is None:
                return None
            parts[place].append(values)
    drawn = [np.concatenate(part) for part in parts]
    return [values[np.isfinite(values)] for values in drawn]


def _weigh_auroc(
    labels: Labels, probabilities: npt.NDArray[np.float32], weights: npt.NDArray[np.int32]
) -> Floats | None:
    """Returns AUROC under each row of weights (resamples, N); NaN where a row leaves images of one class alone.

    A class that a resample lacks is left out of its mean.
    """
    present = [index for index in np.unique(labels) if (labels != index).any()]
    if not present:
        return None
    values = np.stack([_weigh_one(labels == index, probabilities[:, index], weights) for index in present])
    counted = np.isfinite(values)
    sums = np.where(counted, values, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counted.sum(axis=0), dtype=np.float64)


def _weigh_one(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], weights: npt.NDArray[np.int32]
) -> Floats:
    """Counts, for each positive, the negatives below it and half of those beside it."""
    order = np.argsort(scores, kind="stable")
    ranked, is_positive = scores[order], positive[order]
    drawn = weights[:, order]
    negatives = np.zeros((len(weights), len(order) + 1), dtype=np.int32)
    np.cumsum(drawn * ~is_positive, axis=1, out=negatives[:, 1:])
    places = np.flatnonzero(is_positive)
    below = negatives[:, np.searchsorted(ranked, ranked[places], "left")]
    up_to = negatives[:, np.searchsorted(ranked, ranked[places], "right")]
    own = drawn[:, places].astype(np.float64)
    pairs = own.sum(axis=1) * negatives[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((own * (below + up_to)).sum(axis=1) / 2 / pairs, dtype=np.float64)


def _cut(resamples: int, *, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // width)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _count_cells(labels: Labels, answers: Sequence[Answers]) -> tuple[Counts, Counts]:
    """Returns the distinct cells, (cells, 1 + 2 a model), and how many images each has."""
    columns = [column for each in answers for column in (each.predicted, each.in_top.astype(np.int64))]
    cells, counts = np.unique(np.stack([labels, *columns], axis=1), axis=0, return_counts=True)
    return cells.astype(np.int64), counts.astype(np.int64)


def _score_cells(cells: Counts, counts: Counts, *, model: int, classes: int) -> dict[str, Floats]:
    """Counts (resamples, cells) -> CELL_METRICS and WEIGHTED, (resamples,) each, as scikit-learn defines them."""
    true, predicted, in_top = cells[:, 0], cells[:, 1 + 2 * model], cells[:, 2 + 2 * model]
    total = counts.sum(axis=1)
    right = counts * (true == predicted)
    hits, support, claims = (
        _sum_by_class(values, by, classes=classes)
        for values, by in ((right, true), (counts, true), (counts, predicted))
    )
    present = support > 0
    by_class = {
        "precision": hits / claims.clip(min=1),
        "recall": hits / support.clip(min=1),
        "f1": 2 * hits / (support + claims).clip(min=1),
    }
    return {
        "accuracy": right.sum(axis=1) / total,
        "top5": (counts * in_top).sum(axis=1) / total,
        **{f"{name}_macro": (values * present).sum(axis=1) / present.sum(axis=1) for name, values in by_class.items()},
        **{f"{name}_weighted": (values * support).sum(axis=1) / total for name, values in by_class.items()},
    }


def _sum_by_class(values: Counts, by: Counts, *, classes: int) -> Counts:
    """Sums columns by class: (resamples, cells) -> (resamples, classes)."""
    indicator = csr_array((np.ones(len(by), dtype=np.int64), (np.arange(len(by)), by)), shape=(len(by), classes))
    return np.asarray(values @ indicator)
