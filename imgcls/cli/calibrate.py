"""`imgcls calibrate`: makes a run's probabilities mean what they say."""

import json
from pathlib import Path
from typing import Annotated

import typer

from imgcls.cli.evaluate import Device


def calibrate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory; its spec.yaml is changed.")],
    *,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="SOURCE",
            help="What to fit on; all of it where it has no splits. [default: the run's validation split]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 256,
) -> None:
    """Fits a temperature to a run's validation images, and writes it into the run's spec.

    Archives built from then on serve probabilities of logits divided by it. Which class comes first never changes.
    Evaluate again afterwards: earlier metrics are of the earlier temperature.
    """
    from imgcls.evaluation.calibrate import calibrate_run

    done = calibrate_run(
        run,
        source=on,
        device=device.value,
        batch_size=batch_size,
        on_note=lambda note: typer.echo(note, err=True),
    )
    record = done.record
    if as_json:
        print(json.dumps(record.model_dump() | {"previous_temperature": done.previous}, indent=1))
        return
    print(f"temperature {done.previous:g} -> {record.temperature:g}, fitted on {record.images:,} images")
    print(f"loss         {record.loss_before:.4f} -> {record.loss_after:.4f} (from temperature 1, on these images)")
    print(f"ECE          {record.ece_before:.4f} -> {record.ece_after:.4f}")
    print(f"next         imgcls evaluate {run}")
