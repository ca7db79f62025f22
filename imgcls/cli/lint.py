"""`imgcls lint`: what TorchServe would silently ignore, or would not start with."""

import json
from pathlib import Path
from typing import Annotated

import typer

CONFIG = Path("config.properties")


def lint(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="config.properties, model-config.yaml, or a .mar with one.", show_default=str(CONFIG)),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Checks TorchServe's settings: keys it would ignore, values it cannot use, and values that do harm.

    Knows the keys of TorchServe 0.12.0. Exits 1 on an error; warnings are only printed.
    """
    from dataclasses import asdict

    from imgcls.serving.lint import lint_file

    found = {path: lint_file(path) for path in files or [CONFIG]}
    findings = [finding for each in found.values() for finding in each]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for path, each in found.items():
            print("\n".join(map(str, each)) if each else f"{path}: ok")
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)
