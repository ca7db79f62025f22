"""`imgcls archive scan`: judges an archive before TorchServe sees it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imgcls.archive.scanning import Finding, ScanReport

ARCHIVE = Path("model_store/imgcls.mar")


def scan(
    archive: Annotated[Path, typer.Argument(help="The .mar file, of whatever origin.")] = ARCHIVE,
    *,
    waive: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE[:PATH]", help="Let a rule's findings pass, PATH a glob; may be given again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Looks for traversal, smuggled entries, pickles, shells and the like; runs and unpacks nothing. Exit 1: found."""
    from rich.console import Console
    from rich.text import Text

    from imgcls.archive.scanning import scan_archive
    from imgcls.archive.scanning.findings import make_printable
    from imgcls.archive.scanning.scan import ASKING

    console = Console(stderr=True)
    with console.status("scanning") as status:

        def show(step: str) -> None:
            status.update(Text(f"scanning {make_printable(step)}"))
            if step == ASKING and not console.is_terminal:  # a log shows no status, and looks as if nothing went on
                console.print("asking modelaudit, which takes ten seconds to a minute for an archive's Python")

        report = scan_archive(archive, waived=waive or (), on_step=show)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    if not report.passes:
        raise typer.Exit(1)


def print_report(report: "ScanReport") -> None:
    """Prints one line a finding, worst first, then who looked and the verdict."""
    rows = [
        (str(finding.severity), finding.rule, finding.path or "-", _describe(finding)) for finding in report.findings
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
    for waiver in report.unused_waivers:
        print(f"waiver {waiver} matches nothing; take it away")
    for scanner in report.scanners:
        print(
            f"{scanner.name} {scanner.version}".strip()
            + f": {scanner.state}"
            + (f", {scanner.note}" * bool(scanner.note))
        )
    print(f"{report.archive}: {'passes' if report.passes else 'does not pass'}")


def _describe(finding: "Finding") -> str:
    return f"(waived) {finding.message}" if finding.is_waived else finding.message
