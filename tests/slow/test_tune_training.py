"""`imgcls tune-training` with the real train.py, on the digits."""

import json
import subprocess
import sys
from pathlib import Path

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
