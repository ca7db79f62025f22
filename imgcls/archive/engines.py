"""Builds an archive's engines, and keeps those that are near enough to eager: `imgcls.archive.workshop` makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from imgcls.errors import ArchiveError, UsageError
from imgcls.scratch import ScratchFolder
from model.engines.kinds import AUTO, KINDS, REFERENCE, EngineKind, parse_kind
from model.engines.records import ENGINES_FILE, REFERENCE_RECORD, EngineRecord, dump_records
from model.errors import EngineError

OnProgress = Callable[[str], None]


def build_engines(
    run: Path,
    folder: Path,
    *,
    wanted: Sequence[str] = (REFERENCE,),
    device: str = "cpu",
    on_progress: OnProgress = lambda text: None,
) -> list[EngineRecord]:
    """Builds engines into a staged archive, whose golden inputs are there already.

    Writes engines/, engines.json, and each accepted engine's own golden answers into golden/expected.json.

    Args:
        run: the run directory.
        folder: the staged archive.
        wanted: names of engines; "auto" stands for all that `engine: auto` could pick and that are reproducible. eager
            is always there.
        device: "cpu" or "cuda": where engines that can are built and compared.
        on_progress: told what is being done, and what is amiss.

    Raises:
        UsageError: a name is unknown.
        ArchiveError: an engine that was asked for by name cannot be built, or is outside its tolerance.
        ModelError: the run's weights cannot be used.
    """
    kinds, named = parse_wanted(wanted, device=device)
    records = [REFERENCE_RECORD]
    if kinds:
        from imgcls.archive.workshop import Workshop  # here, because its tools take seconds to import

        with ScratchFolder("engines") as scratch:
            workshop = Workshop(run, folder, Path(scratch), device=device, on_progress=on_progress)
            records += [workshop.build(kind) for kind in kinds]
            for record in records:
                if not record.is_accepted and record.engine in named:
                    raise ArchiveError(f"engine {record.engine} is refused: {record.reason}; nothing was written")
            workshop.pack(records)
    (folder / ENGINES_FILE).write_text(dump_records(records), encoding="utf-8")
    return records


def parse_wanted(wanted: Sequence[str], *, device: str) -> tuple[list[EngineKind], set[str]]:
    """Returns the kinds to build but for eager, in the order of KINDS, and the names that were given.

    Raises:
        UsageError: a name is unknown.
    """
    try:
        named = {parse_kind(name).name for name in wanted if name != AUTO}
    except EngineError as err:
        raise UsageError(f"--engines: {err}") from err
    automatic = {kind.name for kind in KINDS.values() if device in kind.auto and kind.runtime != "compiled"}
    chosen = named | (automatic if AUTO in wanted else set())
    return [kind for kind in KINDS.values() if kind.name in chosen and kind.name != REFERENCE], named
