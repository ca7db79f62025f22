"""The study: its trials on the disk, what Optuna proposes next, and what is kept of each run."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from imgcls.checkout import HOME
from imgcls.errors import RunError
from imgcls.files import write_atomic
from imgcls.search.space import Space, Value, to_flags
from imgcls.search.trial import HISTORY_FILE, run_trial
from imgcls.training.record import RECORD_FILE, read_record

STUDY = "training"
JOURNAL_FILE = "study.journal"
TRIALS_FOLDER = "trials"
_LOCK_SUFFIX = ".lock"  # Optuna's, of the journal
_APPEND_S = 1.0  # the longest that a record takes to the disk
SEED = "seed"
_SPACE = "space_sha256"
_METRIC = "metric"
_IMAGES = "images_sha256"
_CHOOSING = ("data", "val_fraction", "test_fraction", SEED)  # the flags that say which images are trained on
_REASON = "reason"
_WARM_UP_TRIALS = 4  # before any is pruned


class _OtherImagesError(RunError):
    """Trials of this study learnt from other images."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search: `trials` more, but none is begun after `timeout_s`; `seed` is of the proposals and of `train`."""

    trials: int
    timeout_s: float | None = None
    metric: str = "val_accuracy"
    seed: int = 0
    prune: bool = True
    keep_all: bool = False
    train: Path = HOME / "train.py"

    @property
    def maximise(self) -> bool:
        """Whether more is better: of everything but a loss."""
        return not self.metric.endswith("loss")


def search(
    space: Space,
    space_sha256: str,
    folder: Path,
    *,
    options: SearchOptions,
    on_trial: Callable[[FrozenTrial], None] = lambda trial: None,
) -> optuna.Study:
    """Runs trials, or goes on with those of an earlier call; what was running when that was killed is run again.

    Raises:
        RunError: the folder is in use, or holds a study that is damaged, or of another space, metric or images.
        OSError: the folder cannot be written; what was done stays.
    """
    if not options.train.is_file():
        raise RunError(f"{options.train}: is not there; search from a checkout of the project")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (folder / TRIALS_FOLDER).mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        study = _open(folder, options)
        _claim(study, folder, space_sha256=space_sha256, metric=options.metric)
        _refuse_other_draws(study, space, folder)
        _requeue(study)
        deadline = time.monotonic() + options.timeout_s if options.timeout_s else None
        for _ in range(options.trials):
            if deadline and time.monotonic() > deadline:
                break
            on_trial(_run_one(study, space, folder, options=options))
    return study


def load_study(folder: Path) -> optuna.Study:
    """Opens a study to look at it."""
    return optuna.load_study(study_name=STUDY, storage=_storage(folder))


def describe_state(trial: FrozenTrial) -> str:
    """Returns what became of a trial, in a word."""
    return {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(
        trial.state, "running"
    )


def read_reason(trial: FrozenTrial) -> str:
    """Returns why a trial failed; empty where it did not."""
    return str(trial.user_attrs.get(_REASON, ""))


def has_best(study: optuna.Study) -> bool:
    """Whether a trial came to its end."""
    return any(trial.state == TrialState.COMPLETE for trial in study.trials)


def _storage(folder: Path) -> JournalStorage:
    # Absolute, as the journal's lock is a link to it: Optuna waits for ever for one that leads nowhere.
    return JournalStorage(JournalFileBackend(str((folder / JOURNAL_FILE).absolute())))


def _mend(journal: Path) -> None:
    """Removes what is left of an append that did not end: a lock, which Optuna waits for, and half a line.

    No other search appends while the folder is held. What else may, such as Optuna's dashboard, holds the journal's
    lock for an instant; half a line while we have that lock is nobody's.

    Raises:
        RunError: a whole line is no record.
    """
    link = journal.with_name(journal.name + _LOCK_SUFFIX)
    if link.is_symlink():
        time.sleep(_APPEND_S)
        link.unlink(missing_ok=True)
    lock = JournalFileSymlinkLock(str(journal.absolute()))
    lock.acquire()
    try:
        lines = _cut_half_line(journal).splitlines()
    finally:
        lock.release()
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)["op_code"]
        except (LookupError, TypeError, ValueError) as err:
            raise RunError(
                f"{journal}: is damaged: line {number} is no record of Optuna's; keep those before it "
                f"(head -n {number - 1}), or give another --out"
            ) from err


def _cut_half_line(path: Path) -> bytes:
    """Returns the whole lines of a file, which it keeps."""
    with path.open("rb+") as file:
        data = file.read()
        size_bytes = data.rfind(b"\n") + 1
        if size_bytes < len(data):
            file.truncate(size_bytes)
            os.fsync(file.fileno())
    return data[:size_bytes]


def _open(folder: Path, options: SearchOptions) -> optuna.Study:
    """Opens the study; the sampler's seed moves on with the trials, or a resumed study would draw the same again."""
    journal = folder / JOURNAL_FILE
    if journal.exists():
        _mend(journal)
    try:
        study = optuna.create_study(
            storage=_storage(folder),
            study_name=STUDY,
            direction="maximize" if options.maximise else "minimize",
            load_if_exists=True,
        )
    except (AssertionError, LookupError, TypeError, ValueError) as err:  # Optuna's, of a record that it cannot replay
        cause = f"{type(err).__name__}: {err}"
        raise RunError(f"{journal}: is damaged, Optuna cannot replay it ({cause}); give another --out") from err
    done = len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=(options.seed + done) % 2**32, multivariate=False)
    study.pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=_WARM_UP_TRIALS, n_warmup_steps=1)
        if options.prune
        else optuna.pruners.NopPruner()
    )
    return study


def _claim(study: optuna.Study, folder: Path, *, space_sha256: str, metric: str) -> None:
    known = study.user_attrs
    for key, value, what in ((_SPACE, space_sha256, "search space"), (_METRIC, metric, "metric")):
        if known.get(key, value) != value:
            raise RunError(f"{folder}: holds a study of another {what}; give another --out, or go on with its own")
        study.set_user_attr(key, value)


def _refuse_other_draws(study: optuna.Study, space: Space, folder: Path) -> None:
    """Raises RunError where an earlier version of imgcls drew a flag otherwise, as whole numbers for a step of 1.5.

    Optuna would refuse it too, in its own words, and leave a trial behind that never ran.
    """
    wanted = space.distributions
    for trial in study.trials:
        for name, drawn in trial.distributions.items():
            try:
                check_distribution_compatibility(drawn, wanted[name])
            except ValueError as err:
                raise RunError(
                    f"{folder}: an earlier version of imgcls began its study, and drew {name} from {drawn}; now it "
                    f"would be {wanted[name]}: give another --out"
                ) from err


def _requeue(study: optuna.Study) -> None:
    """Ends what a killed search left running, and has its settings tried again."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _run_one(study: optuna.Study, space: Space, folder: Path, *, options: SearchOptions) -> FrozenTrial:
    trial, settings = space.ask(study)
    settings = {**settings, SEED: options.seed}
    flags = to_flags(settings)
    trial.set_user_attr(SEED, options.seed)
    run = folder / TRIALS_FOLDER / f"{trial.number:04}"

    def tell_epoch(epoch: int, value: float) -> bool:
        trial.report(value, epoch)
        return trial.should_prune()

    try:
        outcome = run_trial(
            run,
            flags,
            metric=options.metric,
            maximise=options.maximise,
            on_epoch=tell_epoch,
            train=options.train,
        )
        _refuse_other_images(study, run, settings)
    except RunError as err:
        trial.set_user_attr(_REASON, str(err))
        study.tell(trial, state=TrialState.FAIL)
        if isinstance(err, _OtherImagesError):
            raise
    else:
        trial.set_user_attr("epochs", outcome.epochs)
        if outcome.is_pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, outcome.value)
    if not options.keep_all:
        _drop_runs(study, folder)
    return study.trials[trial.number]


def _refuse_other_images(study: optuna.Study, run: Path, settings: Mapping[str, Value]) -> None:
    """Raises _OtherImagesError where a trial has seen other images than earlier ones by the same flags."""
    if not (run / RECORD_FILE).is_file():
        return
    splits = read_record(run / RECORD_FILE).data.splits
    digest = hashlib.sha256(repr(sorted(splits.items())).encode()).hexdigest()
    known = study.user_attrs.get(_IMAGES, {})
    flags = json.dumps({name: settings.get(name) for name in _CHOOSING})
    if known.get(flags, digest) != digest:
        raise _OtherImagesError(
            f"{run.parent.parent}: its study began with other images, whose trials say nothing about these; give "
            "another --out"
        )
    study.set_user_attr(_IMAGES, known | {flags: digest})


def _drop_runs(study: optuna.Study, folder: Path) -> None:
    """Keeps the best run whole, and of the others their history: weights of hundreds of trials fill a disk."""
    best = study.best_trial.number if has_best(study) else -1
    for run in (folder / TRIALS_FOLDER).iterdir():
        if run.is_dir() and run.name != f"{best:04}" and any(file.name != HISTORY_FILE for file in run.iterdir()):
            history = run / HISTORY_FILE
            text = history.read_text(encoding="utf-8") if history.is_file() else None
            shutil.rmtree(run)
            if text is not None:
                run.mkdir()
                write_atomic(history, text)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder: a second search would take the first one's running trial for a killed one."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise RunError(f"{folder}: another search is running in it; wait, or give another --out") from err
        yield
