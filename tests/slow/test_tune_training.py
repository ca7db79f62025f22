"""`imgcls tune-training` with the real train.py, on the digits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from imgcls.training.checkpoint import list_checkpoints, read_newest
from tests.support.processes import wait_for_end

SPACE = """
[fixed]
epochs = 2

[search.lr]
low = 0.04
high = 0.06
"""


def test_the_best_run_of_a_search_can_be_evaluated(tmp_path: Path):
    (tmp_path / "space.toml").write_text(SPACE)
    imgcls = [sys.executable, "-m", "imgcls.cli.main"]
    command = [*imgcls, "tune-training", "space.toml", "--trials", "2", "--json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)
    assert found["val_accuracy"] > 0.5
    assert 0.04 <= found["settings"]["lr"] <= 0.06
    best = json.loads((tmp_path / "tuned" / "space" / "best.json").read_text())
    evaluated = subprocess.run(
        [*imgcls, "evaluate", best["run"], "--json"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(evaluated.stdout)["test"]["samples"] == 270


def test_a_search_that_is_killed_takes_train_py_with_it_and_leaves_a_checkpoint(tmp_path: Path):
    (tmp_path / "space.toml").write_text(SPACE.replace("epochs = 2", "epochs = 1000"))
    command = [sys.executable, "-m", "imgcls.cli.main", "tune-training", "space.toml", "--trials", "1"]
    run = tmp_path / "tuned" / "space" / "trials" / "0000"
    with subprocess.Popen(command, cwd=tmp_path) as search:
        while not (run / "checkpoints").exists() or not list_checkpoints(run):
            assert search.poll() is None
            time.sleep(0.05)
        [trial] = psutil.Process(search.pid).children()
        search.kill()
    wait_for_end(trial.pid, timeout_s=20)
    assert "interrupted" in run.with_suffix(".log").read_text()
    read_newest(run)
    assert not list(run.rglob(".*.tmp"))
