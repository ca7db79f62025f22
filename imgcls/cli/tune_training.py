"""`imgcls tune-training`: which settings train best, found by trying."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from rich.table import Table


def tune_training(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="TOML file: which flags of train.py to search.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the study lies. [default: tuned/NAME of SPACE]", show_default=False),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trials to run now, beside those of earlier calls.")] = 20,
    timeout: Annotated[
        str | None, typer.Option(help="Begin no trial after this time, such as 90s or 30m.", show_default=False)
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Column of history.csv; less is better where it ends in loss, else more.")
    ] = "val_accuracy",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the proposals and of train.py.")] = 0,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="End trials below the median of others.")] = True,
    keep: Annotated[str, typer.Option(help="Runs to keep whole: best or all.")] = "best",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Searches settings of train.py with Optuna; each trial is a process of its own.

    A search that was killed goes on with the same command. Writes trials.csv, best.json and plots. Exits 1 when no
    trial came to its end.
    """
    from rich.console import Console

    from imgcls.errors import UsageError
    from imgcls.files import refuse_unwritable
    from imgcls.search.space import read_space
    from imgcls.search.study import SearchOptions, has_best, search
    from imgcls.search.write import describe_command, write_results
    from imgcls.tuning.slo import parse_duration

    if keep not in ("best", "all"):
        raise UsageError(f"--keep is {keep!r}; expected best or all")
    wanted, sha256 = read_space(space)
    folder = out or Path("tuned") / space.stem
    options = SearchOptions(
        trials=trials,
        timeout_s=parse_duration(timeout, option="--timeout") if timeout else None,
        metric=metric,
        seed=seed,
        prune=prune,
        keep_all=keep == "all",
    )
    advice = "make room or mend its permissions, then go on with the same command, or give another --out"
    try:
        with refuse_unwritable(folder, advice=advice):
            study = search(wanted, sha256, folder, options=options, on_trial=_tell)
            written = write_results(study, wanted, folder, metric=metric, seed=seed)
    except KeyboardInterrupt:
        print(f"interrupted; go on with the same command, {folder} holds what was done", file=sys.stderr)
        raise typer.Exit(130) from None
    found = has_best(study)
    best = study.best_trial if found else None
    if as_json:
        fields = {"trials": len(study.trials), "written": [str(folder / name) for name in written]}
        if best:
            fields |= {"best": best.number, metric: best.value, "settings": wanted.fixed | best.params}
        print(json.dumps(fields, indent=1))
    else:
        Console().print(_build_table(study, metric=metric))
        if best:
            print(f"best     trial {best.number}, {metric} {best.value:.4f}")
            print(f"train    {describe_command(best, wanted, seed=seed)}")
        print(f"wrote    {folder}: {', '.join(written)}")
    if not found:
        raise typer.Exit(1)


def _tell(trial: "FrozenTrial") -> None:
    from imgcls.search.study import describe_state, read_reason

    settings = ", ".join(f"{name} {_show(value)}" for name, value in trial.params.items())
    value = "" if trial.value is None else f" {trial.value:.4f}"
    reason = f": {read_reason(trial)}" if read_reason(trial) else ""
    print(f"trial {trial.number} {describe_state(trial)}{value}  {settings}{reason}", file=sys.stderr, flush=True)


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _build_table(study: "Study", *, metric: str) -> "Table":
    """Builds the table of the ten best trials."""
    from optuna.trial import TrialState
    from rich.table import Table

    done = study.get_trials(states=(TrialState.COMPLETE,))
    ordered = sorted(done, key=lambda trial: trial.value or 0.0, reverse=study.direction.name == "MAXIMIZE")
    states = [trial.state for trial in study.trials]
    title = f"{len(done)} of {len(states)} trials done, {states.count(TrialState.PRUNED)} pruned"
    table = Table("trial", metric, "settings", title=title)
    for trial in ordered[:10]:
        settings = ", ".join(f"{name} {_show(value)}" for name, value in trial.params.items())
        table.add_row(str(trial.number), f"{trial.value:.4f}", settings)
    return table
