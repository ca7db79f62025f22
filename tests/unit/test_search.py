"""The search with a script that trains nothing, for speed; tests/slow/test_tune_training.py has the real train.py."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from imgcls.errors import RunError, UsageError
from imgcls.search.space import read_space, to_flags
from imgcls.search.study import SearchOptions, load_study, search
from imgcls.search.trial import run_trial
from imgcls.search.write import write_results
from imgcls.training.record import CodeRecord, DataRecord, SplitRecord, TrainRecord
from tests.support.processes import wait_for_end

Command = Callable[..., tuple[int, str, str]]
SPACE = """
[fixed]
epochs = 3
flip = true

[search.lr]
low = 0.01
high = 1.0
log = true

[search.width]
choices = [8, 16]
"""
# The closer lr is to 0.1, the better; lr above 0.9 fails.
SCRIPT = """
import argparse, math, os, pathlib, sys, time
parser = argparse.ArgumentParser()
for flag in ("--out", "--lr", "--width", "--epochs", "--seed"):
    parser.add_argument(flag, required=True)
parser.add_argument("--overwrite", action="store_true")
parser.add_argument("--flip", action="store_true")
parser.add_argument("--slow", type=float, default=0)
args = parser.parse_args()
out = pathlib.Path(args.out)
out.mkdir(parents=True)
(out / "weights.safetensors").write_bytes(b"weights")
(out / "pid").write_text(str(os.getpid()))
if float(args.lr) > 0.9:
    sys.exit("error: the loss is nan; lower --lr")
rows = ["epoch,val_loss,val_accuracy"]
for epoch in range(1, int(args.epochs) + 1):
    value = epoch / 10 - abs(math.log10(float(args.lr)) + 1) / 10
    rows.append(f"{epoch},{1 - value},{value}")
    (out / "history.csv").write_text("\\n".join(rows) + "\\n")
    time.sleep(args.slow)
record = pathlib.Path(__file__).with_name("record.json")
if record.exists():
    (out / "train_record.json").write_bytes(record.read_bytes())
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def read(tmp_path: Path, text: str = SPACE):
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path)


def run(tmp_path: Path, train: Path, *, trials: int, text: str = SPACE, **options):
    space, sha256 = read(tmp_path, text)
    return search(space, sha256, tmp_path / "study", options=SearchOptions(trials=trials, train=train, **options))


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """What a full disk does: of what is written, the part that still fits is, and then nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_search_finds_the_good_end_and_keeps_the_best_run_only(tmp_path: Path, train: Path):
    study = run(tmp_path, train, trials=8, prune=False)
    done = study.get_trials(states=(TrialState.COMPLETE,))
    assert study.best_value == max(trial.value for trial in done)
    assert abs(study.best_value - 0.3) < 0.1
    whole = [
        folder.name for folder in (tmp_path / "study" / "trials").iterdir() if (folder / "weights.safetensors").exists()
    ]
    assert whole == [f"{study.best_trial.number:04}"]
    assert all((tmp_path / "study" / "trials" / f"{trial.number:04}" / "history.csv").exists() for trial in done)


def test_results_are_written_for_people_and_machines(tmp_path: Path, train: Path):
    study = run(tmp_path, train, trials=4, seed=1)
    space, _ = read(tmp_path)
    written = write_results(study, space, tmp_path / "study", metric="val_accuracy", seed=0)  # as a later call has it
    assert {"trials.csv", "best.json", "history.png", "slices.png", "epochs.png"} <= set(written)
    assert (tmp_path / "study" / "history.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "study" / "trials.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert set(rows[0]) == {"trial", "state", "val_accuracy", "epochs", "lr", "width", "reason"}
    best = json.loads((tmp_path / "study" / "best.json").read_text())
    assert best["settings"]["epochs"] == 3
    assert best["command"].startswith("python train.py --epochs 3 --flip --lr ")
    assert best["command"].endswith(" --seed 1")


def test_search_goes_on_with_new_proposals(tmp_path: Path, train: Path):
    first = {trial.params["lr"] for trial in run(tmp_path, train, trials=3, prune=False).trials}
    study = run(tmp_path, train, trials=3, prune=False)
    assert [trial.number for trial in study.trials] == list(range(6))
    assert len(first | {trial.params["lr"] for trial in study.trials}) == 6


def test_loss_is_minimised_and_a_failure_is_told_with_its_reason(tmp_path: Path, train: Path):
    text = SPACE.replace("low = 0.01\nhigh = 1.0\nlog = true", "choices = [0.1, 0.95]")
    study = run(tmp_path, train, trials=6, text=text, metric="val_loss", prune=False)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert failed
    assert "train.py ended with 1: the loss is nan; lower --lr" in failed[0].user_attrs["reason"]
    assert study.best_params["lr"] == 0.1
    assert study.best_value == pytest.approx(0.7)


def test_a_poor_trial_is_ended_early(tmp_path: Path, train: Path):
    train.write_text(SCRIPT.replace("default=0)", "default=5)"))
    started, seen = time.monotonic(), []

    def give_up(epoch: int, value: float) -> bool:
        seen.append(epoch)
        return True

    flags = to_flags({"lr": 0.1, "width": 8, "epochs": 3, "seed": 0})
    outcome = run_trial(tmp_path / "run", flags, metric="val_accuracy", maximise=True, on_epoch=give_up, train=train)
    assert (outcome.is_pruned, seen) == (True, [1])
    assert time.monotonic() - started < 4


def test_a_trial_below_the_median_of_others_is_pruned(tmp_path: Path, train: Path):
    train.write_text(SCRIPT.replace("default=0)", "default=0.4)"))
    text = SPACE.replace("low = 0.01\nhigh = 1.0\nlog = true", "choices = [0.1, 0.011]")
    run(tmp_path, train, trials=1, text=text)
    study = load_study(tmp_path / "study")
    for lr in (0.1, 0.1, 0.1, 0.1, 0.011):
        study.enqueue_trial({"lr": lr, "width": 8})
    states = [trial.state for trial in run(tmp_path, train, trials=5, text=text).trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]


def test_search_that_was_killed_takes_its_trial_with_it_and_runs_it_again(tmp_path: Path, train: Path):
    train.write_text(SCRIPT.replace("default=0)", "default=20)"))
    read(tmp_path)
    code = f"""
        from pathlib import Path
        from imgcls.search.space import read_space
        from imgcls.search.study import SearchOptions, search
        space, sha256 = read_space(Path({str(tmp_path / "space.toml")!r}))
        options = SearchOptions(trials=1, train=Path({str(train)!r}))
        search(space, sha256, Path({str(tmp_path / "study")!r}), options=options)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], start_new_session=True)
    while not (tmp_path / "study" / "trials" / "0000" / "history.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(RunError, match="another search is running"):
        run(tmp_path, train, trials=1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_end(int((tmp_path / "study" / "trials" / "0000" / "pid").read_text()), timeout_s=5)
    wanted = load_study(tmp_path / "study").trials[0].params
    train.write_text(SCRIPT)
    study = run(tmp_path, train, trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].params == wanted


@pytest.mark.parametrize("more_bytes", [1, 300])
def test_search_goes_on_after_a_full_disk_cut_its_journal(tmp_path: Path, train: Path, more_bytes: int):
    run(tmp_path, train, trials=1)
    journal = tmp_path / "study" / "study.journal"
    with files_up_to(journal.stat().st_size + more_bytes), pytest.raises(OSError, match="File too large"):
        run(tmp_path, train, trials=1)
    assert not journal.read_bytes().endswith(b"\n")
    for _ in range(2):
        study = run(tmp_path, train, trials=1)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 3
    assert TrialState.RUNNING not in states


def test_search_goes_on_where_it_was_killed_in_an_append(tmp_path: Path, train: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(Path(), train, trials=1)
    journal = Path("study/study.journal")
    whole = journal.read_bytes()
    journal.write_bytes(whole + bytes(100))  # a power cut may leave zeros where the line was to be
    Path("study/study.journal.lock").symlink_to(journal)  # as Optuna does; from there it leads nowhere
    study = run(Path(), train, trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("record", ["", "{}", "null", '{"op_code": 4, "wor{"op_code": 0}', '{"op_code": 5}'])
def test_journal_that_is_damaged_is_named_and_left_as_it_is(tmp_path: Path, train: Path, record: str):
    run(tmp_path, train, trials=1)
    journal = tmp_path / "study" / "study.journal"
    damaged = journal.read_bytes() + record.encode() + b"\n"
    journal.write_bytes(damaged)
    with pytest.raises(RunError, match=rf"{journal}: is damaged.*give another --out"):
        run(tmp_path, train, trials=1)
    assert journal.read_bytes() == damaged


def test_another_space_or_metric_needs_another_folder(tmp_path: Path, train: Path):
    run(tmp_path, train, trials=1)
    with pytest.raises(RunError, match="a study of another search space"):
        run(tmp_path, train, trials=1, text=SPACE.replace("16", "24"))
    with pytest.raises(RunError, match="a study of another metric"):
        run(tmp_path, train, trials=1, metric="train_accuracy")


def test_study_whose_images_have_changed_ends_before_it_mixes_trials(tmp_path: Path, train: Path):
    def write_images(sha256: str) -> None:
        split = SplitRecord(files=9, unreadable=0, classes={"cat": 5, "dog": 4}, sha256=sha256)
        code = CodeRecord(git_commit=None, git_dirty=None, sha256="0", locks={})
        data = DataRecord(source="photos", splits={"train": split})
        record = TrainRecord(code=code, data=data, seed=0, device="cpu", parent=None, versions={})
        (tmp_path / "record.json").write_text(record.model_dump_json())

    write_images("a")
    run(tmp_path, train, trials=2)
    run(tmp_path, train, trials=1, seed=1)
    write_images("b")
    with pytest.raises(RunError, match=r"study: its study began with other images.*give another --out$"):
        run(tmp_path, train, trials=3)
    trials = load_study(tmp_path / "study").trials
    assert [trial.state for trial in trials] == [*[TrialState.COMPLETE] * 3, TrialState.FAIL]
    run(tmp_path, train, trials=1, seed=2)  # which draws other splits


def test_study_that_an_earlier_version_drew_otherwise_is_refused_before_a_trial(tmp_path: Path, train: Path):
    text = "[fixed]\nepochs = 1\nwidth = 8\n[search.lr]\nlow = 0\nhigh = 6\nstep = 1.5\n"
    (tmp_path / "study").mkdir()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study" / "study.journal"))
    )
    study = optuna.create_study(storage=storage, study_name="training", direction="maximize")
    study.tell(study.ask({"lr": optuna.distributions.IntDistribution(0, 6)}), 0.5)
    with pytest.raises(
        RunError, match=r"earlier version of imgcls.*drew lr from IntDistribution.*: give another --out"
    ):
        run(tmp_path, train, trials=1, text=text)
    assert len(load_study(tmp_path / "study").trials) == 1


def test_column_that_the_history_lacks_is_told_with_those_it_has(tmp_path: Path, train: Path):
    [trial] = run(tmp_path, train, trials=1, metric="val_f1").trials
    assert "has no column 'val_f1'; it has epoch, val_loss, val_accuracy" in trial.user_attrs["reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("choices = [8, 16]", "choices = [8]\nlow = 1"), "search.width: expected either choices, or low and high"),
        (("high = 1.0", ""), "search.lr: expected either choices, or low and high"),
        (("high = 1.0", "high = 0.001"), "expected low below high"),
        (("low = 0.01", "low = 0.0"), "log needs low above 0"),
        (("[search.width]", "[search.epochs]"), "epochs is both fixed and searched"),
        (("[search.width]", "[search.out]"), "out is set by the search itself"),
        (("high = 1.0", "hihg = 1.0"), "hihg"),
        (("low = 0.01", "low = nan"), "search.lr: low is nan; expected a number between"),
        (("high = 1.0", "high = inf"), "search.lr: high is inf; expected a number between"),
        (("high = 1.0", "high = 1" + 400 * "0"), "search.lr: high is 10+; expected a number between"),
        (("log = true", "step = inf"), "search.lr: step is inf; expected a number between"),
        (("log = true", "step = nan"), "search.lr.step: Input should be greater than 0"),
        (("log = true", "step = 1.0"), r"search.lr: step is 1.0; expected high - low, 0.99, or less"),
        (
            ("log = true", "step = 1e-300"),
            "search.lr: step is 1e-300; expected high - low, 0.99, or less, down to 9.9e-16",
        ),
        (
            ("choices = [8, 16]", "low = 1\nhigh = 5\nstep = 5"),
            "search.width: step is 5; expected high - low, 4, or less",
        ),
        (
            ("[search.width]\nchoices = [8, 16]", "[search.batch-size]\nlow = 8\nhigh = 16\nstep = 1.5"),
            "search.batch-size: step is 1.5; expected a whole number, as batch-size is one",
        ),
        (("choices = [8, 16]", "choices = [8, nan]"), "search.width: choices hold nan; expected a number"),
        (("epochs = 3", "epochs = 3\nmomentum = -inf"), "fixed.momentum is -inf; expected a number"),
        (("[fixed]", "[fixed"), "cannot be read as TOML"),
        (("epochs = 3", "epochs = " + 5000 * "3"), "cannot be read as TOML"),
    ],
)
def test_space_that_cannot_be_meant_is_refused(tmp_path: Path, change: tuple[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, SPACE.replace(*change))


@pytest.mark.parametrize(
    ("name", "ends", "possible"),
    [
        ("warmup-epochs", "low = 0\nhigh = 2\nstep = 0.5", [0.0, 0.5, 1.0, 1.5, 2.0]),
        ("warmup-epochs", "low = 0\nhigh = 2", [0, 1, 2]),
        ("batch-size", "low = 8\nhigh = 16\nstep = 4.0", [8, 12, 16]),
        ("lr", "low = 0.1\nhigh = 0.3\nstep = 0.2", [0.1, 0.3]),
    ],
)
def test_step_decides_between_whole_numbers_and_others(tmp_path: Path, name: str, ends: str, possible: list[float]):
    space, _ = read(tmp_path, f"[search.{name}]\n{ends}\n")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {space.ask(study)[1][name] for _ in range(50)}
    assert sorted(drawn) == possible
    assert {type(value) for value in drawn} == {type(possible[0])}


def test_seeds_are_those_of_train_py(tmp_path: Path, train: Path, command: Command):
    run(tmp_path, train, trials=1)
    assert run(tmp_path, train, trials=1, seed=2**32 - 1).trials[-1].user_attrs["seed"] == 2**32 - 1
    code, _, error = command("tune-training", tmp_path / "space.toml", "--seed", 2**32, "--out", tmp_path / "other")
    assert (code, (tmp_path / "other").exists()) == (2, False)
    assert "less than or equal to 4294967295" in error


@pytest.mark.parametrize("out", ["file/study", "full"])
def test_study_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, command: Command, out: str):
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "file").touch()
    with files_up_to(300):
        code, _, error = command("tune-training", tmp_path / "space.toml", "--out", tmp_path / out)
    reason = {"file/study": "Not a directory", "full": "File too large"}[out]
    wanted = f"error: {tmp_path / out}: cannot be written: {reason}; make room or mend its permissions, "
    assert (code, error) == (1, wanted + "then go on with the same command, or give another --out\n")


def test_booleans_become_flags():
    assert to_flags({"flip": True, "amp": False, "lr": 0.1}) == ["--flip", "--no-amp", "--lr", "0.1"]
