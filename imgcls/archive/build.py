"""Builds an archive: stage, pack, scan, prove that it answers, then move it into the model store.

    run ─► stage_archive, write_answers ─► tree ─► record_tree ─┬─► pack_tree ─► .mar ─► scan_archive ─┬─► publish
                                                                └─► self-test of the tree ──────────────┘

Called by `imgcls archive build` and so by build_mar.sh. A build that fails leaves the model store as it was. What needs
torch runs in a process of its own: that imports while this one hashes, tests while this one copies, and this one stays
small.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from handler.integrity import hash_file
from handler.layout import OnBytes
from imgcls.archive import answers
from imgcls.archive.engines import parse_wanted
from imgcls.archive.facts import GATE_FILE, read_facts
from imgcls.archive.libraries import read_ahead
from imgcls.archive.pack import CONFIG_FILE, pack_tree, read_build_time, record_tree, refuse_bad_names
from imgcls.archive.prove import start_self_test
from imgcls.archive.publish import BUILDING, lock_store, replace_archive, sweep_store
from imgcls.archive.scanning import ModelauditProcess, Opinions, refuse_findings, scan_archive
from imgcls.archive.stage import (
    ServingOptions,
    describe_archive,
    dump_model_config,
    refuse_incomplete,
    stage_archive,
)
from imgcls.archive.torch_process import JobError, TorchProcess, list_imports
from imgcls.errors import ArchiveError, ImgclsError, UsageError
from imgcls.files import sync
from imgcls.gate.verdict import GateReport
from imgcls.serving.lint import lint_model_config
from model.engines.choose import FROM_WEIGHTS
from model.engines.kinds import AUTO, REFERENCE, parse_kind
from model.engines.records import EngineRecord, read_records
from model.errors import EngineError, ModelError
from model.spec import WEIGHTS_FILE


def build_archive(
    run: Path,
    store: Path,
    *,
    name: str = "imgcls",
    version: str = "1.0",
    options: ServingOptions | None = None,
    engines: Sequence[str] = (REFERENCE,),
    waived: Collection[str] = (),
    gate: GateReport | None = None,
    process: TorchProcess | None = None,
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
        gate: the verdict that the archive carries; None where no gate was asked.
        process: one that imports torch already.
        on_bytes: told how many bytes were packed, as it goes on.
        on_engines: told which engines were built, and why others are left out.

    Raises:
        UsageError: SOURCE_DATE_EPOCH or an option cannot be used, or an engine is unknown.
        ArchiveError: the run is incomplete, the name cannot be used, the store cannot be written, an engine that was
            asked for by name is not exact enough, the scan finds something, or the built archive does not answer its
            golden inputs as the run's weights do.
        ModelError: the run's spec, weights or labels cannot be used.
    """
    options = options or ServingOptions()
    refuse_bad_names(name=name, version=version)
    _refuse_options(options, engines=engines)
    refuse_incomplete(run)
    created = read_build_time()
    try:
        _refuse_file(store)
        store.mkdir(parents=True, exist_ok=True)
        with lock_store(store):
            sweep_store(store, name=name)
        place = tempfile.TemporaryDirectory(prefix=f".{name}-", suffix=BUILDING, dir=store.absolute())
        with (
            place as temporary,
            nullcontext(process) if process else TorchProcess(list_imports(run)) as jobs,
            ThreadPoolExecutor(1) as pool,
            ExitStack() as later,
        ):
            tree, archive = Path(temporary) / "tree", Path(temporary) / f"{name}.mar"
            tree.mkdir()
            _refuse_unreadable(run)
            stage_archive(run, tree, name=name, version=version, options=options, created=created)
            if gate:
                (tree / GATE_FILE).write_text(gate.model_dump_json(indent=1) + "\n", encoding="utf-8")
            answered = jobs.start(
                answers.__file__,
                "write_answers",
                str(run),
                str(tree),
                list(engines),
                path=sys.path,
                environment=os.environ,
            )
            staged = _stamp(tree)
            weights = pool.submit(hash_file, tree / WEIGHTS_FILE)
            imports = read_ahead(tree)
            read_facts(tree, weights_sha256=weights.result())  # so that what is wrong with them is said at once
            # Its imports take seconds; before, torch's and the hashing had the cores.
            modelaudit = later.enter_context(ModelauditProcess())
            _wait(answered)
            on_engines(list(read_records(tree)))
            describe_archive(
                tree,
                name=name,
                version=version,
                options=options,
                created=created,
                weights_sha256=weights.result(),
                imports=imports,
            )
            integrity = record_tree(tree, known={WEIGHTS_FILE: weights.result()})
            finish_self_test = start_self_test(tree, jobs)
            pack_tree(tree, archive, created=created, integrity=integrity, on_bytes=on_bytes)
            on_disk = pool.submit(sync, archive)
            report = scan_archive(
                archive, waived=waived, require_modelaudit=True, process=modelaudit, opinions=Opinions()
            )
            finish_self_test()
            on_disk.result()
            refuse_findings(report)
            if changed := sorted(path for path, stamp in staged.items() if _stamp(tree)[path] != stamp):
                raise ArchiveError(f"{run}/{changed[0]}: was written to while it was packed; build again")
            target = store / f"{name}.mar"
            replace_archive(archive, target)
    except OSError as err:
        raise ArchiveError(f"{store}: the archive cannot be written: {err}") from err
    return target


def _refuse_options(options: ServingOptions, *, engines: Sequence[str]) -> None:
    """Raises UsageError for what no run could be built with, before torch has loaded and anything is written."""
    kinds, _ = parse_wanted(engines, device="cpu")
    if options.engine != AUTO:
        try:
            kind = parse_kind(options.engine)
        except EngineError as err:
            raise UsageError(f"--engine: {err}") from err
        if kind not in kinds and kind.runtime not in FROM_WEIGHTS:
            raise UsageError(f"--engine is {kind.name}, which is not built; give --engines {kind.name} too")
    findings = lint_model_config(dump_model_config(options))
    if wrong := [finding.problem for finding in findings if finding.status == "error"]:
        raise UsageError(f"the options give a {CONFIG_FILE} that cannot be served: {wrong[0]}")


def _refuse_file(store: Path) -> None:
    """Raises ArchiveError where the model store, or a folder that it shall lie in, is a file or a link to nowhere."""
    for place in (store, *store.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            what = "is a file" if place.exists() else "is a link to nothing"
            raise ArchiveError(f"{place}: {what}; expected a folder, the model store that NAME.mar is written into")


def _stamp(tree: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of change of the run's files, which the tree may share with the run."""
    stats = {path.name: path.stat() for path in tree.iterdir() if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _wait(job: "Future[Any]") -> None:
    """Waits for a job, and raises what it raised as this process would."""
    try:
        job.result()
    except JobError as err:
        for base in (ImgclsError, ModelError):
            for kind in base.__subclasses__():
                if kind.__name__ == err.name:
                    raise kind(err.message) from err
        raise ArchiveError(f"the golden answers cannot be made: {err}; nothing was written") from err


def _refuse_unreadable(run: Path) -> None:
    """Raises ArchiveError where a file of the run cannot be read, before that looks like a fault of the store."""
    for file in sorted(run.iterdir()):
        if file.is_file() and not os.access(file, os.R_OK):
            raise ArchiveError(f"{file}: cannot be read by this user; give it the right to, or build as another")
