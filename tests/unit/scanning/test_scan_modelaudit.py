"""modelaudit's part: what it adds, that it is kept offline, and that its silence is never taken for a yes."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.archive.scanning import Finding, Opinions, ScanReport, Severity, scan_archive, second_opinion
from imgcls.archive.scanning.opinions import SHIPPED
from imgcls.archive.scanning.second_opinion import Known, translate

Make = Callable[..., Path]
HANDLER_CHECK = "TorchServe Handler Static Analysis"

# Runs modelaudit as we do, and writes down each connection that it tries and each program that it starts.
WITNESS = """
import os, runpy, sys
def witness(event, arguments):
    if event in {events!r}:
        with open({log!r}, "a") as file:
            file.write(f"{{event}} {{arguments!r}}\\n")
        raise PermissionError(event)
sys.addaudithook(witness)
sys.argv = [{script!r}, *sys.argv[1:]]
os._exit = sys.exit  # so that what modelaudit does last is seen too
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture
def witnessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the witness around modelaudit; the file that it writes to."""
    log, wrapper = tmp_path / "tried.txt", tmp_path / "witness.py"
    script, events = second_opinion.run_modelaudit.__file__, second_opinion.run_modelaudit.REFUSED
    wrapper.write_text(WITNESS.format(events=events, log=str(log), script=script))
    monkeypatch.setattr(second_opinion, "run_modelaudit", types.SimpleNamespace(__file__=str(wrapper)))
    return log


@pytest.fixture(scope="module")
def judged(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScanReport, Opinions]:
    """What a scan says of our own archive as a whole, and what it kept of it."""
    kept = Opinions(tmp_path_factory.mktemp("judged"), shipped=None)
    return scan_archive(archive, require_modelaudit=True, opinions=kept), kept


def test_our_own_archive_passes_without_a_finding(judged: tuple[ScanReport, Opinions]) -> None:
    report, _ = judged
    assert report.findings == ()
    assert [(scanner.name, scanner.state) for scanner in report.scanners] == [("imgcls", "ran"), ("modelaudit", "ran")]
    assert report.scanners[1].note == "", "nothing was judged before"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="modelaudit reads with Python's own parser; ours is 3.11's")
def test_the_opinions_that_are_shipped_are_what_modelaudit_says_of_our_code_as_it_is(
    judged: tuple[ScanReport, Opinions], archive: Path, tmp_path: Path
) -> None:
    shipped = json.loads(SHIPPED.read_text())
    assert judged[1].list_kept() == shipped, "run make opinions"
    report = scan_archive(archive, require_modelaudit=True, opinions=Opinions(tmp_path / "kept"))
    assert report.scanners[1].note == f"{len(shipped)} of {len(shipped)} Python files were judged before"
    assert not (tmp_path / "kept").exists()


def test_modelaudit_tries_no_connection_and_leaves_nothing(
    make_archive: Make, witnessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MODELAUDIT_TELEMETRY_DEV", "1")
    assert scan_archive(make_archive()).scanners[1].state == "ran"
    assert not witnessed.exists() and list(home.iterdir()) == []


def test_the_witness_sees_what_modelaudit_tries_when_nobody_stops_it(
    make_archive: Make, witnessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: without the switches modelaudit reports home. The witness lets nothing out."""
    monkeypatch.setattr(second_opinion, "SWITCHES", {})
    assert scan_archive(make_archive()).scanners[1].state == "ran"
    assert "socket." in witnessed.read_text()


def test_python_that_a_build_has_judged_is_not_judged_again_and_its_findings_stay(
    make_archive: Make, tmp_path: Path
) -> None:
    kept = Opinions(tmp_path / "kept")
    spawn = b"import os\n\n\nclass Handler:\n    def handle(self, data, context):\n        os.system(data[0])\n"

    def judge(number: int, **changed: bytes) -> tuple[str, set[tuple[str, str]]]:
        files = {"handler.py": changed.get("handler", spawn), "other.py": changed.get("other", b"y = 1\n")}
        report = scan_archive(make_archive(files | {"a.txt": str(number)}, name=f"{number}.mar"), opinions=kept)
        return report.scanners[1].note, {
            (finding.rule, finding.path) for finding in report.findings if finding.rule.startswith("modelaudit/")
        }

    note, found = judge(0)
    assert note == "" and {path for _, path in found} == {"handler.py"}
    assert judge(1) == ("2 of 2 Python files were judged before", found)
    assert judge(2, other=b"y = 2\n") == ("1 of 2 Python files were judged before", found)
    note, more = judge(3, other=spawn)
    assert note == "1 of 2 Python files were judged before"
    assert {path for _, path in more} == {"handler.py", "other.py"}
    assert judge(4, handler=b"z = 1\n")[1] == set(), "a verdict is not taken over from another file or path"
    elsewhere = scan_archive(make_archive({"handler.py": spawn, "other.py": "y = 1\n"}))
    assert elsewhere.scanners[1].note == "", "an archive from elsewhere is judged as a whole"


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("[{}]"), lambda path: path.write_bytes(b"\xff")])
def test_an_opinion_that_cannot_be_read_is_none(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    kept, said = Opinions(tmp_path / "kept"), (Finding("a", Severity.WARNING, "b.py", "c"),)
    assert kept.find("sources") is None
    kept.keep("sources", said)
    assert Opinions(tmp_path / "kept").find("sources") == said
    [path] = (tmp_path / "kept").iterdir()
    spoil(path)
    assert kept.find("sources") is None


def test_a_cache_that_cannot_be_written_or_is_somebody_elses_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = Opinions(tmp_path / "file" / "kept")
    nowhere.keep("sources", ())
    assert nowhere.find("sources") is None
    kept = Opinions(tmp_path / "kept")
    kept.keep("sources", ())
    assert kept.find("sources") == ()
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    assert kept.find("sources") is None


def test_the_interpreter_refuses_connections_and_programs() -> None:
    code = (
        "import runpy, socket, subprocess, sys\n"
        f"module = runpy.run_path({second_opinion.run_modelaudit.__file__!r})\n"
        "sys.addaudithook(module['refuse'])\n"
        "for attempt in (lambda: socket.create_connection(('127.0.0.1', 9)), lambda: subprocess.run(['true'])):\n"
        "    try:\n        attempt()\n    except PermissionError as err:\n        print(err)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "socket.getaddrinfo is refused while an archive is scanned",
        "subprocess.Popen is refused while an archive is scanned",
    ]


def test_modelaudit_judges_what_a_pickle_would_call(make_archive: Make, evil_pickle: bytes) -> None:
    harmless = pickle.dumps({"a": [1, 2]})
    changes = {"evil.pkl": evil_pickle, "vocab.txt": gzip.compress(evil_pickle), "labels.pkl": harmless}
    report = scan_archive(make_archive(changes))
    found = {(finding.rule, finding.path): str(finding.severity) for finding in report.findings}
    assert found["modelaudit/S201", "evil.pkl"] == "critical"
    assert found["modelaudit/S201", "vocab.txt"] == "critical"
    assert found["pickle", "labels.pkl"] == "warning"
    assert "critical" not in {severity for (_, path), severity in found.items() if path == "labels.pkl"}


@pytest.mark.parametrize("script", ["raise SystemExit('broken')", "print('no json')", "import os; os._exit(9)"])
def test_a_modelaudit_that_fails_is_a_warning(
    make_archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(script)
    monkeypatch.setattr(second_opinion, "run_modelaudit", types.SimpleNamespace(__file__=str(broken)))
    report = scan_archive(make_archive())
    assert not report.passes
    assert [(finding.rule, str(finding.severity)) for finding in report.findings] == [("modelaudit/failed", "warning")]
    assert report.scanners[1].state == "failed"


def test_modelaudit_is_not_given_what_is_not_safe_to_unpack(
    make_archive: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgcls.archive.scanning.entries.BOMB_BYTES", 1 << 16)
    report = scan_archive(make_archive({"zeros.bin": bytes(1 << 20)}))
    assert [(finding.rule, finding.path) for finding in report.findings] == [("size-bomb", "zeros.bin")]
    assert report.scanners[1].state == "skipped"


def test_large_tensors_are_spared_and_the_rest_is_still_read(
    make_archive: Make, monkeypatch: pytest.MonkeyPatch, evil_pickle: bytes
) -> None:
    monkeypatch.setattr(second_opinion, "SPARED_BYTES", 8)
    report = scan_archive(make_archive({"evil.pkl": evil_pickle}))
    assert report.scanners[1].note.startswith("without weights.safetensors")
    blocking = {(finding.rule, finding.path) for finding in report.findings if finding.is_blocking}
    assert blocking == {("pickle", "evil.pkl"), ("modelaudit/S201", "evil.pkl")}


@pytest.fixture
def known() -> Known:
    return Known(sizes={"handler.py": 9}, plain_tensors=(), sources=("handler.py",))


def issue(**fields: object) -> dict[str, object]:
    return {"message": "m", "severity": "warning", "location": "/s/m.mar:handler.py", "details": {}, **fields}


def test_what_modelaudit_did_not_see_is_a_warning(known: Known) -> None:
    answer = {"issues": [], "gaps": ["zip_analysis_incomplete"]}
    (finding,) = translate(answer, archive=Path("/s/m.mar"), known=known)
    assert (finding.rule, finding.is_blocking) == ("modelaudit/incomplete", True)
    assert "zip_analysis_incomplete" in finding.message


def test_noise_is_dropped_only_for_its_reason(known: Known) -> None:
    name = "MAR Non-Handler Python Analysis"
    noise = issue(name=name, details={"has_import_time_execution": True, "risky_calls": []})
    risky = issue(name=name, details={"has_import_time_execution": True, "risky_calls": ["os.system"]})
    dotted = issue(
        name="TorchServe Manifest Reference Integrity",
        details={"missing_references": [{"field": "handler", "value": "handler.entry"}]},
    )
    missing = issue(
        name="TorchServe Manifest Reference Integrity",
        details={"missing_references": [{"field": "serializedFile", "value": "gone.pt"}]},
    )
    answer = {"issues": [noise, risky, dotted, missing], "gaps": []}
    rules = [finding.rule for finding in translate(answer, archive=Path("/s/m.mar"), known=known)]
    assert rules == ["modelaudit/mar-non-handler-python-analysis", "modelaudit/torchserve-manifest-reference-integrity"]


def test_a_handler_read_as_a_pickle_keeps_what_is_said_of_it_as_python(known: Known) -> None:
    misread = issue(severity="critical", rule_code="S510", details={"mar_entry": "handler.py", "pickle_source": "x"})
    as_python = issue(severity="critical", name=HANDLER_CHECK, details={"mar_entry": "handler.py"})
    answer = {"issues": [misread, as_python], "gaps": ["pickle_analysis_incomplete"]}
    (finding,) = translate(answer, archive=Path("/s/m.mar"), known=known)
    assert (finding.rule, finding.path) == ("modelaudit/torchserve-handler-static-analysis", "handler.py")
    no_source = Known(sizes=known.sizes, plain_tensors=(), sources=())
    assert len(list(translate(answer, archive=Path("/s/m.mar"), known=no_source))) == 3


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/s/m.mar", ""),
        ("/s/m.mar:a.pkl (pos 55)", "a.pkl"),
        ("/s/m.mar:a.zip:b/c.zip:d.txt", "a.zip!b/c.zip!d.txt"),
        ("/s/m.mar:vocab.txt -> tmp1_vocab.txt.inner", "vocab.txt"),
    ],
)
def test_locations_become_paths_like_ours(known: Known, location: str, path: str) -> None:
    answer = {"issues": [issue(location=location, rule_code="S201")], "gaps": []}
    (finding,) = translate(answer, archive=Path("/s/m.mar"), known=known)
    assert finding.path == path


def test_a_scan_prints_nothing_of_its_own(make_archive: Make) -> None:
    """The command's stdout is for the report; modelaudit logs and draws where it likes."""
    code = (
        "import sys; from pathlib import Path; from imgcls.archive.scanning import scan_archive\n"
        "scan_archive(Path(sys.argv[1]))\nassert 'torch' not in sys.modules and 'modelaudit' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(make_archive())],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("", "")
