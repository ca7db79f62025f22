"""`imgcls robustness`: what bad light, weather, cameras and codecs cost a run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from imgcls.cli.evaluate import Device


def robustness(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    *,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", metavar="NAME=SOURCE", help="As of imgcls evaluate. [default: the run's own data]"),
    ] = None,
    corruption: Annotated[
        list[str] | None, typer.Option(help="One of ImageNet-C's; may be repeated. [default: all]")
    ] = None,
    severity: Annotated[list[int] | None, typer.Option(help="1 to 5; may be repeated. [default: all]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most images of each test set.")] = 300,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measures accuracy under the corruptions of ImageNet-C, on the network's input.

    Writes evaluation/NAME.robustness.json, which imgcls report shows.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from imgcls.evaluation.robustness import measure_robustness
    from imgcls.evaluation.run import parse_tests

    found = measure_robustness(
        run,
        tests=parse_tests(test or []),
        corruptions=corruption or [],
        severities=severity or [],
        limit=limit,
        device=device.value,
        on_note=lambda note: typer.echo(note, err=True),
    )
    if as_json:
        print(json.dumps({name: each.model_dump() | {"mean": each.mean} for name, each in found.items()}, indent=1))
        return
    for name, each in found.items():
        table = Table("corruption", title=escape(f"{name}: accuracy of {each.samples:,} images by severity"))
        for level in sorted({result.severity for result in each.results}):
            table.add_column(str(level), justify="right")
        for label, results in each.by_corruption().items():
            table.add_row(label, *(f"{result.accuracy:.1%}" for result in results))
        Console().print(table)
        print(f"clean {each.clean:.2%}, mean under corruption {each.mean:.2%}")
