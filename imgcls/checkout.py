"""Which code this is: its git commit, whether it differs from it, its hash, and the hashes of its locks.

The record of a training run and the provenance of an archive state them. Nothing here names a path, a user or a host.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handler.integrity import FileRecord, hash_file, make_integrity

HOME = Path(__file__).resolve().parents[1]
CODE = ("handler", "imgcls", "model", "train.py")
LOCKS = ("requirements-serve.lock", "requirements.lock")
GIT_TIMEOUT_S = 60


@dataclass(frozen=True)
class GitState:
    """The commit that is checked out; dirty is a checkout whose code or locks are not those of the commit."""

    commit: str
    is_dirty: bool


def read_git(home: Path = HOME) -> GitState | None:
    """Returns the commit of the checkout that holds the code; None where git is missing or does not know the code.

    Only the code and the locks count for `is_dirty`: a changed README changes no model.
    """
    try:
        _git(home, "ls-files", "--error-unmatch", "imgcls/__init__.py")  # an environment inside someone's checkout
        commit = _git(home, "rev-parse", "HEAD").strip()
        changes = _git(home, "status", "--porcelain", "--untracked-files=all", "--", *CODE, *LOCKS)
    except (OSError, subprocess.SubprocessError):
        return None
    return GitState(commit, is_dirty=bool(changes.strip()))


def hash_code(home: Path, names: Sequence[str]) -> str:
    """Returns one hash of the Python files of these packages and modules, by their paths relative to `home`.

    It is in-toto's dirHash: SHA-256, as hex, of the lines that `sha256sum` prints for the files in their order.
    """
    files = [file for name in names for file in ([home / name] if name.endswith(".py") else list_python(home / name))]
    records = [
        FileRecord(file.relative_to(home).as_posix(), file.stat().st_size, hash_file(file))
        for file in files
        if file.is_file()
    ]
    return make_integrity(records).tree_sha256


def list_python(package: Path) -> list[Path]:
    """Returns the Python files of a package, but for hidden ones: those an editor or a system has left beside them."""
    found = [file for file in sorted(package.rglob("*.py")) if file.is_file()]
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(package).parts)]


def hash_locks(home: Path = HOME) -> dict[str, str]:
    """Returns the SHA-256 of each lock file that lies beside the code."""
    return {name: hash_file(home / name) for name in LOCKS if (home / name).is_file()}


def _git(home: Path, *arguments: str) -> str:
    """Runs git so that neither the user, nor the owner of the checkout, nor the environment changes its answer."""
    settings = ("safe.directory=*", "core.fileMode=false", "core.fsmonitor=false", f"core.excludesFile={os.devnull}")
    options = [part for setting in settings for part in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    command = ["git", "--no-optional-locks", *options, "-C", str(home), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=GIT_TIMEOUT_S, check=True
    ).stdout
