"""Plots as inline SVG that take the page's colours, light or dark, and its font.

Lines of axes and texts are drawn in a colour that stands for the page's own ink; series have colours that read on both.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from imgcls.evaluation.calibration import ReliabilityBin

_INK = "#010203"  # replaced by the page's
# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and which read on light and dark.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "svg.fonttype": "none",  # texts stay texts
    "text.color": _INK,
    "text.parse_math": False,  # a class may be named a$b$
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw_curves(series: Mapping[str, Sequence[float]], *, epochs: Sequence[float], label: str) -> Markup:
    """Draws numbers by epoch, a line each."""

    def draw(axes: Axes) -> None:
        for (name, values), colour in zip(series.items(), COLOURS, strict=False):
            marker = "o" if len(values) < 30 else ""
            axes.plot(epochs, values, color=colour, label=name, marker=marker, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)

    return _draw(draw, size=(4.6, 3.0), name=f"curves of {label}")


def draw_reliability(bins: Sequence[ReliabilityBin], *, name: str) -> Markup:
    """Draws how often the best class was right against how sure the model was; dots are as large as their bins."""

    def draw(axes: Axes) -> None:
        most = max(each.images for each in bins)
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--", alpha=0.6, label="as it should be")
        x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
        low = [max(0.0, each.accuracy - each.accuracy_low) for each in bins]
        high = [max(0.0, each.accuracy_high - each.accuracy) for each in bins]
        axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=COLOURS[0], alpha=0.55, linewidth=1.4)
        axes.scatter(x, y, s=[20 + 130 * each.images / most for each in bins], color=COLOURS[0], label="measured")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("probability of the best class")
        axes.set_ylabel("how often it was right")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left")

    return _draw(draw, size=(4.2, 3.6), name=f"reliability of {name}")


def draw_bars(counts: Mapping[str, Mapping[str, int]], *, label: str, most: int = 40) -> Markup:
    """Draws counts by class, a colour for each outer key, such as a split; of many classes the largest and smallest."""
    names = sorted({name for each in counts.values() for name in each}, key=lambda name: -sum(_of(counts, name)))
    shown = names if len(names) <= most else [*names[: most // 2], *names[-most // 2 :]]

    def draw(axes: Axes) -> None:
        left = [0] * len(shown)
        for (part, values), colour in zip(counts.items(), COLOURS, strict=False):
            sizes = [values.get(name, 0) for name in shown]
            axes.barh(range(len(shown)), sizes, left=left, color=colour, label=part, height=0.7)
            left = [before + size for before, size in zip(left, sizes, strict=True)]
        axes.set_yticks(range(len(shown)), [name if len(name) <= 24 else f"{name[:23]}…" for name in shown])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.25)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts))

    return _draw(draw, size=(6.2, 1.2 + 0.24 * len(shown)), name=f"bars of {label}")


def _of(counts: Mapping[str, Mapping[str, int]], name: str) -> list[int]:
    return [each.get(name, 0) for each in counts.values()]


def _draw(draw: Callable[[Axes], None], *, size: tuple[float, float], name: str) -> Markup:
    buffer = io.StringIO()
    with (
        mpl.rc_context({**_STYLE, "svg.hashsalt": name}),  # so that ids are the same in each run, and no two plots'
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of our font: the browser has others
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    return Markup(svg)  # matplotlib escapes the texts
