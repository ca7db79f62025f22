"""`imgcls archive`: builds, inspects, verifies, compares, unpacks, signs and scans archives; one file a command."""

import typer

from imgcls.cli.archive import build, inspect

app = typer.Typer(help="Builds and inspects archives.", no_args_is_help=True)
app.command()(build.build)
app.command()(inspect.inspect)
