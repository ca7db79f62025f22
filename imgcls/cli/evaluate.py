"""`imgcls evaluate`: a run's numbers on one or many test sets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where the network runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, with spec.yaml and weights.safetensors.")],
    *,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--test",
            metavar="NAME=SOURCE",
            help="A test set; may be repeated. SOURCE is digits, torchvision:NAME, a folder, a .zip, a .csv, a "
            ".jsonl or .tar shards, and may end in ,split=val ,split=all ,noise=25 ,rotate=15 ,blur=1 ,brightness=0.7 "
            ",jpeg=20. Without splits it counts whole. [default: the run's own data]",
        ),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", metavar="COLUMN", help="Numbers by this column of a .csv, .jsonl or .tar; may be repeated."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. [default: RUN]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 256,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.AUTO,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unusable files, do not leave them out.")] = False,
) -> None:
    """Measures a run on test sets, side by side.

    Writes metrics.json, confusion_NAME.png, predictions_NAME.csv and the folder evaluation/. Sets measured earlier on
    the same weights stay in metrics.json. Intervals are of 95 %, by bootstrap, or Wilson's where all images are right
    or none; the drop is the accuracy lost against the first set.
    """
    import json

    from rich.console import Console

    from imgcls.evaluation.run import describe_left_out, evaluate_run, parse_tests
    from imgcls.evaluation.table import build_slices, build_table

    tests = parse_tests(test or [])
    evaluations = evaluate_run(
        run,
        tests=tests,
        slices=slices or [],
        out=out,
        batch_size=batch_size,
        device=device.value,
        strict=strict,
        on_note=lambda note: typer.echo(note, err=True),
    )
    for name, evaluation in evaluations.items():
        for line in describe_left_out(name, evaluation.problems):
            typer.echo(line, err=True)
    reports = {name: evaluation.report for name, evaluation in evaluations.items()}
    if as_json:
        typer.echo(json.dumps({name: report.model_dump() for name, report in reports.items()}, indent=1))
        return
    console = Console()
    console.width = console.width if console.is_terminal else 140
    console.print(build_table(reports, title=str(run)))
    for name, report in reports.items():
        for column, values in report.slices.items():
            console.print(build_slices(values, title=f"{name} by {column}"))
