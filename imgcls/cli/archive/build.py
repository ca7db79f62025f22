"""`imgcls archive build`: from a run directory to an archive in the model store."""

from pathlib import Path
from typing import Annotated

import typer

STORE = Path("model_store")


def build(
    run: Annotated[Path, typer.Argument(help="Run directory that train.py wrote.")],
    *,
    name: Annotated[str, typer.Option(help="Model name; the archive is NAME.mar.")] = "imgcls",
    version: Annotated[str, typer.Option(help="Model version, part of the inference URL.")] = "1.0",
    store: Annotated[Path, typer.Option(help="Folder to write the archive into.")] = STORE,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers to start; default: TorchServe's, one a core or one a GPU.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most requests in one batch.")] = 8,
    max_batch_delay_ms: Annotated[
        int, typer.Option(min=0, help="Wait for a batch to fill; a lone request waits too.")
    ] = 2,
) -> None:
    """Builds STORE/NAME.mar from a run, and proves that it answers before it is put in place."""
    from imgcls.archive.build import build_archive
    from imgcls.archive.stage import ServingOptions

    options = ServingOptions(workers=workers, batch_size=batch_size, max_batch_delay_ms=max_batch_delay_ms)
    archive = build_archive(run, store, name=name, version=version, options=options)
    print(
        f"built {archive.absolute()} ({archive.stat().st_size:,} bytes): {name} {version}, golden inputs answered right"
    )
