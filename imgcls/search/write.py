"""What a search leaves for people: a table of its trials, the best settings as a command, and plots."""

import csv
import io
import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import optuna
from optuna.trial import FrozenTrial, TrialState

from imgcls.files import write_atomic
from imgcls.search.space import Space, to_flags
from imgcls.search.study import SEED, TRIALS_FOLDER, describe_state, has_best, read_reason

_FEWEST = 2  # finished trials, below which there is nothing to plot


def write_results(study: optuna.Study, space: Space, folder: Path, *, metric: str, seed: int) -> list[str]:
    """Writes trials.csv, best.json and the plots; returns the names of what was written."""
    write_atomic(folder / "trials.csv", _format_trials(study, space, metric=metric))
    written = ["trials.csv"]
    if has_best(study):
        best = study.best_trial
        fields = {
            "trial": best.number,
            metric: best.value,
            "settings": space.fixed | best.params,
            "run": str(folder / TRIALS_FOLDER / f"{best.number:04}"),
            "command": describe_command(best, space, seed=seed),
        }
        write_atomic(folder / "best.json", json.dumps(fields, indent=1) + "\n")
        written.append("best.json")
    if len(study.get_trials(states=(TrialState.COMPLETE,))) >= _FEWEST:
        written += _plot(study, folder, metric=metric)
    return written


def describe_command(trial: FrozenTrial, space: Space, *, seed: int) -> str:
    """Returns the command that trains with a trial's settings; `seed` is of trials that did not keep theirs."""
    flags = to_flags({**space.fixed, **trial.params, SEED: trial.user_attrs.get(SEED, seed)})
    return shlex.join(["python", "train.py", *flags])


def _format_trials(study: optuna.Study, space: Space, *, metric: str) -> str:
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["trial", "state", metric, "epochs", *space.search, "reason"])
    for trial in study.trials:
        seen = trial.intermediate_values
        last = trial.value if trial.value is not None else seen.get(max(seen, default=0))
        settings = [trial.params.get(name, "") for name in space.search]
        epochs = trial.user_attrs.get("epochs", "")
        rows.writerow([trial.number, describe_state(trial), last, epochs, *settings, read_reason(trial)])
    return buffer.getvalue()


def _plot(study: optuna.Study, folder: Path, *, metric: str) -> list[str]:
    """Draws with Optuna's own plots, which are experimental there and say so."""
    mpl.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    drawn: dict[str, Callable[[], object]] = {
        "history.png": lambda: plots.plot_optimization_history(study, target_name=metric),
        "slices.png": lambda: plots.plot_slice(study, target_name=metric),
        "epochs.png": lambda: plots.plot_intermediate_values(study),
        "importances.png": lambda: plots.plot_param_importances(study, target_name=metric),
    }
    written = []
    for name, draw in drawn.items():
        with warnings.catch_warnings(), mpl.rc_context():  # Optuna sets a style for the whole process
            warnings.simplefilter("ignore")
            try:
                draw()
            except (RuntimeError, ValueError):  # importances of trials that are all alike are not defined
                continue
            buffer = io.BytesIO()
            pyplot.gcf().savefig(buffer, format="png", dpi=120, bbox_inches="tight")
            pyplot.close("all")
        write_atomic(folder / name, buffer.getvalue())
        written.append(name)
    return written
