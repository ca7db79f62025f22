"""Builds an archive: stage, pack, scan, prove that it answers, then move it into the model store.

    run ─► stage_archive, write_golden ─► tree ─► pack_tree ─► .mar ─► scan_archive ─► SelfTest of the tree ─► publish

Called by `imgcls archive build` and so by build_mar.sh. A build that fails leaves the model store as it was. What needs
torch runs in processes of its own: they import while this one hashes and copies, and this one stays small.
"""

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Collection
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

STALE_S = 3600


def build_archive(
    run: Path,
    store: Path,
    *,
    name: str = "imgcls",
    version: str = "1.0",
    options: ServingOptions | None = None,
    waived: Collection[str] = (),
    on_bytes: OnBytes = lambda count: None,
) -> Path:
    """Builds `store/name.mar` from a run directory.

    Args:
        run: what train.py wrote.
        store: the model store; made where it is missing.
        name: the model's name.
        version: its version.
        options: what model-config.yaml tells TorchServe.
        waived: findings of the scan that do not stop the build, as RULE or RULE:PATH.
        on_bytes: told how many bytes were packed, as it goes on.

    Raises:
        UsageError: SOURCE_DATE_EPOCH cannot be used.
        ArchiveError: the run is incomplete, the name cannot be used, the store cannot be written, the scan finds
            something, or the built archive does not answer its golden inputs as the run's weights do.
        ModelError: the run's spec, weights or labels cannot be used.
    """
    refuse_bad_names(name=name, version=version)
    refuse_incomplete(run)
    created = read_build_time()
    options = options or ServingOptions()
    try:
        store.mkdir(parents=True, exist_ok=True)
        _sweep(store, name=name)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=store.absolute()) as temporary, SelfTest() as test:
            tree, archive = Path(temporary) / "tree", Path(temporary) / f"{name}.mar"
            tree.mkdir()
            with _torch_process() as torch_process:
                golden = torch_process.submit(_write_golden, run, tree)
                stage_archive(run, tree, name=name, version=version, options=options, created=created)
                golden.result()
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


def _torch_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def _write_golden(run: Path, tree: Path) -> None:
    """Runs in the torch process; in one thread, as how many there are changes the last digits of a sum."""
    import torch

    from imgcls.archive.make_golden import write_golden

    torch.set_num_threads(1)
    write_golden(run, tree)


def _sweep(store: Path, *, name: str) -> None:
    """Removes what builds that were killed have left; a build that still runs is younger."""
    for left in store.glob(f".{name}-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
