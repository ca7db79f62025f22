"""Builds an archive: stage, pack, prove that it answers, then move it into the model store.

Called by `imgcls archive build` and so by build_mar.sh. A build that fails leaves the model store as it was.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imgcls.archive import selftest
from imgcls.archive.contents import extract
from imgcls.archive.pack import pack_archive, publish, refuse_bad_names
from imgcls.archive.stage import ServingOptions, refuse_incomplete, stage_archive
from imgcls.errors import ArchiveError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, describe_mismatch, parse_golden

SELF_TEST_TIMEOUT_S = 300
STALE_S = 3600


def build_archive(
    run: Path, store: Path, *, name: str = "imgcls", version: str = "1.0", options: ServingOptions | None = None
) -> Path:
    """Builds `store/name.mar` from a run directory.

    Raises:
        ArchiveError: the run is incomplete, the name cannot be used, the store cannot be written, or the built archive
            does not answer its golden inputs as the run's weights do.
        ModelError: the run's spec, weights or labels cannot be used.
    """
    refuse_bad_names(name=name, version=version)
    refuse_incomplete(run)
    try:
        store.mkdir(parents=True, exist_ok=True)
        _sweep(store, name=name)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=store.absolute()) as temporary:
            folder = Path(temporary)
            tree, unpacked = folder / "tree", folder / "unpacked"
            tree.mkdir()
            stage_archive(run, tree, name=name, version=version, options=options or ServingOptions())
            archive = pack_archive(tree, folder, name=name, version=version)
            extract(archive, folder=unpacked)
            self_test(unpacked)
            target = store / f"{name}.mar"
            publish(archive, target)
    except OSError as err:
        raise ArchiveError(f"{store}: the archive cannot be written: {err}") from err
    return target


def _sweep(store: Path, *, name: str) -> None:
    """Removes what builds that were killed have left; a build that still runs is younger."""
    for left in store.glob(f".{name}-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def self_test(unpacked: Path) -> None:
    """Answers an unpacked archive's golden inputs as a TorchServe worker would, in a process of its own.

    Raises:
        ArchiveError: the handler cannot be loaded, or an answer is wrong.
    """
    command = [sys.executable, "-P", selftest.__file__, str(unpacked)]  # -P: the archive is first on the path
    environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        result = subprocess.run(
            command,
            env=environment,
            cwd=unpacked,
            capture_output=True,
            text=True,
            timeout=SELF_TEST_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise ArchiveError(
            f"the archive's self-test did not answer within {SELF_TEST_TIMEOUT_S} s; nothing was written"
        ) from err
    output = result.stdout.splitlines()
    if result.returncode != 0 or not output:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise ArchiveError(f"the archive's handler cannot be loaded by TorchServe ({lines[-1]}); nothing was written")
    _compare_golden(unpacked / GOLDEN_FOLDER, answers=json.loads(output[-1]))


def _compare_golden(golden: Path, *, answers: list[dict[str, object]]) -> None:
    items = parse_golden((golden / EXPECTED_FILE).read_bytes(), read_file=lambda name: (golden / name).read_bytes())
    for item, answer in zip(items, answers, strict=True):
        body = answer["body"]
        if answer["status"] != 200 or not isinstance(body, dict):
            raise ArchiveError(f"the archive refuses its golden input {item.file}: {body}; nothing was written")
        best = body["predictions"][0]
        if mismatch := describe_mismatch(item, index=best["index"], probability=best["probability"]):
            raise ArchiveError(f"the archive answers golden input {mismatch}; nothing was written")
