"""Waivers, the report, and the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from imgcls.archive.scanning import ScanReport, refuse_findings, second_opinion
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


def test_without_modelaudit_an_archive_passes_only_where_that_is_waived(make_archive: Make, scan_lightly: Scan) -> None:
    report = scan_lightly(make_archive())
    assert [(finding.rule, str(finding.severity)) for finding in report.findings] == [
        ("modelaudit/not-installed", "warning")
    ]
    assert (report.passes, report.is_complete) == (False, False)
    assert [(scanner.name, scanner.state) for scanner in report.scanners] == [
        ("imgcls", "ran"),
        ("modelaudit", "not installed"),
    ]
    waived = scan_lightly(make_archive(), waived=["modelaudit/not-installed"])
    assert (waived.passes, waived.is_complete) == (True, False)


def test_the_command_without_modelaudit_ends_with_1(
    make_archive: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(run(make_archive(), "--json").stdout)["complete"] is True
    monkeypatch.setattr(second_opinion, "is_installed", lambda: False)
    result = run(make_archive(), "--json")
    assert (result.exit_code, json.loads(result.stdout)["complete"]) == (1, False)
    lines = run(make_archive()).stdout.splitlines()
    assert lines[0].startswith("warning  modelaudit/not-installed  -  modelaudit did not look; install it with pip")
    assert lines[2] == "modelaudit: not installed, install it with pip install '.[build]'"


def test_a_build_refuses_to_be_judged_without_modelaudit(make_archive: Make, scan_lightly: Scan) -> None:
    with pytest.raises(ArchiveError, match="modelaudit is not installed"):
        scan_lightly(make_archive(), require_modelaudit=True)


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
        "modelaudit: ran",
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
    assert [scanner["state"] for scanner in report["scanners"]] == ["ran", "ran"]


def test_a_name_cannot_draw_on_the_terminal(make_archive: Make, run: Run) -> None:
    result = run(make_archive({"\x1b[2J[red]\u202e.so": ELF}))
    assert "\\x1b[2J[red]\\u202e.so" in result.stdout
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout
