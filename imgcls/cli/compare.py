"""`imgcls compare`: is one run better than another, or was it chance?"""

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that was evaluated.")],
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="Run to compare with.")],
    *,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", metavar="NAME", help="Test sets by name; may be repeated. [default: all of both]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compares two runs on the same images: McNemar's exact test, and intervals of the differences.

    Both must have been evaluated on the same test sets.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from imgcls.evaluation.compare import compare_runs

    found = compare_runs(run, baseline, names=test or [])
    if as_json:
        print(json.dumps({name: each.model_dump() for name, each in found.items()}, indent=1))
        return
    console = Console()
    console.width = console.width if console.is_terminal else 120
    for name, each in found.items():
        table = Table("metric", title=escape(f"{name}: {each.samples:,} images, {run} less {baseline}"))
        for column in ("run", "baseline", "difference", "95 % (paired)"):
            table.add_column(column, justify="right")
        for metric, value in each.differences.items():
            span = f"{value.interval.low:+.4f} to {value.interval.high:+.4f}"
            table.add_row(metric, f"{value.run:.4f}", f"{value.baseline:.4f}", f"{value.difference:+.4f}", span)
        console.print(table)
        only = each.mcnemar
        print(
            f"McNemar: {only.only_run} images only the run gets right, {only.only_baseline} only the baseline; "
            f"p = {only.p_value:.3g}"
        )
