"""`imgcls gate`: may this run go out?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from imgcls.gate.verdict import GateReport

_COLOURS = {"successful": "green", "failed": "bold red", "inconclusive": "yellow"}


def gate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that was evaluated.")],
    *,
    policy: Annotated[Path, typer.Option(metavar="TOML", help="The policy: floors and allowed drops.")],
    against: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="Run to compare with, evaluated on the same test sets.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judges a run by a policy, on what imgcls evaluate has stored.

    Exits 0 when it passes, 1 when it is refused or was not measured, 2 when the policy cannot be used.
    """
    from rich.console import Console

    from imgcls.gate.judge import judge_run
    from imgcls.gate.policy import read_policy

    rules, sha256 = read_policy(policy)
    report = judge_run(run, rules, policy_sha256=sha256, baseline=against)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        console = Console()
        console.width = console.width if console.is_terminal else 140
        console.print(build_table(report, title=f"{run}" + (f" against {against}" if against else "")))
        typer.echo(describe(report))
    if not report.is_passed:
        raise typer.Exit(1)


def build_table(report: GateReport, *, title: str) -> Table:
    """Builds the table of findings: one row each, what is worst first."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table("verdict", "test set", "slice", "metric", title=escape(title))
    table.add_column("images", justify="right")
    table.add_column("measured, and what is demanded", ratio=1)
    order = ("failed", "inconclusive", "successful")
    for finding in sorted(report.findings, key=lambda each: order.index(each.verdict)):
        metric = f"{finding.metric} change" if finding.demand == "max_drop" else finding.metric
        cells = (finding.test, finding.slice or "", metric, f"{finding.samples:,}", finding.reason)
        table.add_row(Text(finding.verdict, style=_COLOURS[finding.verdict]), *map(escape, cells))
    return table


def describe(report: GateReport) -> str:
    """Says in a line what becomes of the run."""
    counts = {verdict: sum(each.verdict == verdict for each in report.findings) for verdict in _COLOURS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{'passed' if report.is_passed else 'refused'}: {report.verdict} ({told})"
