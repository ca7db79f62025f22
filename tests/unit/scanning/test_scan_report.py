"""Waivers, the report, and the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from imgcls.archive.scanning import ScanReport, refuse_findings
from imgcls.cli.archive.scan import scan as scan_command
from imgcls.errors import ArchiveError, UsageError

Make = Callable[..., Path]
Scan = Callable[..., ScanReport]
Run = Callable[..., Result]
ELF = b"\x7fELF" + bytes(100)


@pytest.fixture
def run(scan: Scan) -> Run:
    app = typer.Typer()
    app.command()(scan_command)
    return lambda *arguments: CliRunner().invoke(app, [str(word) for word in arguments])


@pytest.mark.parametrize("waiver", ["native-code", "native-code:engines/a.so", "native-code:e*", "native-code:*"])
def test_a_waiver_lets_its_rule_pass(make_archive: Make, scan: Scan, waiver: str) -> None:
    mar = make_archive({"engines/a.so": ELF})
    assert not scan(mar).passes
    report = scan(mar, waived=[waiver])
    assert report.passes and report.unused_waivers == ()
    assert [(finding.rule, finding.is_waived) for finding in report.findings] == [("native-code", True)]


@pytest.mark.parametrize("waiver", ["native-code:other/*", "pickle", "native", "native-code:a.so"])
def test_a_waiver_that_matches_nothing_is_reported(make_archive: Make, scan: Scan, waiver: str) -> None:
    report = scan(make_archive({"engines/a.so": ELF}), waived=[waiver])
    assert not report.passes and report.unused_waivers == (waiver,)


@pytest.mark.parametrize("waiver", ["", ":path", "rule:"])
def test_a_waiver_that_is_none_is_refused(make_archive: Make, scan: Scan, waiver: str) -> None:
    with pytest.raises(UsageError, match="expected RULE or RULE:PATH"):
        scan(make_archive(), waived=[waiver])


def test_a_finding_stops_a_build_and_says_how_to_waive_it(make_archive: Make, scan: Scan) -> None:
    mar = make_archive({"a.so": ELF, "weights.safetensors": ELF})
    with pytest.raises(ArchiveError) as caught:
        refuse_findings(scan(mar))
    message = str(caught.value)
    assert message.startswith("weights.safetensors: disguised-file: it is compiled code")
    assert "(and 2 more)" in message and message.endswith("give --waive 'disguised-file:weights.safetensors'")
    refuse_findings(scan(mar, waived=["disguised-file", "native-code"]))


def test_the_report_says_that_modelaudit_did_not_look(make_archive: Make, scan: Scan) -> None:
    report = scan(make_archive())
    assert [(scanner.name, scanner.state) for scanner in report.scanners] == [
        ("imgcls", "ran"),
        ("modelaudit", "not installed"),
    ]


def test_a_build_refuses_to_be_judged_without_modelaudit(make_archive: Make, scan: Scan) -> None:
    with pytest.raises(ArchiveError, match="modelaudit is not installed"):
        scan(make_archive(), require_modelaudit=True)


def test_a_missing_archive_is_an_error(tmp_path: Path, scan: Scan) -> None:
    with pytest.raises(ArchiveError, match="there is no such archive"):
        scan(tmp_path / "none.mar")


def test_the_command_prints_a_line_a_finding_worst_first(make_archive: Make, run: Run) -> None:
    result = run(make_archive({"a.so": ELF, "weights.safetensors": ELF}), "--waive", "pickle")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["critical", "disguised-file", "weights.safetensors"],
        ["warning", "native-code", "a.so"],
        ["warning", "native-code", "weights.safetensors"],
    ]
    assert len({line.index(path) for line, path in zip(lines, ["weights", "a.so", "weights"], strict=False)}) == 1
    assert lines[3:6] == [
        "waiver pickle matches nothing; take it away",
        "imgcls 0.1.0: ran",
        "modelaudit: not installed, install it with pip install '.[build]'",
    ]
    assert lines[6].endswith("m.mar: does not pass")


def test_the_command_ends_with_0_where_the_archive_passes(make_archive: Make, run: Run) -> None:
    result = run(make_archive())
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"{make_archive()}: passes")


def test_the_command_prints_json(make_archive: Make, run: Run) -> None:
    mar = make_archive({"a.so": ELF})
    result = run(mar, "--json", "--waive", "native-code:a.so")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["findings"] == [
        {
            "rule": "native-code",
            "severity": "warning",
            "path": "a.so",
            "message": "compiled code that the model's process can load",
            "waived": True,
        }
    ]
    assert (report["archive"], report["passes"], report["unused_waivers"]) == (str(mar), True, [])
    assert [scanner["state"] for scanner in report["scanners"]] == ["ran", "not installed"]


def test_a_name_cannot_draw_on_the_terminal(make_archive: Make, run: Run) -> None:
    result = run(make_archive({"\x1b[2J[red]\u202e.so": ELF}))
    assert "\\x1b[2J[red]\\u202e.so" in result.stdout
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout
