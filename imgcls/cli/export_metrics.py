"""`imgcls export-metrics`: a run's numbers for other tools."""

from pathlib import Path
from typing import Annotated

import typer


def export_metrics(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    *,
    tensorboard: Annotated[
        Path, typer.Option(metavar="DIR", help="Log folder of TensorBoard; the run gets a folder of its name in it.")
    ],
) -> None:
    """Writes a run's history, test metrics and confusion matrices as TensorBoard event files.

    Exporting again replaces what was exported of the run.
    """
    from imgcls.evaluation.export import export_tensorboard

    count = export_tensorboard(run, tensorboard)
    print(f"wrote {count} numbers to {tensorboard / run.resolve().name}")
