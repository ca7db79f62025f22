"""Throughput against latency, a colour for each candidate: a dot for each stretch of load in an open loop."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imgcls.tuning.candidates import Candidate
from imgcls.tuning.load import Stretch
from imgcls.tuning.slo import Slo
from imgcls.tuning.verdict import Outcome

MOST_LINES = 8  # with a colour and a name; the others are grey
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def plot_outcomes(outcomes: Sequence[Outcome], *, slo: Slo, recommended: Candidate | None, title: str) -> bytes:
    """Draws each stretch of the open loop: how many images a second arrived, and how late they were answered.

    Args:
        outcomes: what was measured.
        slo: drawn as a line that the latency must stay below.
        recommended: drawn large.
        title: goes above.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(9, 7), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ordered = sorted(outcomes, key=lambda outcome: (outcome.candidate != recommended, -outcome.rate))
    for number, outcome in enumerate(ordered):
        met, missed = _points_of(outcome, slo=slo)
        is_named = number < MOST_LINES
        is_recommended = outcome.candidate == recommended
        colour = COLOURS[number] if is_named else "#999999"
        style: dict[str, Any] = {
            "marker": "o",
            "markersize": 8 if is_recommended else 5,
            "color": colour,
            "linestyle": "",
        }
        axes.plot(*missed, **style, fillstyle="none", zorder=2)
        axes.plot(
            *met, **style, zorder=3, label=_name(outcome, slo=slo, is_recommended=is_recommended) if is_named else None
        )
        if outcome.rate:
            axes.axvline(outcome.rate, color=colour, linewidth=2 if is_recommended else 0.8, alpha=0.6, zorder=1)
    axes.axhline(slo.limit_ms, color="#B00020", linestyle="--", linewidth=1.2, label=f"{slo}: stay below")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlim(left=0)
    axes.set_xlabel("images a second, as they arrived (full: the objective was met; line: the rate that counts)")
    axes.set_ylabel(f"p{slo.percentile:g} latency, ms (logarithmic)")
    axes.set_title(title, parse_math=False)
    axes.grid(which="both", alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _name(outcome: Outcome, *, slo: Slo, is_recommended: bool) -> str:
    rate = f"{outcome.rate:.1f} a second" if outcome.rate else f"misses {slo}"
    return f"{outcome.candidate}: {rate}{' (recommended)' if is_recommended else ''}"


def _points_of(
    outcome: Outcome, *, slo: Slo
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Returns rates and latencies of the stretches that met the objective, and of those that missed it."""
    stretches = [
        stretch for trial in outcome.trials + outcome.finals for stretch in trial.stretches if stretch.answered
    ]
    met = [stretch for stretch in stretches if stretch.meets(slo)]
    missed = [stretch for stretch in stretches if not stretch.meets(slo)]
    return _coordinates(met), _coordinates(missed)


def _coordinates(stretches: Sequence[Stretch]) -> tuple[list[float], list[float]]:
    return [stretch.rate or 0.0 for stretch in stretches], [stretch.slo_ms for stretch in stretches]
