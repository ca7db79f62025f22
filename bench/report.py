"""The table of `python -m bench serve`: medians over the rounds, ratios within the run, as Markdown and as JSON."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.load import Load
from bench.measure import Measured
from bench.registry import Subject

STOCK = "stock"


@dataclass(frozen=True)
class Row:
    """Medians of one subject."""

    subject: Subject
    rounds: int
    loads: dict[str, Load]
    pss_mb: float | None
    worker_mb: float | None
    start_s: float | None
    same_best: float | None
    error: str | None


def summarise(subjects: Sequence[Subject], measured: Sequence[Measured]) -> list[Row]:
    """Returns a row for each subject, also for one that could not be measured, or not yet."""
    return [_summarise(subject, [each for each in measured if each.subject == subject.id]) for subject in subjects]


def _summarise(subject: Subject, measured: list[Measured]) -> Row:
    good = [each for each in measured if each.error is None]
    errors = [each.error for each in measured if each.error is not None]
    names = list(good[0].loads) if good else []
    return Row(
        subject,
        rounds=len(good),
        loads={name: _median_load([each.loads[name] for each in good]) for name in names},
        pss_mb=_median([each.pss_mb for each in good]),
        worker_mb=_median([each.worker_mb for each in good]),
        start_s=_median([each.start_s for each in good]),
        same_best=_median([each.same_best for each in good]),
        error=errors[0] if errors else None if good else "no round of it was finished",
    )


def _median_load(loads: list[Load]) -> Load:
    return Load(
        images_per_s=statistics.median(load.images_per_s for load in loads),
        p50_ms=statistics.median(load.p50_ms for load in loads),
        p99_ms=statistics.median(load.p99_ms for load in loads),
        failed=sum(load.failed for load in loads),
        dropped=sum(load.dropped for load in loads),
    )


def _median(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def as_markdown(rows: Sequence[Row], *, title: str) -> str:
    """Returns the tables; what could not be measured stands in them with its reason."""
    names = list(dict.fromkeys(name for row in rows for name in row.loads))
    parts = [title, _main_table(rows, [name for name in names if name.startswith("closed")])]
    if opened := [name for name in names if name.startswith("open")]:
        parts.append(_open_table(rows, opened))
    return "\n\n".join(parts) + "\n"


def _main_table(rows: Sequence[Row], names: list[str]) -> str:
    key = names[-1] if names else ""
    key = "closed 16" if "closed 16" in names else key
    stock = find_rate(rows, key, lambda row: row.subject.id == STOCK)
    heads = ["server", "pipeline", "engine"]
    for name in names:
        count = name.removeprefix("closed ")
        heads += [f"images/s, {count} conn.", "p50 ms", "p99 ms"]
    heads += ["× as it comes", "of the limit", "memory MB", "a worker MB", "start s", "same best class", "failed"]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        lines.append(_line(_cells(row, rows, names, key=key, stock=stock, width=len(heads))))
    key_words = key.removeprefix("closed ")
    return "\n".join(lines) + f"\n\nRatios are of images/s at {key_words} connections." if key else "\n".join(lines)


def _cells(row: Row, rows: Sequence[Row], names: list[str], *, key: str, stock: float | None, width: int) -> list[str]:
    subject = row.subject
    cells = [subject.server, subject.pipeline, subject.engine]
    if not row.loads:
        return [*cells, f"not measured: {row.error}".replace("not measured: not", "not").replace("|", "/")]
    for name in names:
        load = row.loads.get(name)
        cells += [f"{load.images_per_s:.1f}", f"{load.p50_ms:.1f}", f"{load.p99_ms:.0f}"] if load else ["", "", ""]
    rate = row.loads[key].images_per_s if key in row.loads else None
    limit = find_rate(rows, key, lambda other: other.subject.kind == "inprocess" and _engine(other) == _engine(row))
    failed = sum(load.failed for name, load in row.loads.items() if name in names)
    is_ours = subject.runs == "ours"
    return [
        *cells,
        f"{rate / stock:.1f}" if rate and stock and subject.runs != "noop" else "",
        f"{rate / limit:.2f}" if rate and limit and is_ours and subject.kind != "inprocess" else "",
        f"{row.pss_mb:.0f}" if row.pss_mb else "",
        f"{row.worker_mb:.0f}" if row.worker_mb else "",
        f"{row.start_s:.1f}" if row.start_s else "",
        f"{row.same_best:.0%}" if row.same_best is not None else "",
        str(failed) + (f"; in one round: {row.error}" if row.error else ""),
    ]


def _engine(row: Row) -> str:
    return row.subject.engine


def find_rate(rows: Sequence[Row], name: str, is_wanted: Callable[[Row], bool]) -> float | None:
    """Returns the highest images/s under a load among some rows."""
    rates = [row.loads[name].images_per_s for row in rows if name in row.loads and is_wanted(row)]
    return max(rates, default=None)


def _open_table(rows: Sequence[Row], names: list[str]) -> str:
    heads = ["server", "pipeline", "engine"]
    for name in names:
        rate = name.removeprefix("open ")
        heads += [f"answered/s of {rate}", "p50 ms", "p99 ms", "not sent"]
    lines = ["Open loop: so many arrivals a second, answered or not.", "", _line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        if any(name in row.loads for name in names):
            cells = [row.subject.server, row.subject.pipeline, row.subject.engine]
            for name in names:
                load = row.loads[name]
                cells += [f"{load.images_per_s:.1f}", f"{load.p50_ms:.1f}", f"{load.p99_ms:.0f}", str(load.dropped)]
            lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def save(
    target: Path, rows: Sequence[Row], measured: Sequence[Measured], *, title: str, settings: dict[str, object]
) -> None:
    """Writes TARGET.json, with every single measurement, and TARGET.md."""
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "title": title,
        "settings": settings,
        "rows": [asdict(row) for row in rows],
        "measured": [asdict(each) for each in measured],
    }
    for suffix, text in ((".json", json.dumps(content, indent=1) + "\n"), (".md", as_markdown(rows, title=title))):
        partial = target.with_suffix(suffix + ".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target.with_suffix(suffix))
