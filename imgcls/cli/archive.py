"""`imgcls archive`: build and inspect archives."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Builds and inspects archives.", no_args_is_help=True)

STORE = Path("model_store")


@app.command()
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


@app.command()
def inspect(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = STORE / "imgcls.mar",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows what an archive says about itself, on one screen."""
    from dataclasses import asdict

    from imgcls.archive.contents import read_contents

    contents = read_contents(archive)
    if as_json:
        print(json.dumps(asdict(contents), indent=2))
        return
    print(f"{contents.name} {contents.version}   {archive}")
    print(f"network   {contents.network}")
    more = " …" if len(contents.classes) > 12 else ""
    print(f"classes   {len(contents.classes)}: {', '.join(contents.classes[:12])}{more}")
    print(f"config    {contents.model_config}")
    for name, scores in contents.metrics.get("test_sets", {}).items():
        print(f"test set  {name}: accuracy {scores['accuracy']:.4f} on {scores['samples']} samples")
    for path, size_bytes in contents.sizes.items():
        print(f"{size_bytes:>12,}  {path}")
