"""The test sets side by side, for people: one row each, with the accuracy lost against the first."""

from collections.abc import Mapping

from rich.table import Table

from imgcls.evaluation.metrics import TestMetrics

_COLUMNS = ("images", "accuracy", "drop", "loss", "precision", "recall", "F1", "F1 weighted")


def build_table(metrics: Mapping[str, TestMetrics], *, title: str) -> Table:
    """Builds the table; precision, recall and F1 are macro averages, drop is in points of a hundred."""
    table = Table("test set", title=title, caption="precision, recall, F1: macro averages; drop: accuracy points")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    first = next(iter(metrics.values()))
    for name, numbers in metrics.items():
        table.add_row(name, *_format_row(numbers, drop=first.accuracy - numbers.accuracy, is_first=numbers is first))
    return table


def _format_row(numbers: TestMetrics, *, drop: float, is_first: bool) -> list[str]:
    return [
        f"{numbers.samples:,}",
        f"{numbers.accuracy:.2%}",
        "" if is_first else f"{100 * drop + 0:.2f}",
        f"{numbers.loss:.4f}",
        f"{numbers.precision_macro:.4f}",
        f"{numbers.recall_macro:.4f}",
        f"{numbers.f1_macro:.4f}",
        f"{numbers.f1_weighted:.4f}",
    ]
