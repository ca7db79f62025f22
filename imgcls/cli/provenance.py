"""`imgcls provenance`: which data, which code, which numbers."""

import json
from pathlib import Path
from typing import Annotated

import typer

STATE = Path(".imgcls/serve")


def provenance(
    archive: Annotated[
        Path | None,
        typer.Argument(help="A .mar file. [default: the one whose content the server of --state holds]"),
    ] = None,
    *,
    model: Annotated[str | None, typer.Option(help="Served model. [default: the one the server started with]")] = None,
    version: Annotated[str | None, typer.Option(help="Served version. [default: the default version]")] = None,
    state: Annotated[Path, typer.Option(help="State folder of a server that imgcls serve started.")] = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tells which data, code and numbers a version comes from.

    Of a running server it asks a worker what it holds, and reads the archive in the model store that is the same to the
    byte; if there is none, it refuses. It checks what it reads; the whole file is for imgcls archive verify.
    """
    from dataclasses import asdict

    from imgcls.archive.origin import read_origin
    from imgcls.archive.scanning.findings import make_printable
    from imgcls.errors import UsageError

    if archive is not None and (model or version):
        raise UsageError(
            "got an archive and --model or --version, which are of a running server; give one or the other"
        )
    served = None
    if archive is None:
        from imgcls.serving.served import find_served
        from imgcls.serving.state import StateFolder

        served = find_served(StateFolder(state), name=model, version=version)
        archive = served.archive
    origin = read_origin(archive)
    if as_json:
        fields = {"archive": str(archive), **origin.as_dict(), "served": asdict(served) if served else None}
        print(json.dumps(fields, indent=2, default=str))
        return
    print(f"{make_printable(f'{origin.name} {origin.version}')}   {archive}")
    if served:
        signer = f", signed by {make_printable(served.signer)}" if served.signer else ""
        print(f"{'served':<11}at {served.management_url}, where a worker says that it holds this content{signer}")
    print(origin.as_text())
