"""`imgcls tune`: which settings serve an archive best on this machine, found by measurement."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def tune(
    archive: Annotated[Path, typer.Argument(help="The .mar file to tune; it is not changed.")],
    *,
    slo: Annotated[str, typer.Option(help="The latency that users must get, such as p99=50ms or p95=0.2s.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send. [default: made ones, like photographs]")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="How long it may take, such as 90s or 5m; what was begun is finished.")
    ] = "5m",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into. [default: tuned/NAME]", show_default=False)
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Engines to try, separated by commas. [default: all in the archive]")
    ] = None,
    stretch: Annotated[
        str, typer.Option(help="How long each stretch of load takes at first, at least 1s; the best get twice as long.")
    ] = "2s",
    ts_config: Annotated[Path, typer.Option(help="TorchServe's settings to start from; never changed.")] = Path(
        "config.properties"
    ),
    java: Annotated[
        str | None,
        typer.Option(
            help="embedded, system, or a Java home. [default: $IMGCLS_JAVA, else embedded]", show_default=False
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Trust file: whose archives are served. [default: as imgcls serve finds it]", show_default=False
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: all measurements, and what was written.")
    ] = False,
) -> None:
    """Measures an archive with several engines, workers, threads and batches, and recommends the best.

    Each candidate gets a TorchServe of its own on free ports and load from k6: a closed loop to find what it can do,
    then an open one to find the highest rate that meets the objective. Nothing else should run on the machine
    meanwhile. Exits 1 when no candidate meets the objective.
    """
    from imgcls.errors import ImgclsError
    from imgcls.serving.foreground import StopRequestedError
    from imgcls.tuning.load import SHORTEST_S
    from imgcls.tuning.report import as_dict, as_table, as_text, describe_trial
    from imgcls.tuning.run import TuneOptions
    from imgcls.tuning.run import tune as tune_archive
    from imgcls.tuning.slo import parse_duration, parse_slo
    from imgcls.tuning.write import describe_use, refuse_out, write_tuned

    objective = parse_slo(slo)
    folder = out or Path("tuned") / archive.stem
    refuse_out(folder, archive=archive, config=ts_config)
    options = TuneOptions(
        archive=archive,
        config=ts_config,
        slo=objective,
        budget_s=parse_duration(budget, option="--budget"),
        stretch_s=parse_duration(stretch, option="--stretch", least_s=SHORTEST_S),
        images=images,
        engines=tuple(engines.split(",")) if engines else (),
        java=java,
        trust=trust,
    )
    try:
        tuned = tune_archive(
            options,
            on_progress=_tell,
            on_trial=lambda candidate, trial, stage: _tell(describe_trial(candidate, trial, stage, slo=objective)),
        )
    except StopRequestedError as err:
        _tell("stopped; nothing was written")
        raise typer.Exit(128 + err.number) from err
    found = f"{as_table(tuned)}\n{as_text(tuned)}"
    try:
        written = write_tuned(tuned, folder)
    except ImgclsError:
        _tell(found)  # minutes of measurements, which are nowhere else
        raise
    if as_json:
        print(json.dumps(as_dict(tuned) | {"written": written.as_dict()}, indent=2))
    else:
        print("\n".join(filter(None, (found, describe_use(tuned, written), f"wrote   {folder.absolute()}"))))
    if tuned.verdict.recommended is None:
        if (folder / archive.name).exists():
            _tell(f"note: {folder / archive.name} and its settings are of an earlier tuning")
        raise typer.Exit(1)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
