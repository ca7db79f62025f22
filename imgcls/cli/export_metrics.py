"""`imgcls export-metrics`: a run's numbers for other tools."""

from pathlib import Path
from typing import Annotated

import typer


def export_metrics(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    *,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Log folder of TensorBoard; the run gets a folder of its name in it."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow's tracking server or database, or a folder, which gets a database."),
    ] = None,
    experiment: Annotated[str, typer.Option(metavar="NAME", help="MLflow's experiment.")] = "imgcls",
) -> None:
    """Writes a run's history and test metrics as TensorBoard event files, or logs it to MLflow with its files.

    Exporting again replaces what TensorBoard has of the run, and goes on with the same run in MLflow.
    """
    from imgcls.errors import UsageError

    if tensorboard is None and mlflow is None:
        raise UsageError("no place to export to is given; expected --tensorboard DIR, --mlflow URI or both")
    if tensorboard is not None:
        from imgcls.evaluation.export import export_tensorboard

        count = export_tensorboard(run, tensorboard)
        print(f"wrote {count} numbers to {tensorboard / run.resolve().name}")
    if mlflow is not None:
        from imgcls.evaluation.export_mlflow import export_mlflow, hide_password

        done = export_mlflow(run, mlflow, experiment=experiment)
        verb = "made" if done.is_new else "updated"
        sent = f"{done.numbers} new numbers and {done.files} files"
        print(f"{verb} MLflow run {done.run_id} in {hide_password(mlflow)}: {sent}")
