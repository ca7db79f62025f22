"""What a scan reports: findings, which of them are waived, and who looked."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from imgcls.errors import UsageError


class Severity(StrEnum):
    """How bad a finding is, worst first."""

    CRITICAL = "critical"  # never load it
    WARNING = "warning"  # somebody has to decide
    INFO = "info"  # good to know


RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True)
class Finding:
    """One thing that was found; `path` is an entry's name, `outer!inner` inside a nested archive, "" for the whole."""

    rule: str
    severity: Severity
    path: str
    message: str
    is_waived: bool = False

    @property
    def is_blocking(self) -> bool:
        """Whether the archive fails for it."""
        return not self.is_waived and self.severity is not Severity.INFO


@dataclass(frozen=True)
class Waiver:
    """Lets a rule's findings pass, in the paths that match a glob or, with none, everywhere."""

    rule: str
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Waiver":
        """Parses RULE or RULE:PATH.

        Raises:
            UsageError: a part is empty.
        """
        rule, colon, path = text.partition(":")
        if not rule or (colon and not path):
            raise UsageError(f"the waiver is {text!r}; expected RULE or RULE:PATH, such as 'pickle:model.pt'")
        return cls(rule, path if colon else None)

    def matches(self, finding: Finding) -> bool:
        """Tells whether it lets this finding pass."""
        return finding.rule == self.rule and (self.path is None or fnmatchcase(finding.path, self.path))

    def __str__(self) -> str:
        """Returns what `parse` takes."""
        return self.rule if self.path is None else f"{self.rule}:{self.path}"


@dataclass(frozen=True)
class Scanner:
    """One who looked, or who should have: `state` is `ran`, `failed`, `skipped` or `not installed`."""

    name: str
    version: str
    state: str
    note: str = ""


@dataclass(frozen=True)
class ScanReport:
    """The judgement of one archive; findings are sorted, worst first."""

    archive: Path
    findings: tuple[Finding, ...]
    scanners: tuple[Scanner, ...]
    unused_waivers: tuple[str, ...] = field(default=())

    @property
    def passes(self) -> bool:
        """Whether nothing critical and no warning is left that is not waived."""
        return not any(finding.is_blocking for finding in self.findings)

    @property
    def is_complete(self) -> bool:
        """Whether all who should look did; what nobody looked at is a finding, which may have been waived."""
        return all(scanner.state == "ran" for scanner in self.scanners)

    def to_json(self) -> dict[str, Any]:
        """Returns the report for `--json`."""
        return {
            "archive": str(self.archive),
            "passes": self.passes,
            "complete": self.is_complete,
            "findings": [
                {
                    "rule": finding.rule,
                    "severity": str(finding.severity),
                    "path": finding.path,
                    "message": finding.message,
                    "waived": finding.is_waived,
                }
                for finding in self.findings
            ],
            "unused_waivers": list(self.unused_waivers),
            "scanners": [vars(scanner) for scanner in self.scanners],
        }


def make_printable(text: str) -> str:
    """Spells out what a terminal would act on; names and texts in an archive are its author's."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def make_report(
    archive: Path, findings: Iterable[Finding], *, scanners: Iterable[Scanner], waived: Collection[str]
) -> ScanReport:
    """Sorts the findings, drops repetitions, and marks what is waived."""
    waivers = [Waiver.parse(text) for text in waived]
    printable = {
        replace(finding, path=make_printable(finding.path), message=make_printable(finding.message))
        for finding in findings
    }
    unique = sorted(
        printable, key=lambda finding: (RANK[finding.severity], finding.rule, finding.path, finding.message)
    )
    marked = [replace(finding, is_waived=any(waiver.matches(finding) for waiver in waivers)) for finding in unique]
    unused = [str(waiver) for waiver in waivers if not any(waiver.matches(finding) for finding in unique)]
    return ScanReport(archive, tuple(marked), tuple(scanners), tuple(unused))
