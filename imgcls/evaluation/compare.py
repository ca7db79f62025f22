"""Two runs on the same images: is one better, and could that be chance?

- McNemar's test, exact: of the images that only one of the two gets right, how many are whose? Half, by chance.
- Tango's score test gives the interval of a difference in accuracy.
- Paired bootstrap: both runs are scored on the same resampled images, and the differences give an interval. It serves
  numbers that neither says anything of, such as F1.

Source: Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms", 1998.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from imgcls.errors import RunError
from imgcls.evaluation.bootstrap import (
    CELL_METRICS,
    LEVEL,
    PROPORTIONS,
    TOP,
    Floats,
    Interval,
    bootstrap_auroc,
    bootstrap_scores,
    find_interval,
    measure_auroc,
    score,
)
from imgcls.evaluation.paired_score import find_paired_score
from imgcls.evaluation.stored import Stored, list_stored, read_stored


class McNemar(BaseModel):
    """`only_run` and `only_baseline` count the images that one of the two alone gets right; p is two-sided."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    only_run: int
    only_baseline: int
    p_value: float


class Difference(BaseModel):
    """One number of both runs; `difference` is the run's less the baseline's, with its interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: float
    baseline: float
    difference: float
    interval: Interval


class Comparison(BaseModel):
    """Two runs on the same images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    mcnemar: McNemar
    differences: dict[str, Difference]


def align(run: Stored, baseline: Stored, *, name: str) -> Stored:
    """Returns the baseline's answers in the order of the run's images and classes.

    Raises:
        RunError: they are not of the same images and classes.
    """
    if run.images_sha256 != baseline.images_sha256 or sorted(run.names) != sorted(baseline.names):
        raise RunError(
            f"{name}: the two runs were not measured on the same images ({len(run.names)} and {len(baseline.names)}); "
            "evaluate both on one --test, and on one with a test split of its own where their training had other seeds"
        )
    if set(run.classes) != set(baseline.classes):
        other = sorted(set(run.classes) ^ set(baseline.classes))
        raise RunError(
            f"{name}: the two runs have other classes, such as {other[0]!r}; compare runs of the same classes"
        )
    rows = np.argsort(baseline.names, kind="stable")[np.argsort(np.argsort(run.names, kind="stable"), kind="stable")]
    columns = [baseline.classes.index(each) for each in run.classes]
    return Stored(
        names=baseline.names[rows],
        labels=np.argsort(columns)[baseline.labels[rows]],
        probabilities=baseline.probabilities[rows][:, columns],
        classes=run.classes,
        columns={},
        images_sha256=baseline.images_sha256,
    )


def compare_runs(run: Path, baseline: Path, *, names: Sequence[str] = (), seed: int = 0) -> dict[str, Comparison]:
    """Compares two run directories on test sets that both were evaluated on; on all such where none is named.

    Raises:
        RunError: there is none, the images or classes are not the same, or one is no run directory.
    """
    for each in (run, baseline):
        if not each.is_dir():
            raise RunError(f"{each}: is no run directory; make one with python train.py --out {each}")
    shared = names or sorted(set(list_stored(run)) & set(list_stored(baseline)))
    if not shared:
        raise RunError(
            f"{run} and {baseline} share no test set of the same name; evaluate both, with --test NAME=SOURCE"
        )
    return {name: compare(read_stored(run, name), read_stored(baseline, name), name=name, seed=seed) for name in shared}


def compare(run: Stored, baseline: Stored, *, name: str, seed: int = 0) -> Comparison:
    """Compares two runs on one test set.

    Raises:
        RunError: they are not of the same images and classes.
    """
    other = align(run, baseline, name=name)
    every = np.arange(len(run.labels))
    metrics = [metric for metric in CELL_METRICS if metric != "top5" or len(run.classes) > TOP]
    return Comparison(
        samples=len(run.labels),
        mcnemar=measure_mcnemar(run, other),
        differences=measure_differences(run, other, [*metrics, "auroc"], places=every, seed=seed),
    )


def measure_differences(
    run: Stored, baseline: Stored, metrics: Sequence[str], *, places: npt.NDArray[np.intp], seed: int = 0
) -> dict[str, Difference]:
    """Compares aligned answers on some of the images; AUROC is left out where it is not defined."""
    labels = run.labels[places]
    drawn = _resample_cells(run, baseline, places=places, seed=seed)
    values = [score(labels, each.answers.take(places), classes=len(run.classes)) for each in (run, baseline)]
    if "auroc" in metrics and (resampled := _resample_auroc(run, baseline, places=places, seed=seed)) is not None:
        drawn["auroc"] = resampled
        for numbers, each in zip(values, (run, baseline), strict=True):
            numbers["auroc"] = measure_auroc(labels, each.probabilities[places]) or 0.0
    mine, theirs = values
    return {
        metric: Difference(
            run=mine[metric],
            baseline=theirs[metric],
            difference=mine[metric] - theirs[metric],
            interval=measure_paired(run, baseline, metric, places=places)[1]
            if metric in PROPORTIONS
            else find_interval(drawn[metric]),
        )
        for metric in metrics
        if metric in drawn
    }


def measure_paired(
    run: Stored, baseline: Stored, metric: str, *, places: npt.NDArray[np.intp], level: float = LEVEL
) -> tuple[float, Interval]:
    """Compares aligned answers by a share of images, one of PROPORTIONS: the difference, and Tango's interval of it."""
    mine, theirs = (
        each.answers.in_top[places] if metric == "top5" else (each.answers.predicted == each.labels)[places]
        for each in (run, baseline)
    )
    gained, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    low, high = find_paired_score(gained, lost, len(places), level=level)
    return (gained - lost) / len(places), Interval(low=low, high=high, method="tango", resamples=0)


def resample_differences(
    run: Stored, baseline: Stored, metric: str, *, places: npt.NDArray[np.intp], seed: int = 0
) -> tuple[float, Floats]:
    """Returns the difference of one metric of aligned answers, and what it is in each resample.

    Raises:
        RunError: it is not defined on these images.
    """
    if metric == "auroc":
        drawn = _resample_auroc(run, baseline, places=places, seed=seed)
    else:
        drawn = _resample_cells(run, baseline, places=places, seed=seed).get(metric)
    if drawn is None:
        raise RunError(f"{metric} is not defined where all images are of one class; take another metric")
    found = measure_differences(run, baseline, [metric], places=places, seed=seed)[metric]
    return found.difference, drawn


def measure_mcnemar(run: Stored, baseline: Stored) -> McNemar:
    """Tests aligned answers, exactly, by a binomial of the images on which the two differ."""
    right, other = run.answers.predicted == run.labels, baseline.answers.predicted == baseline.labels
    mine, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    p_value = float(binomtest(mine, mine + theirs).pvalue) if mine + theirs else 1.0
    return McNemar(only_run=mine, only_baseline=theirs, p_value=p_value)


def _resample_cells(run: Stored, baseline: Stored, *, places: npt.NDArray[np.intp], seed: int) -> dict[str, Floats]:
    answers = [each.answers.take(places) for each in (run, baseline)]
    mine, theirs = bootstrap_scores(run.labels[places], answers, classes=len(run.classes), seed=seed)
    return {metric: mine[metric] - theirs[metric] for metric in CELL_METRICS}


def _resample_auroc(run: Stored, baseline: Stored, *, places: npt.NDArray[np.intp], seed: int) -> Floats | None:
    pair = [each.probabilities[places] for each in (run, baseline)]
    resampled = bootstrap_auroc(run.labels[places], pair, seed=seed)
    return None if resampled is None else resampled[0] - resampled[1]
