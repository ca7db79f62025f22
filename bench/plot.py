"""The plot of `python -m bench serve`: images a second of each server, grouped by what runs inside it."""

from collections.abc import Sequence
from pathlib import Path

from bench.report import Row

COLOURS = {"limit": "#8a8a8a", "this project": "#d9480f", "with our pipeline": "#1c7ed6", "as documented": "#adb5bd"}


def draw(rows: Sequence[Row], target: Path, *, load: str, title: str) -> bool:
    """Writes a PNG of the rows that have that load; without handlers that do nothing, which would dwarf the others.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = [row for row in rows if load in row.loads and row.subject.runs != "noop"]
    shown.sort(key=lambda row: row.loads[load].images_per_s)
    if not shown:
        return False
    rates = [row.loads[load].images_per_s for row in shown]
    groups = [_group(row) for row in shown]
    figure, axes = pyplot.subplots(figsize=(9, 1.1 + 0.32 * len(shown)), layout="constrained")
    bars = axes.barh([_label(row) for row in shown], rates, color=[COLOURS[group] for group in groups])
    texts = [f" {rate:.0f}/s, p50 {row.loads[load].p50_ms:.0f} ms" for row, rate in zip(shown, rates, strict=True)]
    axes.bar_label(bars, texts, fontsize=8)
    axes.set_xlim(0, max(rates) * 1.25)
    axes.set_xlabel("images a second")
    axes.margins(y=0.01)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)
    handles = [Patch(color=colour, label=group) for group, colour in COLOURS.items() if group in groups]
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
    return True


def _group(row: Row) -> str:
    if row.subject.kind == "inprocess":
        return "limit"
    if row.subject.kind in ("ours", "plain"):
        return "this project"
    return "with our pipeline" if row.subject.runs == "ours" else "as documented"


def _label(row: Row) -> str:
    subject = row.subject
    if subject.kind == "peer":
        return f"{subject.server}, {'our pipeline' if subject.runs == 'ours' else 'as documented'}"
    server = subject.server.removeprefix("none: ").replace("TorchServe, this project", "This project")
    return f"{server}, engine {subject.engine}" if subject.engine else server
