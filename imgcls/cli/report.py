"""`imgcls report`: a run on one page, to show to a colleague."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that was evaluated.")],
    *,
    against: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="Run to compare with, evaluated on the same test sets.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. [default: RUN/report.html]")] = None,
) -> None:
    """Writes one self-contained HTML file about a run: numbers, mistakes in pictures, slices, corruptions, training.

    It holds no script and loads nothing, so that it can be mailed. It shows what imgcls evaluate and imgcls robustness
    have stored.
    """
    from imgcls.files import refuse_unwritable, write_atomic
    from imgcls.report.collect import collect_run
    from imgcls.report.render import render

    page = render("run.html.j2", vars(collect_run(run, baseline=against)))
    target = out or run / "report.html"
    with refuse_unwritable(target, advice="choose another file with --out"):
        write_atomic(target, page)
    print(target)
    print(f"{len(page.encode()):,} bytes; open it in a browser", file=sys.stderr)
