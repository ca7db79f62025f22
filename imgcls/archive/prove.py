"""Proves that a packed tree answers its golden inputs, as a TorchServe worker would."""

import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from imgcls.archive import selftest
from imgcls.archive.torch_process import JobError, TorchProcess
from imgcls.errors import ArchiveError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, describe_mismatch, parse_golden

TIMEOUT_S = 300
# What a server sets for its workers: a build is not signed yet, in no store, and its code is the tree's.
UNSET = ("PYTHONPATH", "IMGCLS_TRUST", "IMGCLS_MODEL_STORE", "IMGCLS_WORKERS")


def start_self_test(tree: Path, process: TorchProcess) -> Callable[[], None]:
    """Lets a process load the tree and answer; what is returned waits for that, and compares.

    The returned function raises ArchiveError where the handler cannot be loaded, does not answer in time, or an answer
    is wrong.
    """
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    job = process.start(
        selftest.__file__,
        "answer_golden",
        str(tree),
        path=[str(tree)],
        environment=environment,
        timeout_s=TIMEOUT_S,
    )
    return lambda: _compare(job, tree)


def self_test(tree: Path) -> None:
    """Runs the whole self-test of an unpacked archive.

    Raises:
        ArchiveError: the handler cannot be loaded, does not answer in time, or an answer is wrong.
    """
    with TorchProcess() as process:
        start_self_test(tree, process)()


def _compare(job: "Future[list[dict[str, object]]]", tree: Path) -> None:
    try:
        answers = job.result()
    except JobError as err:
        raise ArchiveError(
            f"the archive's handler cannot be loaded by TorchServe ({err}); nothing was written"
        ) from err
    _compare_golden(tree / GOLDEN_FOLDER, answers=answers)


def _compare_golden(golden: Path, *, answers: list[dict[str, object]]) -> None:
    items = parse_golden((golden / EXPECTED_FILE).read_bytes(), read_file=lambda name: (golden / name).read_bytes())
    for item, answer in zip(items, answers, strict=True):
        body = answer["body"]
        if answer["status"] != 200 or not isinstance(body, dict):
            raise ArchiveError(f"the archive refuses its golden input {item.file}: {body}; nothing was written")
        ranked = {entry["index"]: entry["probability"] for entry in body["predictions"]}
        if mismatch := describe_mismatch(item, probability=ranked.get(item.index, math.nan)):
            raise ArchiveError(f"the archive answers golden input {mismatch}; nothing was written")
