"""How a rollout looks: `render` on a terminal, `render_line` in a log.

Meaning never rests on colour alone, so NO_COLOR (which rich keeps) loses nothing; terminals without UTF-8 get
ASCII. Below 100 columns the interval is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imgcls.rollout.snapshot import Snapshot, StepView, VersionView
from imgcls.rollout.verdicts import SAMPLES, MetricVerdict

WIDE = 100  # columns
SHOWN_EVENTS = 5
STYLES = {
    "done": "green",
    "running": "bold cyan",
    "pending": "dim",
    "failed": "bold red",
    "skipped": "dim",
    "successful": "green",
    "inconclusive": "yellow",
    "paused": "bold yellow",
    "promoted": "bold green",
    "aborted": "bold red",
}
SIGNS = {
    "done": "✓",
    "running": "●",
    "pending": "○",
    "failed": "✗",
    "skipped": "–",
    "successful": "✓",
    "inconclusive": "…",
    "paused": "‖",
    "promoted": "✓",
    "aborted": "✗",
    "to": "→",
}
ASCII_SIGNS = {
    "done": "+",
    "running": "*",
    "pending": "-",
    "failed": "x",
    "skipped": "/",
    "successful": "+",
    "inconclusive": "?",
    "paused": "=",
    "promoted": "+",
    "aborted": "x",
    "to": "->",
}


def render(snapshot: Snapshot) -> RenderableType:
    """Returns what a terminal shows of a rollout; it fits itself to the width and encoding it is printed with."""
    return _View(snapshot)


def render_line(snapshot: Snapshot) -> str:
    """Returns one line without colours, for logs and pipes; print it where `has_changed` says so."""
    new, step = snapshot.candidate, snapshot.step
    parts = [
        f"{_clock(snapshot.now_s)} {snapshot.model} {snapshot.stable.version} -> {new.version}: {snapshot.outcome}"
    ]
    if step:
        parts.append(f"{step.name} {step.state} {_step_time(step, snapshot.now_s)}".rstrip())
    parts.append(f"{new.version} gets {_share(new)}, {new.workers_ready} of {new.workers_wanted} workers READY")
    measured = {
        "errors": _percent(new.error_rate),
        "p99": _milliseconds(new.p99_ms),
        "alike": _percent(snapshot.agreement),
    }
    parts += [f"{name} {value}" for name, value in measured.items() if value]
    if snapshot.verdict or snapshot.reason:
        parts.append(": ".join(part for part in (snapshot.verdict, snapshot.reason) if part))
    return " ".join("; ".join(parts).split())


@dataclass(frozen=True)
class _View:
    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        signs = ASCII_SIGNS if options.ascii_only else SIGNS
        snapshot, is_wide = self.snapshot, options.max_width >= WIDE
        yield _headline(snapshot, signs)
        yield _steps(snapshot, signs, width=options.max_width)
        step = snapshot.step
        if step and step.state == "running" and step.hold_s:
            yield _progress(step, snapshot.now_s)
        yield from (Text(), _versions(snapshot))
        if snapshot.metrics:
            yield from (Text(), _limits(snapshot, signs, is_wide=is_wide))
        if snapshot.reason:
            yield Text()
            yield Text(snapshot.reason, style=STYLES.get(snapshot.verdict or snapshot.outcome, ""))
        yield from _events(snapshot)


def _headline(snapshot: Snapshot, signs: dict[str, str]) -> Text:
    outcome = snapshot.outcome
    return Text.assemble(
        (f"{snapshot.model} ", "bold"),
        (f"{snapshot.stable.version} {signs['to']} {snapshot.candidate.version}", "bold cyan"),
        f"   {_duration(snapshot.now_s - snapshot.began_s)}   ",
        (f"{signs[outcome]} {outcome}", STYLES[outcome]),
        "\n",
    )


def _steps(snapshot: Snapshot, signs: dict[str, str], *, width: int) -> Text:
    """Returns all steps in one paragraph, so that the view fits a small terminal; no step is cut by a line's end."""
    lines = [Text()]
    for step in snapshot.steps:
        took = step.elapsed_s(snapshot.now_s) if step.state == "done" else None
        time = f" {_duration(took)}" if took is not None and took >= 1 else ""
        words = Text(f"{signs[step.state]} {step.name}{time}", style=STYLES[step.state])
        if lines[-1] and lines[-1].cell_len + 3 + words.cell_len > width:
            lines.append(Text())
        lines[-1] = Text("   ").join([lines[-1], words]) if lines[-1] else words
    return Text("\n").join(lines)


def _progress(step: StepView, now_s: float) -> Table:
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    hold_s, elapsed_s = step.hold_s or 0.0, step.elapsed_s(now_s) or 0.0
    beyond = " beyond its hold" if elapsed_s > hold_s else ""
    bar = ProgressBar(total=hold_s, completed=min(elapsed_s, hold_s), complete_style="cyan")
    row.add_row(Text(step.name, style=STYLES["running"]), bar, f"{_step_time(step, now_s)}{beyond}")
    return row


def _versions(snapshot: Snapshot) -> Table:
    table = _table("version", "traffic", "shadow", "workers", "req/s", "errors", "p50 ms", "p99 ms")
    for each in (snapshot.stable, snapshot.candidate):
        is_short = each.workers_ready < each.workers_wanted
        table.add_row(
            f"{each.version} {each.role}",
            f"{each.weight:g} %",
            f"{each.shadow:g} %" if each.shadow else "",
            Text(f"{each.workers_ready} of {each.workers_wanted}", style="yellow" if is_short else ""),
            "" if each.requests_per_s is None else f"{each.requests_per_s:,.1f}",
            _percent(each.error_rate),
            "" if each.p50_ms is None else f"{each.p50_ms:,.1f}",
            "" if each.p99_ms is None else f"{each.p99_ms:,.1f}",
        )
    if snapshot.agreement is not None:
        drift = "" if snapshot.drift is None else f"; drift {_percent(snapshot.drift)}"
        table.caption = f"alike in {_percent(snapshot.agreement)} of shadowed requests{drift}"
    return table


def _limits(snapshot: Snapshot, signs: dict[str, str], *, is_wide: bool) -> Table:
    headers = ("limit", "set to", "stable", "measured", *(("surely within",) if is_wide else ()), "samples", "verdict")
    table = _table(*headers)
    for metric in snapshot.metrics:
        between = " to ".join(_value(metric, each) or "any" for each in metric.interval)
        verdict = Text(f"{signs[metric.verdict]} {metric.verdict}", style=STYLES[metric.verdict])
        table.add_row(
            metric.name,
            _value(metric, metric.limit),
            _value(metric, metric.stable_value),
            _value(metric, metric.value) if metric.name != SAMPLES else "",
            *((between if metric.name != SAMPLES else "",) if is_wide else ()),
            f"{metric.samples:,}",
            verdict,
        )
    return table


def _events(snapshot: Snapshot) -> Iterator[Text]:
    if snapshot.events:
        yield Text("")
    for event in snapshot.events[-SHOWN_EVENTS:]:
        yield Text(f"{_clock(event.time_s)}  {event.text}", style="dim", overflow="ellipsis", no_wrap=True)


def _table(first: str, *headers: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption_justify="left",
        header_style="bold",
    )
    table.add_column(first, no_wrap=True, min_width=12)
    for header in headers:
        table.add_column(header, justify="left" if header == "verdict" else "right", no_wrap=True)
    return table


def _value(metric: MetricVerdict, value: float | None) -> str:
    """Returns a metric's value in its unit, which its name tells."""
    if value is None:
        return ""
    match metric.name:
        case "samples":
            return f"{value:,.0f}"
        case "p99_ms.max":
            return _milliseconds(value)
        case "p99_ms.max_ratio":
            return f"{value:.2f} x"
    return _percent(value)


def _share(version: VersionView) -> str:
    shadow = f"{version.shadow:g} % shadow" if version.shadow else ""
    weight = f"{version.weight:g} %" if version.weight or not shadow else ""
    return " + ".join(part for part in (weight, shadow) if part)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _step_time(step: StepView, now_s: float) -> str:
    elapsed_s = step.elapsed_s(now_s)
    if elapsed_s is None:
        return ""
    return _duration(elapsed_s) + (f" of {_duration(step.hold_s)}" if step.hold_s else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().strftime("%H:%M:%S")
