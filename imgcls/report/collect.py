"""Reads what a report tells off a run directory, and off a baseline's: no image and no torch is needed."""

import base64
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from imgcls.archive.facts import NOT_RECORDED, Facts, read_facts
from imgcls.archive.words import describe_input, describe_limits, describe_purpose
from imgcls.errors import ImgclsError, RunError
from imgcls.evaluation.bootstrap import Interval, find_wilson
from imgcls.evaluation.compare import Comparison, compare
from imgcls.evaluation.gallery import Gallery, read_gallery
from imgcls.evaluation.plots import plot_confusion
from imgcls.evaluation.reports import METRICS_FILE, TestReport, hash_weights, read_metrics
from imgcls.evaluation.robustness_record import Robustness, read_robustness
from imgcls.evaluation.stored import EVALUATION_FOLDER, read_stored
from imgcls.report.charts import draw_bars, draw_curves, draw_reliability
from model.spec import SPEC_FILE, WEIGHTS_FILE

MOST_CELLS = 26  # classes of a confusion matrix that is a table; a larger one is a picture
MOST_CLASSES = 60  # rows of the table of classes, the weakest first
_CURVES = {"loss": ("train_loss", "val_loss"), "accuracy": ("train_accuracy", "val_accuracy"), "learning rate": ("lr",)}


@dataclass(frozen=True)
class ClassRow:
    """One class of a test set, with Wilson's interval of its recall."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float
    interval: Interval


@dataclass(frozen=True)
class TestSection:
    """What is told of one test set."""

    name: str
    report: TestReport
    classes: list[ClassRow]
    confusion: list[tuple[str, list[tuple[int, float]]]] | None
    confusion_picture: str
    reliability: Markup
    gallery: Gallery | None
    robustness: Robustness | None
    robustness_problem: str
    comparison: Comparison | None
    comparison_problem: str


@dataclass(frozen=True)
class RunReport:
    """What the template of a run is filled with."""

    name: str
    baseline: str
    facts: Facts
    purpose: str
    input: str
    limits: list[str]
    weights_sha256: str
    weights_bytes: int
    curves: list[Markup]
    balance: Markup | None
    tests: list[TestSection]
    not_recorded: str = NOT_RECORDED


def collect_run(run: Path, *, baseline: Path | None = None) -> RunReport:
    """Collects a report.

    Raises:
        RunError: it or the baseline is no run directory, it was not evaluated, or holds a broken file.
        ArchiveError: its metrics are of other weights.
    """
    for each in (run, baseline or run):
        if not (each / SPEC_FILE).is_file() or not (each / WEIGHTS_FILE).is_file():
            raise RunError(f"{each}: is no run directory; make one with python train.py --out {each}")
    reports = read_metrics(run / METRICS_FILE).test_sets if (run / METRICS_FILE).is_file() else {}
    if not reports:
        raise RunError(f"{run}: was not evaluated; run imgcls evaluate {run}")
    sha256 = hash_weights(run)
    facts = read_facts(run, weights_sha256=sha256)
    splits = facts.record.data.splits if facts.record else {}
    return RunReport(
        name=run.resolve().name,
        baseline=baseline.resolve().name if baseline else "",
        facts=facts,
        purpose=describe_purpose(facts.spec),
        input=describe_input(facts.spec),
        limits=describe_limits(facts),
        weights_sha256=sha256,
        weights_bytes=(run / WEIGHTS_FILE).stat().st_size,
        curves=_draw_history(run / "history.csv"),
        balance=draw_bars({name: each.classes for name, each in splits.items()}, label="images") if splits else None,
        tests=[_collect_test(run, name, report, baseline=baseline) for name, report in reports.items()],
    )


def _collect_test(run: Path, name: str, report: TestReport, *, baseline: Path | None) -> TestSection:
    classes = list(report.per_class)
    is_small = len(classes) <= MOST_CELLS
    picture = "" if is_small else _inline(plot_confusion(report.confusion, classes=classes, title=name))
    gallery = run / EVALUATION_FOLDER / f"{name}.gallery.json"
    comparison, problem = _compare(run, baseline, name)
    robustness, robustness_problem = _read_robustness(run, name, report)
    return TestSection(
        name=name,
        report=report,
        classes=_list_classes(report)[:MOST_CLASSES],
        confusion=[(label, _shade(row)) for label, row in zip(classes, report.confusion, strict=True)]
        if is_small
        else None,
        confusion_picture=picture,
        reliability=draw_reliability(report.reliability, name=name) if report.reliability else Markup(""),
        gallery=read_gallery(gallery) if gallery.is_file() else None,
        robustness=robustness,
        robustness_problem=robustness_problem,
        comparison=comparison,
        comparison_problem=problem,
    )


def _compare(run: Path, baseline: Path | None, name: str) -> tuple[Comparison | None, str]:
    """Compares where both have answers; a test set that the baseline lacks is told, not refused."""
    if baseline is None:
        return None, ""
    try:
        return compare(read_stored(run, name), read_stored(baseline, name), name=name), ""
    except ImgclsError as err:
        return None, str(err)


def _read_robustness(run: Path, name: str, report: TestReport) -> tuple[Robustness | None, str]:
    """Reads what was measured under corruptions; why it is left out, where it is not known to be of these images."""
    found = read_robustness(run, name)
    if found is None or (found.images_sha256 and found.images_sha256 == report.images_sha256):
        return found, ""
    repeat = f"imgcls robustness {run} --test {name}={report.source}"
    return None, f"what was measured, on {found.source}, is not known to be of these images; measure it with {repeat}"


def _list_classes(report: TestReport) -> list[ClassRow]:
    rows = [
        ClassRow(
            name=name,
            support=each.support,
            precision=each.precision,
            recall=each.recall,
            f1=each.f1,
            interval=find_wilson(round(each.recall * each.support), each.support),
        )
        for name, each in report.per_class.items()
        if each.support
    ]
    return sorted(rows, key=lambda row: row.recall)


def _shade(row: list[int]) -> list[tuple[int, float]]:
    """Returns each count with its share of the row, by which the cell is coloured."""
    total = max(1, sum(row))
    return [(count, round(count / total, 3)) for count in row]


def _draw_history(path: Path) -> list[Markup]:
    """Draws the curves that the history has; its other columns are train.py's own."""
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        epochs = [float(row["epoch"]) for row in rows]
        columns = {name: [_parse(row.get(name)) for row in rows] for names in _CURVES.values() for name in names}
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as err:
        raise RunError(f"{path}: cannot be read: {err}; delete it to report without curves") from err
    drawn = []
    for label, names in _CURVES.items():
        series = {name.replace("_", " "): columns[name] for name in names if any(map(math.isfinite, columns[name]))}
        if series:
            drawn.append(draw_curves(series, epochs=epochs, label=label))
    return drawn


def _parse(text: Any) -> float:
    return float(text) if text not in (None, "") else math.nan


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
