"""Builds an archive: stage, pack, scan, prove that it answers, then move it into the model store.

    run ─► stage_archive, write_golden ─► tree ─► pack_tree ─► .mar ─► scan_archive ─► SelfTest of the tree ─► publish

Called by `imgcls archive build` and so by build_mar.sh. A build that fails leaves the model store as it was. What needs
torch runs in processes of its own: they import while this one hashes and copies, and this one stays small.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from handler.layout import OnBytes
from imgcls.archive.pack import pack_tree, read_build_time, refuse_bad_names
from imgcls.archive.prove import SelfTest
from imgcls.archive.publish import publish
from imgcls.archive.scanning import refuse_findings, scan_archive
from imgcls.archive.stage import ServingOptions, describe_archive, refuse_incomplete, stage_archive
from imgcls.archive.trust import detached_signature
from imgcls.errors import ArchiveError
from model.engines.kinds import REFERENCE
from model.engines.records import EngineRecord

STALE_S = 3600
SUFFIX = ".building"  # of a build's temporary folder


def build_archive(
    run: Path,
    store: Path,
    *,
    name: str = "imgcls",
    version: str = "1.0",
    options: ServingOptions | None = None,
    engines: Sequence[str] = (REFERENCE,),
    waived: Collection[str] = (),
    on_bytes: OnBytes = lambda count: None,
    on_engines: Callable[[list[EngineRecord]], None] = lambda records: None,
) -> Path:
    """Builds `store/name.mar` from a run directory.

    Args:
        run: what train.py wrote.
        store: the model store; made where it is missing.
        name: the model's name.
        version: its version.
        options: what model-config.yaml tells TorchServe.
        engines: to build beside eager, by name; "auto" for all that this machine can build again byte for byte.
        waived: findings of the scan that do not stop the build, as RULE or RULE:PATH.
        on_bytes: told how many bytes were packed, as it goes on.
        on_engines: told which engines were built, and why others are left out.

    Raises:
        UsageError: SOURCE_DATE_EPOCH cannot be used, or an engine is unknown.
        ArchiveError: the run is incomplete, the name cannot be used, the store cannot be written, an engine that was
            asked for by name is not exact enough, the scan finds something, or the built archive does not answer its
            golden inputs as the run's weights do.
        ModelError: the run's spec, weights or labels cannot be used.
    """
    refuse_bad_names(name=name, version=version)
    refuse_incomplete(run)
    created = read_build_time()
    options = options or ServingOptions()
    try:
        store.mkdir(parents=True, exist_ok=True)
        _sweep(store, name=name)
        place = tempfile.TemporaryDirectory(prefix=f".{name}-", suffix=SUFFIX, dir=store.absolute())
        with place as temporary, SelfTest() as test:
            tree, archive = Path(temporary) / "tree", Path(temporary) / f"{name}.mar"
            tree.mkdir()
            with _torch_process() as torch_process:
                _refuse_unreadable(run)
                answers = torch_process.submit(_write_answers, run, tree, tuple(engines))
                stage_archive(run, tree, name=name, version=version, options=options, created=created)
                on_engines(answers.result())
            describe_archive(tree, name=name, version=version, options=options, created=created)
            pack_tree(tree, archive, created=created, on_bytes=on_bytes)
            with ThreadPoolExecutor(1) as pool:  # the scan waits for modelaudit, which is a process of its own
                scan = pool.submit(scan_archive, archive, waived=waived, require_modelaudit=True)
                test.run(tree)
                refuse_findings(scan.result())
            target = store / f"{name}.mar"
            detached_signature(target).unlink(missing_ok=True)  # it belongs to the archive that goes
            publish(archive, target)
    except OSError as err:
        raise ArchiveError(f"{store}: the archive cannot be written: {err}") from err
    return target


def _refuse_unreadable(run: Path) -> None:
    """Raises ArchiveError where a file of the run cannot be read, before that looks like a fault of the store."""
    for file in sorted(run.iterdir()):
        if file.is_file() and not os.access(file, os.R_OK):
            raise ArchiveError(f"{file}: cannot be read by this user; give it the right to, or build as another")


def _torch_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def _write_answers(run: Path, tree: Path, engines: tuple[str, ...]) -> list[EngineRecord]:
    """Runs in the torch process: golden inputs, then the engines, which answer them too.

    All in one thread: how many there are changes the last digits of a sum.
    """
    import torch

    from imgcls.archive.engines import build_engines
    from imgcls.archive.make_golden import write_golden

    torch.set_num_threads(1)
    write_golden(run, tree)
    return build_engines(run, tree, wanted=engines)


def _sweep(store: Path, *, name: str) -> None:
    """Removes what builds that were killed have left; a build that still runs is younger."""
    for left in store.glob(f".{name}-*{SUFFIX}"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
