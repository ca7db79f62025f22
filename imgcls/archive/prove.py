"""Proves that a packed tree answers its golden inputs, in a process of its own, as a TorchServe worker would."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from imgcls.archive import selftest
from imgcls.errors import ArchiveError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, describe_mismatch, parse_golden

TIMEOUT_S = 300


class SelfTest:
    """The process; it imports torch and TorchServe from the moment of entry on, and waits for its tree."""

    def __enter__(self) -> Self:
        """Starts the process."""
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
        # What a server sets for its workers: a build is not signed yet, in no store, and its code is the tree's.
        for variable in ("PYTHONPATH", "IMGCLS_TRUST", "IMGCLS_MODEL_STORE", "IMGCLS_WORKERS"):
            environment.pop(variable, None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", selftest.__file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._process.communicate()

    def run(self, tree: Path) -> None:
        """Lets the process load the tree and answer, and compares its answers with the expected ones.

        Raises:
            ArchiveError: the handler cannot be loaded, does not answer in time, or an answer is wrong.
        """
        try:
            output, errors = self._process.communicate(f"{tree}\n", timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise ArchiveError(f"the archive's self-test took over {TIMEOUT_S} s; nothing was written") from err
        except BrokenPipeError:
            output, errors = "", self._process.stderr.read() if self._process.stderr else ""
        if self._process.returncode != 0 or not output.strip():
            lines = errors.strip().splitlines() or [f"exit status {self._process.returncode}"]
            reason = f"the archive's handler cannot be loaded by TorchServe ({lines[-1]})"
            raise ArchiveError(f"{reason}; nothing was written")
        _compare_golden(tree / GOLDEN_FOLDER, answers=json.loads(output.splitlines()[-1]))


def self_test(tree: Path) -> None:
    """Runs the whole self-test of an unpacked archive; raises as `SelfTest.run`."""
    with SelfTest() as test:
        test.run(tree)


def _compare_golden(golden: Path, *, answers: list[dict[str, object]]) -> None:
    items = parse_golden((golden / EXPECTED_FILE).read_bytes(), read_file=lambda name: (golden / name).read_bytes())
    for item, answer in zip(items, answers, strict=True):
        body = answer["body"]
        if answer["status"] != 200 or not isinstance(body, dict):
            raise ArchiveError(f"the archive refuses its golden input {item.file}: {body}; nothing was written")
        ranked = {entry["index"]: entry["probability"] for entry in body["predictions"]}
        if mismatch := describe_mismatch(item, probability=ranked.get(item.index, math.nan)):
            raise ArchiveError(f"the archive answers golden input {mismatch}; nothing was written")
