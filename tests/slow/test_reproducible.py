"""Two builds of the same run, code and packages give the same bytes, wherever, whenever and by whomever."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as train.py and the evaluation leave it."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    for command in (["train.py", "--epochs", "1", "--out", run], ["-m", "imgcls.cli.main", "evaluate", run]):
        subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, capture_output=True)
    return run


def build(run: Path, *, checkout: Path, store: Path, environment: dict[str, str], umask: int = 0o022) -> bytes:
    """Builds in a process whose code is this checkout's, and which knows nothing but this environment."""
    command = [sys.executable, "-m", "imgcls.cli.main", "archive", "build", run, "--store", store]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), **environment}
    result = subprocess.run(
        command, cwd=store.parent, env=environment, umask=umask, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return (store / "imgcls.mar").read_bytes()


def clone(target: Path) -> Path:
    """A clone, with whatever this working tree holds beyond its last commit."""
    subprocess.run(["git", "clone", "--quiet", "--shared", PROJECT, target], check=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, target / name)
        elif name:  # deleted, and not committed yet
            (target / name).unlink(missing_ok=True)
    return target


def test_a_build_elsewhere_in_a_clean_environment_gives_the_same_bytes(run: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    first = build(run, checkout=PROJECT, store=tmp_path / "a" / "store", environment={"HOME": str(Path.home())})
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    copy = shutil.copytree(run, elsewhere / "run", copy_function=shutil.copy)  # with the times of now
    home = elsewhere / "home"
    home.mkdir()
    strange = {"HOME": str(home), "USER": "nobody", "TZ": "Asia/Kolkata", "LANG": "C", "PYTHONHASHSEED": "42"}
    second = build(
        copy,
        checkout=clone(elsewhere / "clone"),
        store=elsewhere / "store",
        environment={**strange, "OMP_NUM_THREADS": "1"},
        umask=0o077,
    )
    assert first == second


def test_another_version_gives_other_bytes(run: Path, tmp_path: Path):
    """So that the test above can fail."""
    command = [sys.executable, "-m", "imgcls.cli.main", "archive", "build", run, "--store"]
    for version in ("1.0", "1.1"):
        subprocess.run([*command, tmp_path / version, "--version", version], cwd=PROJECT, check=True)
    assert (tmp_path / "1.0/imgcls.mar").read_bytes() != (tmp_path / "1.1/imgcls.mar").read_bytes()
