"""The option that names a server's state folder, for every command that has one."""

from pathlib import Path
from typing import Annotated

import typer

StateOption = Annotated[
    Path,
    typer.Option(
        "--state",
        help="The server's state folder. It belongs to imgcls, which removes files in it; each server needs its own.",
    ),
]
STATE = Path(".imgcls/serve")
