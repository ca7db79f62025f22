"""Assembles the command `imgcls`; the one place where its errors are printed and exit codes are chosen.

0 done · 1 failed or refused · 2 usage
"""

import io
import os
import signal
import sys

import typer

from imgcls import __version__
from imgcls.cli import (
    apply,
    archive,
    calibrate,
    compare,
    data,
    doctor,
    evaluate,
    export_metrics,
    gate,
    gateway,
    keys,
    lint,
    predict,
    provenance,
    report,
    robustness,
    rollout,
    serving,
    tune,
    tune_training,
)
from imgcls.cli.answer import forget_answers, print_failure
from imgcls.errors import ImgclsError, describe_missing
from model.errors import ModelError

app = typer.Typer(
    help="From labelled images to a TorchServe endpoint that operations teams trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(compare.compare)
app.command(name="export-metrics")(export_metrics.export_metrics)
app.command()(gate.gate)
app.command()(robustness.robustness)
app.command()(report.report)
app.add_typer(data.app, name="data")
app.add_typer(archive.app, name="archive")
app.add_typer(keys.app, name="keys")
app.add_typer(gateway.app, name="gateway")
app.command()(serving.serve)
app.command()(serving.status)
app.command()(serving.scale)
app.command()(serving.stop)
app.command()(apply.apply)
app.add_typer(rollout.app, name="rollout")
app.command()(predict.predict)
app.command()(doctor.doctor)
app.command()(lint.lint)
app.command()(provenance.provenance)
app.command()(tune.tune)
app.command(name="tune-training")(tune_training.tune_training)


@app.command()
def version() -> None:
    """Prints the version of imgcls."""
    print(__version__)


def main() -> None:
    """Runs the command line."""
    forget_answers()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files are removed
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a label or a file's name may not be in the encoding
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImgclsError, ModelError, OSError) as err:  # OSError: a disk that is full or may not be written
        _print_error(str(err), kind=type(err).__name__)
        sys.exit(getattr(err, "exit_code", 1))
    except ModuleNotFoundError as err:
        _print_error(describe_missing(err), kind=type(err).__name__)
        sys.exit(1)


def _print_error(message: str, *, kind: str) -> None:
    text = message
    if not text.isprintable():  # some of it may be an archive's own
        from imgcls.archive.scanning.findings import make_printable

        text = make_printable(text)
    print(f"error: {text}", file=sys.stderr)
    print_failure(message, kind=kind)


if __name__ == "__main__":
    main()
