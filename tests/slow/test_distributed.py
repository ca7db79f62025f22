"""torchrun: two processes train what one trains, a killed one is started anew, and the log is that of all."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imgcls.training.checkpoint import list_checkpoints

PROJECT = Path(__file__).parents[2]
OPTIONS = ["--epochs", "3", "--batch-size", "10", "--flip", "--shift", "1", "--schedule", "cosine", "--device", "cpu"]
OPTIONS += ["--threads", "1", "--noise-rate", "0.1", "--noise-warmup", "1", "--momentum", "0.9"]
PLAIN = ["--parameters", '{"widths": [8, 8], "hidden": 16}']
DROPOUT = ["--parameters", '{"widths": [8], "hidden": 16, "dropout": 0.3, "norm": "batch"}']


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(150):
            pixels = draws.integers(0, 200, (16, 16, 3)) + 50 * (name == "a")
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root


def start(images: Path, run: Path, *options: str, processes: int, restarts: int = 0) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher += [f"--max-restarts={restarts}", f"--log-dir={run.parent / 'torchrun'}"]  # else a folder in /tmp stays
    command = [*launcher, PROJECT / "train.py", "--data", images, "--out", run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *OPTIONS, *options], cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    _, text = process.communicate(timeout=200)
    assert process.returncode == 0, text
    return text


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def test_two_processes_train_what_one_trains(tmp_path, images):
    for processes in (1, 2):
        text = finish(start(images, tmp_path / str(processes), *PLAIN, processes=processes))
        assert text.count("epoch 3/3") == 1  # one process prints
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("1", "2"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    assert not torch.equal(one["features.0.0.weight"], torch.zeros_like(one["features.0.0.weight"]))
    for a, b in zip(*(read_table(tmp_path / name / "history.csv") for name in ("1", "2")), strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert float(a[column]) == pytest.approx(float(b[column]), abs=1e-4), column
    assert len(list_checkpoints(tmp_path / "2")) == 2
    one, two = ([tuple(row.values())[:4] for row in read_table(tmp_path / n / "rejections.csv")] for n in ("1", "2"))
    assert one == two != []


def test_a_killed_process_is_started_anew_and_the_run_ends_with_the_same_bytes(tmp_path, images):
    options = [*DROPOUT, "--checkpoint-every", "5"]
    finish(start(images, tmp_path / "whole", *options, processes=2))
    process = start(images, tmp_path / "killed", *options, processes=2, restarts=1)
    while not any(int(path.stem) >= 20 for path in list_checkpoints(tmp_path / "killed")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    workers = [each for each in psutil.Process(process.pid).children() if "train.py" in " ".join(each.cmdline())]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    finish(process)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_batches_that_cannot_be_shared_are_refused(tmp_path, images):
    process = start(images, tmp_path / "run", "--batch-size", "3", processes=2)
    _, text = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "error: --batch-size is 3 for 2 processes; expected at least 4" in text
