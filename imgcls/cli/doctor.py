"""`imgcls doctor`: what would make TorchServe fail later, and what to do about it."""

import json
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    archive: Annotated[Path, typer.Argument(help="The .mar file to be served.")] = Path("model_store/imgcls.mar"),
    *,
    ts_config: Annotated[Path, typer.Option(help="TorchServe's settings.")] = Path("config.properties"),
    port: Annotated[int | None, typer.Option(help="First port, as for imgcls serve. [default: --ts-config's]")] = None,
    state: Annotated[Path, typer.Option(help="The server's state folder.")] = Path(".imgcls/serve"),
    java: Annotated[str | None, typer.Option(help="embedded, system, or a Java home.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Checks what would make TorchServe fail later.

    Looks at settings, Java, packages, archive, ports, GPU, disk, state and environment; exits 1 on an error.
    """
    from dataclasses import asdict

    from imgcls.serving.doctor import Subject, examine

    findings = examine(Subject(archive=archive, config=ts_config, state=state, port=port, java=java))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            fix = f"; {finding.fix}" if finding.fix else ""
            print(f"{finding.status:<8} {finding.name:<14} {finding.detail}{fix}")
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)
