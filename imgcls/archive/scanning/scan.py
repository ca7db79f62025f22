"""The scan of one archive: our own reading first, then modelaudit's, then the report."""

import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from imgcls import __version__
from imgcls.archive.contents import MANIFEST, refuse_no_file
from imgcls.archive.scanning import second_opinion
from imgcls.archive.scanning.entries import CHUNK_BYTES, Entry, Walk
from imgcls.archive.scanning.files import Budget, are_plain_tensors, check_file
from imgcls.archive.scanning.findings import Finding, Scanner, ScanReport, Severity, Waiver, make_report
from imgcls.archive.scanning.headers import HAS_DESCRIPTOR, STORED, BrokenZipError, TooManyEntriesError, read_directory
from imgcls.archive.scanning.manifest import MAX_MANIFEST_BYTES, check_manifest, check_shadowing
from imgcls.archive.scanning.opinions import Opinions
from imgcls.archive.scanning.rules import find
from imgcls.errors import ArchiveError

NOT_INSTALLED = f"{second_opinion.NAME}/not-installed"
ASKING = "modelaudit"  # the step that takes long
INSTALL = "install it with pip install '.[build]'"
_NOT_SOURCE = {"source-unreadable", "disguised-file"}

OnStep = Callable[[str], None]


def scan_archive(
    mar: Path,
    *,
    waived: Collection[str] = (),
    require_modelaudit: bool = False,
    process: second_opinion.ModelauditProcess | None = None,
    opinions: Opinions | None = None,
    on_step: OnStep = lambda step: None,
) -> ScanReport:
    """Judges an archive.

    Args:
        mar: the archive.
        waived: what to let pass, each RULE or RULE:PATH, the path a glob.
        require_modelaudit: refuse to judge without modelaudit.
        process: a modelaudit that was started beforehand.
        opinions: what modelaudit said of Python at earlier builds.
        on_step: is told what is looked at, for those who wait.

    Raises:
        ArchiveError: there is no such file, or modelaudit is required and not installed.
        UsageError: a waiver is none.
    """
    for text in waived:
        Waiver.parse(text)
    refuse_no_file(mar)
    if require_modelaudit and not second_opinion.is_installed():
        raise ArchiveError("modelaudit is not installed, and no archive is built without it; pip install '.[build]'")
    on_step("entries")
    own = _Reading()
    try:
        own.read(mar, on_step=on_step)
    except OSError as err:
        raise ArchiveError(f"{mar}: cannot be read: {err.strerror or err}") from err
    scanners = [Scanner("imgcls", __version__, "ran")]
    if not second_opinion.is_installed():
        scanners.append(Scanner(second_opinion.NAME, "", "not installed", INSTALL))
        own.findings.append(Finding(NOT_INSTALLED, Severity.WARNING, "", f"modelaudit did not look; {INSTALL}"))
    elif own.is_unsafe_to_unpack:
        scanners.append(Scanner(second_opinion.NAME, "", "skipped", "it would unpack what is not safe to unpack"))
    else:
        on_step(ASKING)
        scanner, findings = second_opinion.ask_modelaudit(mar, own.known, process=process, opinions=opinions)
        scanners.append(scanner)
        own.findings.extend(findings)
    return make_report(mar, own.findings, scanners=scanners, waived=waived)


def refuse_findings(report: ScanReport) -> None:
    """Raises ArchiveError, which names the worst finding and how to waive it, unless the report passes."""
    blocking = [finding for finding in report.findings if finding.is_blocking]
    if not blocking:
        return
    worst, more = blocking[0], f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
    waiver = f"{worst.rule}:{worst.path}" if worst.path else worst.rule
    raise ArchiveError(
        f"{worst.path or report.archive.name}: {worst.rule}: {worst.message}{more}; see all with "
        f"imgcls archive scan, and where it is meant, give --waive '{waiver}'"
    )


@dataclass
class _Reading:
    """Our own reading of an archive, and what the second opinion needs to know of it."""

    findings: list[Finding] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    plain_tensors: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    is_unsafe_to_unpack: bool = False

    @property
    def known(self) -> second_opinion.Known:
        """What modelaudit is spared or corrected by."""
        return second_opinion.Known(self.sizes, self.plain_tensors, self.sources)

    def read(self, mar: Path, *, on_step: OnStep) -> None:
        """Reads the archive once, from its first byte to its last."""
        size_bytes, manifest = mar.stat().st_size, None
        with mar.open("rb") as file:
            try:
                walk = Walk(file, size_bytes, read_directory(file, size_bytes=size_bytes))
            except (BrokenZipError, TooManyEntriesError) as err:
                rule = "broken-zip" if isinstance(err, BrokenZipError) else "too-many-entries"
                self.findings.append(find(rule, "", str(err)))
                self.is_unsafe_to_unpack = True
                return
            budget = Budget()
            for entry in walk.entries():
                on_step(entry.path)
                self.sizes[entry.path] = max(entry.size_bytes, self.sizes.get(entry.path, 0))
                if entry.content:
                    self._judge(entry, entry.content, budget=budget)
                    if entry.path == MANIFEST:
                        manifest = _read_start(entry.content, MAX_MANIFEST_BYTES)
        self.findings += walk.findings
        self.is_unsafe_to_unpack = walk.is_bomb
        if not walk.is_bomb:
            self.findings += [*check_manifest(manifest, self.sizes), *check_shadowing(self.sizes)]
        if mar.suffix == ".war":
            self.findings.append(find("workflow-archive", ""))

    def _judge(self, entry: Entry, content: IO[bytes], *, budget: Budget) -> None:
        findings = list(check_file(entry.path, content, size_bytes=entry.size_bytes, budget=budget))
        self.findings += findings
        if entry.path.endswith(".py") and not {finding.rule for finding in findings} & _NOT_SOURCE:
            self.sources.add(entry.path)
        if are_plain_tensors(content, size_bytes=entry.size_bytes):
            self.plain_tensors.add(entry.path)  # their bytes are compared by `verify`, which reads them anyway
        elif (
            entry.header.method == STORED
            and not entry.header.flags & HAS_DESCRIPTOR
            and _crc(content) != entry.header.crc
        ):
            self.findings.append(find("damaged-entry", entry.path, "its checksum is wrong"))


def _crc(content: IO[bytes]) -> int:
    crc = 0
    content.seek(0)
    while chunk := content.read(CHUNK_BYTES):
        crc = zlib.crc32(chunk, crc)
    return crc


def _read_start(content: IO[bytes], count: int) -> bytes:
    content.seek(0)
    return content.read(count)
