"""kill -9 and SIGTERM at random steps, in real processes: the resumed run ends with the same bytes of weights."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.training.checkpoint import list_checkpoints

PROJECT = Path(__file__).parents[2]
OPTIONS = ["--epochs", "4", "--batch-size", "8", "--flip", "--shift", "1", "--schedule", "cosine", "--device", "cpu"]
OPTIONS += ["--parameters", '{"widths": [16, 16], "hidden": 64, "dropout": 0.3, "norm": "batch"}', "--threads", "1"]
STEPS = 4 * 26


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(150):
            pixels = draws.integers(0, 200, (16, 16, 3)) + 50 * (name == "a")
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root


def start(images: Path, run: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, PROJECT / "train.py", "--data", images, "--out", run, *OPTIONS, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0, text


def count_steps(run: Path) -> int:
    return int(list_checkpoints(run)[0].stem) if list_checkpoints(run) else -1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> bytes:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(images, run))
    return (run / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "every"), [(signal.SIGKILL, "1"), (signal.SIGKILL, "7"), (signal.SIGTERM, "7")])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, images, whole, number, every):
    run, draws = tmp_path / "run", random.Random(f"{number} {every}")
    process = start(images, run, "--checkpoint-every", every)
    killed_at = []
    for part in range(3):
        target = draws.randrange(STEPS * part // 4, STEPS * (part + 1) // 4)
        if number == signal.SIGTERM:  # it ends a process that is still importing as it ends any; this one has to train
            target = max(target, count_steps(run) + 1)
        while count_steps(run) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draws.random() * 0.02)  # anywhere between and inside the steps, and while a file is written
        process.send_signal(number)
        text = process.communicate(timeout=60)[1]
        assert process.returncode == (-9 if number == signal.SIGKILL else 130), text
        killed_at.append(count_steps(run))
        process = start(images, run, "--checkpoint-every", every, "--resume")
    finish(process)
    assert killed_at == sorted(killed_at) and killed_at[0] >= 0 and killed_at[-1] < STEPS, killed_at
    assert (run / "weights.safetensors").read_bytes() == whole
    assert not list(run.rglob(".*.tmp"))
