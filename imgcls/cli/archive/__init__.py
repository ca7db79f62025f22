"""`imgcls archive`: builds, inspects, verifies, compares, unpacks, signs and scans archives; one file a command."""

import typer

from imgcls.cli.archive import build, diff, extract, inspect, scan, sign, verify

app = typer.Typer(help="Builds, inspects, verifies, compares, unpacks, signs and scans archives.", no_args_is_help=True)
app.command()(build.build)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command()(diff.diff)
app.command()(extract.extract)
app.command()(sign.sign)
app.command()(scan.scan)
