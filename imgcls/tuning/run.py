"""`imgcls tune` as a function: what is tuned, for how long, and what comes out of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.archive.contents import open_archive, read_contents, read_small
from imgcls.archive.trust import find_trust_file
from imgcls.archive.verify import read_integrity, verify_archive
from imgcls.errors import UsageError
from imgcls.scratch import ScratchFolder
from imgcls.serving.config import read_config
from imgcls.serving.doctor import check_settings, refuse_errors
from imgcls.serving.foreground import signals_raise
from imgcls.serving.trust import check_before_start
from imgcls.tuning.candidates import Candidate, Space, list_engines, make_space
from imgcls.tuning.errors import CandidateError
from imgcls.tuning.halving import Race
from imgcls.tuning.images import gather_images
from imgcls.tuning.load import find_k6
from imgcls.tuning.machine import Machine, describe_machine, serves_on_gpu
from imgcls.tuning.settings import write_tuned_config
from imgcls.tuning.slo import Slo
from imgcls.tuning.trial import Effort, Subject, Trial, run_trial
from imgcls.tuning.verdict import Outcome, Verdict, judge
from model.engines.records import ENGINES_FILE, REFERENCE_RECORD, EngineRecord, parse_records
from model.spec import WEIGHTS_FILE


@dataclass(frozen=True)
class TuneOptions:
    """What to tune, and how."""

    archive: Path
    config: Path
    slo: Slo
    budget_s: float
    stretch_s: float  # of load, at the first look at a candidate
    images: Path | None = None  # None: made ones
    engines: tuple[str, ...] = ()  # empty: all that the archive has for this machine
    java: str | None = None
    trust: Path | None = None  # None: as `imgcls serve` finds it


@dataclass(frozen=True)
class Tuned:
    """What was measured, and what it says."""

    options: TuneOptions
    machine: Machine
    model: str
    version: str
    tree_sha256: str  # of the archive that was tuned
    images: str
    trust_file: Path | None
    model_config: Mapping[str, Any]  # of the archive that was tuned
    config: Mapping[str, str]  # of the config.properties that it began with
    space: Space
    outcomes: tuple[Outcome, ...]
    failures: dict[Candidate, str]
    not_reached: tuple[Candidate, ...]
    verdict: Verdict
    wall_s: float


def tune(
    options: TuneOptions,
    *,
    on_progress: Callable[[str], None] = lambda text: None,
    on_trial: Callable[[Candidate, Trial, str], None] = lambda candidate, trial, stage: None,
) -> Tuned:
    """Measures candidates until the budget is spent, and judges them; changes nothing but its own temporary files.

    A signal (Ctrl-C, SIGTERM, SIGHUP) stops the server that runs, and raises.

    Args:
        options: what to tune.
        on_progress: told what is being done.
        on_trial: told each measurement: the candidate, what was measured, and at which stage.

    Raises:
        UsageError: an engine is not in the archive.
        ArchiveError: the archive cannot be read or served, is not what the trust file demands, or was replaced since.
        TuningError: k6 is missing or failed, the images cannot be used, or no candidate could be served.
        ServingError: TorchServe cannot be started at all.
        StopRequestedError: a signal came; nothing is left running.
    """
    began_s = time.monotonic()
    find_k6()
    contents, config = read_contents(options.archive), read_config(options.config)
    refuse_errors(check_settings(options.config, options.archive))  # of a candidate they would be told of its copies
    on_progress("verifying the archive")
    trust_file = find_trust_file(options.trust, config=options.config)
    if check_before_start(options.archive, trust_file).policy == "off":
        verify_archive(options.archive)  # what is measured is a copy, recorded anew: it must not be a changed one's
    tree_sha256 = read_integrity(options.archive).tree_sha256
    records = read_records_of(options.archive)
    machine = describe_machine()
    on_gpu = serves_on_gpu(machine, config=config, model_config=contents.model_config)
    refuse_unknown_engines(options.engines, records, device="cuda" if on_gpu else "cpu")
    space = make_space(
        contents.model_config,
        records,
        slo=options.slo,
        cores=machine.cores,
        available_bytes=machine.available_bytes,
        gpus=len(machine.gpus) if on_gpu else 0,
        only_engines=options.engines,
        weights_bytes=contents.sizes[WEIGHTS_FILE],
    )
    with signals_raise(), ScratchFolder("tune") as temporary:
        scratch = Path(temporary)
        images = gather_images(options.images, archive=options.archive, scratch=scratch)
        subject = Subject(
            archive=options.archive,
            tree_sha256=tree_sha256,
            contents=contents,
            config=write_tuned_config(config, scratch / "config.properties", source=options.config),
            trust=_write_own_trust(scratch),
            images=images.files,
            listing=images.listing,
            slo=options.slo,
            cores=machine.cores,
            scratch=scratch,
            java=options.java,
        )
        race = Race(
            run=lambda candidate, effort, near: _announce(subject, candidate, effort, near, on_progress),
            clock=lambda: time.monotonic() - began_s,
            budget_s=options.budget_s,
            stretch_s=options.stretch_s,
            on_trial=on_trial,
            on_failure=lambda error: on_progress(f"warning: left out: {error}"),
        )
        outcomes = race.hold(space)
    return Tuned(
        options=options,
        machine=machine,
        model=contents.name,
        version=contents.version,
        tree_sha256=tree_sha256,
        images=images.kind,
        trust_file=trust_file,
        model_config=contents.model_config,
        config=config,
        space=space,
        outcomes=tuple(outcomes),
        failures=race.failures,
        not_reached=race.not_reached,
        verdict=judge(outcomes, slo=options.slo),
        wall_s=time.monotonic() - began_s,
    )


def read_records_of(archive: Path) -> tuple[EngineRecord, ...]:
    """Reads the engines.json of a packed archive; without one there is the eager engine only.

    Raises:
        ArchiveError: the archive cannot be read.
        EngineError: engines.json cannot be read.
    """
    with open_archive(archive) as opened:
        if ENGINES_FILE not in opened.namelist():
            return (REFERENCE_RECORD,)
        return parse_records(read_small(opened, ENGINES_FILE))


def refuse_unknown_engines(names: Sequence[str], records: Sequence[EngineRecord], *, device: str) -> None:
    """Raises UsageError where an engine that was asked for is not one that the archive has for the device."""
    offered = list_engines(records, device=device)
    for name in names:
        if name not in offered:
            raise UsageError(
                f"--engines: {name!r} is not in this archive, which offers {', '.join(offered)} here; build it with "
                f"imgcls archive build RUN --engines {name}"
            )


def _announce(
    subject: Subject, candidate: Candidate, effort: Effort, near: float | None, on_progress: Callable[[str], None]
) -> Trial:
    on_progress(f"measuring {candidate}")
    try:
        return run_trial(subject, candidate, effort=effort, near=near)
    except CandidateError as err:
        raise CandidateError(" ".join(str(err).split())) from err


def _write_own_trust(scratch: Path) -> Path:
    """A candidate's archive is unsigned, whatever the original is; that it is as it was packed, each worker checks."""
    trust = scratch / "trust.yaml"
    trust.write_text("policy: hash\n", encoding="utf-8")
    return trust
