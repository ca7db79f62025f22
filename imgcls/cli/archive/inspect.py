"""`imgcls archive inspect`: what an archive says about itself."""

import json
from pathlib import Path
from typing import Annotated

import typer

ARCHIVE = Path("model_store/imgcls.mar")


def inspect(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = ARCHIVE,
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
