"""Whether probabilities mean what they say: calibration error, the bins of a reliability diagram, and a temperature.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
"""

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from imgcls.errors import DataError
from imgcls.evaluation.bootstrap import find_wilson

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # of a temperature; beyond, the network is broken rather than too sure


class ReliabilityBin(BaseModel):
    """The images whose best class has a probability in (low, high], and how often that class was right.

    `accuracy_low` and `accuracy_high` are Wilson's 95 % interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def measure_reliability(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], *, bins: int = BINS
) -> list[ReliabilityBin]:
    """Sorts images into bins of equal width by the probability (N, classes) of their best class; without empty bins."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        _describe_bin(place, confidence[places == place], right[places == place], bins=bins)
        for place in np.unique(places)
    ]


def measure_ece(bins: list[ReliabilityBin]) -> float:
    """Returns the expected calibration error: the mean over images of |accuracy - confidence| of their bin."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / images


def measure_nll(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, temperature: float) -> float:
    """Returns the mean negative log-likelihood, in nats, of logits (N, classes) divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    own = scaled[np.arange(len(labels)), labels]
    return float((logsumexp(scaled, axis=1) - own).mean())


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Returns the temperature of least negative log-likelihood, where it lies between LOWEST and HIGHEST.

    The loss is convex in 1 / temperature, so that a search by sections finds its minimum, if it has one. It has none
    where every image is right: then it falls to 0 with the temperature; or where the true class is no likelier than
    others.

    Raises:
        DataError: it has none between the two; the message leaves what to do to the caller.
    """
    if _find_slope(logits, labels, temperature=LOWEST) <= 0:
        if (logits.argmax(axis=1) == labels).all():
            raise DataError(f"all {len(labels)} images are right: no finite temperature fits them")
        raise DataError(f"the temperature that fits best is at or below {LOWEST:g}; expected one above it")
    if _find_slope(logits, labels, temperature=HIGHEST) >= 0:
        raise DataError(f"the temperature that fits best is at or above {HIGHEST:g}; expected one below it")
    found = minimize_scalar(
        lambda log: measure_nll(logits, labels, temperature=float(np.exp(log))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(np.exp(found.x))


def _find_slope(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, temperature: float) -> float:
    """Returns the derivative of the mean loss by 1 / temperature: the mean logit less the true class's."""
    exact = logits.astype(np.float64)
    expected = (softmax(exact / temperature, axis=1) * exact).sum(axis=1)
    return float((expected - exact[np.arange(len(labels)), labels]).mean())


def _describe_bin(
    place: int, confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], *, bins: int
) -> ReliabilityBin:
    interval = find_wilson(int(right.sum()), len(right))
    return ReliabilityBin(
        low=place / bins,
        high=(place + 1) / bins,
        images=len(right),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
        accuracy_low=interval.low,
        accuracy_high=interval.high,
    )
