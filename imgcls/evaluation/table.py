"""The test sets side by side, for people: one row each, with the accuracy lost against the first; and slices."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from imgcls.evaluation.bootstrap import Interval
from imgcls.evaluation.metrics import TestMetrics
from imgcls.evaluation.slices import SliceMetrics

_COLUMNS = ("images", "accuracy", "95 %", "drop", "top 5", "AUROC", "loss", "ECE", "precision", "recall", "F1")
_CAPTION = (
    "precision, recall, F1, AUROC: macro averages; 95 %: interval of the accuracy, by bootstrap, or Wilson's where all "
    "are right or none; drop: accuracy points"
)

NAME_WIDTH = 10  # characters of a set's name that a narrow terminal keeps


def build_table(metrics: Mapping[str, TestMetrics], *, title: str) -> Table:
    """Builds the table; precision, recall and F1 are macro averages, drop is in points of a hundred."""
    table = Table(title=escape(title), caption=_CAPTION)
    table.add_column("test set", no_wrap=True, min_width=NAME_WIDTH)  # a row without its name says nothing
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    first = next(iter(metrics.values()))
    for name, numbers in metrics.items():
        table.add_row(name, *_format_row(numbers, drop=first.accuracy - numbers.accuracy, is_first=numbers is first))
    return table


def build_slices(slices: Mapping[str, SliceMetrics], *, title: str) -> Table:
    """Builds the table of one column's slices."""
    table = Table("value", title=escape(title))
    for column in ("images", "accuracy", "95 %", "F1", "95 % of F1"):
        table.add_column(column, justify="right", no_wrap=True)
    for value, numbers in slices.items():
        table.add_row(
            escape(value),
            f"{numbers.samples:,}",
            f"{numbers.accuracy:.2%}",
            format_percents(numbers.intervals["accuracy"]),
            f"{numbers.f1_macro:.4f}",
            "{0.low:.4f} to {0.high:.4f}".format(numbers.intervals["f1_macro"]),
        )
    return table


def format_percents(interval: Interval | None) -> str:
    """Writes an interval of a share."""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}" if interval else ""


def _format_row(numbers: TestMetrics, *, drop: float, is_first: bool) -> list[str]:
    return [
        f"{numbers.samples:,}",
        f"{numbers.accuracy:.2%}",
        format_percents(numbers.intervals.get("accuracy")),
        "" if is_first else f"{100 * drop + 0:.2f}",
        "" if numbers.top5 is None else f"{numbers.top5:.2%}",
        "" if numbers.auroc is None else f"{numbers.auroc:.4f}",
        f"{numbers.loss:.4f}",
        "" if numbers.ece is None else f"{numbers.ece:.4f}",
        f"{numbers.precision_macro:.4f}",
        f"{numbers.recall_macro:.4f}",
        f"{numbers.f1_macro:.4f}",
    ]
