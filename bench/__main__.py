"""`python -m bench WHAT`: one measurement a word; each prints a table in Markdown."""

import typer

from bench.accuracy import accuracy
from bench.archive import archive
from bench.ceilings import ceilings
from bench.fine_tune import fine_tune
from bench.growth import growth
from bench.label_noise import noise
from bench.rollout import rollout
from bench.serve import serve
from bench.train_loop import train

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measures, as ratios within one run.")
app.command()(serve)
app.command()(archive)
app.command()(accuracy)
app.command()(growth)
app.command()(ceilings)
app.command()(rollout)
app.command()(noise)
app.command()(train)
app.command()(fine_tune)

if __name__ == "__main__":
    app()
