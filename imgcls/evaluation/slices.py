"""The same numbers for parts of a test set, by a column of its table: where is the model worse than on average?"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from imgcls.data.images import Sample
from imgcls.errors import DataError
from imgcls.evaluation.bootstrap import Answers, Interval, measure_intervals, score

MOST_VALUES = 50
QUANTILES = 4
_NUMERIC_FROM = 12  # distinct numbers; fewer are taken as they stand
_EMPTY = "(empty)"

Columns = dict[str, npt.NDArray[np.str_]]


class SliceMetrics(BaseModel):
    """The numbers of the images with one value of a column; `intervals` are by the metric's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    accuracy: float
    f1_macro: float
    intervals: dict[str, Interval]


def read_columns(samples: Sequence[Sample], names: Sequence[str], *, where: str) -> Columns:
    """Returns each column's values, (N,); one of many numbers is cut at its quartiles, what is empty stands alone.

    Raises:
        DataError: a column is not there, or has too many values.
    """
    known = sorted({key for sample in samples for key in sample.columns})
    for name in names:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none; only .csv, .jsonl and .tar sources do"
            raise DataError(f"{where}: has no column {name!r} to slice by; {has}")
    return {
        name: _read_column([sample.columns.get(name, "") for sample in samples], name, where=where) for name in names
    }


def measure_slices(
    labels: npt.NDArray[np.int64], answers: Answers, columns: Columns, *, classes: int, seed: int = 0
) -> dict[str, dict[str, SliceMetrics]]:
    """Returns the numbers by column and value, in the order of the values."""
    return {
        name: {
            str(value): _measure(labels, answers, np.flatnonzero(values == value), classes=classes, seed=seed)
            for value in np.unique(values)
        }
        for name, values in columns.items()
    }


def _measure(
    labels: npt.NDArray[np.int64], answers: Answers, places: npt.NDArray[np.intp], *, classes: int, seed: int
) -> SliceMetrics:
    own, own_answers = labels[places], answers.take(places)
    numbers = score(own, own_answers, classes=classes)
    intervals: Mapping[str, Interval] = measure_intervals(own, own_answers, classes=classes, seed=seed)
    return SliceMetrics(
        samples=len(places),
        accuracy=numbers["accuracy"],
        f1_macro=numbers["f1_macro"],
        intervals={name: intervals[name] for name in ("accuracy", "f1_macro")},
    )


def _read_column(texts: list[str], name: str, *, where: str) -> npt.NDArray[np.str_]:
    given = [text for text in texts if text]
    distinct = len(set(given))
    numbers = _parse_numbers(given)
    if numbers is not None and distinct >= _NUMERIC_FROM:
        given = list(_cut_at_quantiles(numbers))
    elif distinct > MOST_VALUES:
        raise DataError(
            f"{where}: column {name!r} has {distinct} values; a slice needs at most {MOST_VALUES}, or numbers only"
        )
    left = iter(given)
    return np.array([next(left) if text else _EMPTY for text in texts])


def _parse_numbers(texts: list[str]) -> npt.NDArray[np.float64] | None:
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _cut_at_quantiles(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, QUANTILES + 1)))
    places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(0, len(edges) - 2))
    texts = _write_apart(edges)
    names = [f"{number + 1}: {low} to {high}" for number, (low, high) in enumerate(pairwise(texts))]
    return np.array(names or [f"1: {texts[0]}"])[places]


def _write_apart(numbers: npt.NDArray[np.float64]) -> list[str]:
    """Writes different numbers with four digits, or with so many that no two texts are the same, as dates need."""
    whole = len(f"{np.abs(numbers).max():.0f}")
    for digits in (4, *range(whole, 17)):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(texts):
            return texts
    return [repr(float(number)) for number in numbers]
