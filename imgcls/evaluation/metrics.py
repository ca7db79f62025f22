"""From labels and probabilities to numbers, with the interval that each lies in; pure.

The numbers are scikit-learn's; intervals are `bootstrap`'s, calibration `calibration`'s.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from imgcls.evaluation.bootstrap import (
    TOP,
    Answers,
    Interval,
    bootstrap_auroc,
    find_interval,
    measure_auroc,
    measure_intervals,
    score,
)
from imgcls.evaluation.calibration import ReliabilityBin, measure_ece, measure_reliability
from model.errors import NumericError


class ClassMetrics(BaseModel):
    """The numbers of one class; `support` is how many images of it the test set has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: float
    recall: float
    f1: float
    support: int


class TestMetrics(BaseModel):
    """The numbers of one test set; all but `loss` lie in 0..1, and are 0 where they are not defined.

    `loss` is the mean cross-entropy, in nats. Macro averages weigh alike every class that the test set has, weighted
    ones by the number of its images. `confusion` has a row for each true and a column for each predicted class, in the
    order of `per_class`, which is the order of the run's classes. `top5` is None for five classes or fewer, of which it
    is always 1; `auroc` is the macro average of one class against the rest, None where the set has one class only.
    `ece` is the expected calibration error over the 15 bins of `reliability`. `intervals` are by the metric's name.
    """

    __test__: ClassVar[bool] = False  # pytest would collect a class of this name

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    accuracy: float
    loss: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    per_class: dict[str, ClassMetrics]
    confusion: list[list[int]]
    top5: float | None = None
    auroc: float | None = None
    ece: float | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    reliability: list[ReliabilityBin] = Field(default_factory=list)


def compute_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], *, classes: Sequence[str], seed: int = 0
) -> TestMetrics:
    """Computes the numbers of one test set.

    Args:
        labels: (N,), the index of each true class.
        probabilities: (N, classes); each row sums to 1.
        classes: the names.
        seed: of the resamples.

    Raises:
        NumericError: a probability is NaN or infinite.
    """
    require_finite(probabilities)
    predicted = probabilities.argmax(axis=1)
    every = range(len(classes))
    answers = Answers.of(labels, probabilities)
    intervals = measure_intervals(labels, answers, classes=len(classes), seed=seed)
    resampled = bootstrap_auroc(labels, [probabilities], seed=seed)
    if resampled:
        intervals["auroc"] = find_interval(resampled[0])
    has_top = len(classes) > TOP
    reliability = measure_reliability(labels, probabilities)
    return TestMetrics(
        samples=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        loss=measure_loss(labels, probabilities),
        **_average(labels, predicted, how="macro"),
        **_average(labels, predicted, how="weighted"),
        per_class=_measure_classes(labels, predicted, classes=classes),
        confusion=confusion_matrix(labels, predicted, labels=every).tolist(),
        top5=score(labels, answers, classes=len(classes))["top5"] if has_top else None,
        auroc=measure_auroc(labels, probabilities),
        ece=measure_ece(reliability),
        intervals={name: each for name, each in intervals.items() if has_top or name != "top5"},
        reliability=reliability,
    )


def measure_loss(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> float:
    """Returns the mean cross-entropy, in nats, of probabilities (N, classes); 0 counts as float64's epsilon."""
    exact = probabilities.astype(np.float64)  # log_loss warns of rows that sum to 1 only within float32
    return float(log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=range(probabilities.shape[1])))


def require_finite(probabilities: npt.NDArray[np.float32]) -> None:
    """Raises NumericError where an answer, a row, is NaN or infinite: it would count as one of the first class."""
    broken = int((~np.isfinite(probabilities).all(axis=1)).sum())
    if broken:
        raise NumericError(f"{broken} of {len(probabilities)} answers are NaN or infinite; train again, more gently")


def _average(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], *, how: str) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=np.unique(labels), average=how, zero_division=0
    )
    return {f"precision_{how}": float(precision), f"recall_{how}": float(recall), f"f1_{how}": float(f1)}


def _measure_classes(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], *, classes: Sequence[str]
) -> dict[str, ClassMetrics]:
    columns = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    return {
        name: ClassMetrics(precision=float(precision), recall=float(recall), f1=float(f1), support=int(support))
        for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
    }
