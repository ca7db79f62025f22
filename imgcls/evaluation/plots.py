"""The confusion matrix as a picture, readable from 2 to 200 classes."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MAX_ANNOTATED = 20  # classes; above, counts in the cells become unreadable
_MAX_TICKS = 50
_MAX_NAME = 24  # characters


def plot_confusion(confusion: Sequence[Sequence[int]], *, classes: Sequence[str], title: str) -> bytes:
    """Draws a confusion matrix: a row for each true class, coloured by its share of the row.

    Args:
        confusion: counts, (classes, classes).
        classes: the names, in the same order.
        title: goes above.

    Returns:
        A PNG.
    """
    counts = np.asarray(confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = float(np.clip(0.5 * len(classes), 3.5, 10))  # inches
    figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _label_ticks(axes, classes)
    if len(classes) <= _MAX_ANNOTATED:
        _annotate(axes, counts, shares)
    return _render(figure)


def _label_ticks(axes: Axes, classes: Sequence[str]) -> None:
    step = -(-len(classes) // _MAX_TICKS)
    places = range(0, len(classes), step)
    names = [_shorten(classes[place]) for place in places]
    size = 9 if len(classes) <= _MAX_ANNOTATED else 7
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)


def _annotate(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box: better than no picture
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
