"""Which trust file a server gets, and what its logs tell of versions that were refused."""

from pathlib import Path

import pytest

from imgcls.archive.trust import find_trust_file
from imgcls.errors import UsageError
from imgcls.serving.environment import serving_environment
from imgcls.serving.logs import VersionFailure, find_version_failures
from imgcls.serving.report import _describe_refused
from imgcls.serving.state import ServerTrust
from imgcls.serving.trust import check_before_start


def test_trust_file_is_the_flags_else_the_environments_else_the_one_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGCLS_TRUST", raising=False)
    config = Path("config.properties")
    assert find_trust_file(None, config=config) is None
    (tmp_path / "trust.yaml").touch()
    assert find_trust_file(None, config=config) == tmp_path / "trust.yaml"
    monkeypatch.setenv("IMGCLS_TRUST", "environment.yaml")
    assert find_trust_file(None, config=config) == tmp_path / "environment.yaml"
    assert find_trust_file(Path("flag.yaml"), config=config) == tmp_path / "flag.yaml"


def test_empty_variable_is_refused_unless_the_flag_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLS_TRUST", "")
    with pytest.raises(UsageError, match="IMGCLS_TRUST is ''; expected the path of a trust file"):
        find_trust_file(None, config=tmp_path / "config.properties")
    assert find_trust_file(tmp_path / "flag.yaml", config=tmp_path / "config.properties") == tmp_path / "flag.yaml"


def test_trust_file_that_is_a_link_to_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGCLS_TRUST", raising=False)
    (tmp_path / "trust.yaml").symlink_to(tmp_path / "gone.yaml")
    file = find_trust_file(None, config=tmp_path / "config.properties")
    with pytest.raises(UsageError, match=r"trust\.yaml: the trust file cannot be read"):
        check_before_start(tmp_path / "imgcls.mar", file)


def test_workers_get_the_servers_trust_file_and_no_other(tmp_path: Path) -> None:
    given = {"IMGCLS_TRUST": "/of/the/caller.yaml"}
    assert "IMGCLS_TRUST" not in serving_environment(given, temporary=tmp_path)
    chosen = serving_environment(given, temporary=tmp_path, trust=tmp_path / "trust.yaml")
    assert chosen["IMGCLS_TRUST"] == str(tmp_path / "trust.yaml")


@pytest.mark.parametrize(
    ("trust", "text"),
    [
        (ServerTrust(policy="hash", file=None, signer=None), "hash"),
        (
            ServerTrust(policy="signed", file=Path("/a/trust.yaml"), signer="release"),
            "signed, signer release, /a/trust",
        ),
    ],
)
def test_trust_is_told_on_one_line(trust: ServerTrust, text: str) -> None:
    assert str(trust).startswith(text)


LOG = """\
2026-01-01T10:00:00,001 [INFO ] W-9000-imgcls_1.0-stdout MODEL_LOG - Torch worker started.
2026-01-01T10:00:01,001 [INFO ] W-9001-imgcls_2.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T10:00:01,002 [INFO ] W-9001-imgcls_2.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T10:00:01,003 [INFO ] W-9000-imgcls_1.0-stdout MODEL_LOG - imgcls 1.0: ready
2026-01-01T10:00:01,004 [INFO ] W-9001-imgcls_2.0-stdout MODEL_LOG -   File "entry.py", line 1, in initialize
2026-01-01T10:00:01,005 [INFO ] W-9001-imgcls_2.0-stdout MODEL_LOG - ValueError: the first time
2026-01-01T10:00:02,001 [INFO ] W-9002-imgcls_2.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T10:00:02,002 [INFO ] W-9002-imgcls_2.0-stdout MODEL_LOG -   File "entry.py", line 1, in initialize
2026-01-01T10:00:02,003 [INFO ] W-9002-imgcls_2.0-stdout MODEL_LOG - handler.integrity.IntegrityError: a.py: changed
2026-01-01T10:00:02,004 [INFO ] W-9002-imgcls_2.0-stdout MODEL_LOG - Python ends
2026-01-01T10:00:03,001 [INFO ] W-9003-imgcls_3.0_rc-stderr MODEL_LOG - Traceback (most recent call last):
2026-01-01T10:00:03,002 [INFO ] W-9003-imgcls_3.0_rc-stderr MODEL_LOG - ImportError: no yaml
2026-01-01T10:00:04,001 [INFO ] W-9004-other_1.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T10:00:04,002 [INFO ] W-9004-other_1.0-stdout MODEL_LOG - ValueError: of another model
2026-01-01T10:00:05,001 [INFO ] W-9005-imgcls_4.0-stdout MODEL_LOG - Traceback (most recent call last):
2026-01-01T10:00:05,002 [INFO ] W-9005-imgcls_4.0-stdout MODEL_LOG -   File "entry.py", line 1, in cut short
"""


def test_last_failure_of_each_version_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "model_log.log"
    assert find_version_failures(log, "imgcls") == {}
    log.write_text(LOG)
    refused = VersionFailure("2026-01-01T10:00:02", "handler.integrity.IntegrityError: a.py: changed")
    broken = VersionFailure("2026-01-01T10:00:03", "ImportError: no yaml")
    assert find_version_failures(log, "imgcls") == {"2.0": refused, "3.0_rc": broken}
    [report] = _describe_refused({"2.0": refused, "3.0_rc": broken}, registered=["1.0", "3.0_rc"])
    assert report.as_text() == (
        "2.0: not registered; its last failure was: "
        "handler.integrity.IntegrityError: a.py: changed (2026-01-01T10:00:02)"
    )


LOADED = "imgcls 2.0: simple_cnn, engine {'engine': 'torch', 'device': 'cpu'} (auto: the first of torch)"


def said_by(worker: str, text: str) -> str:
    return f"2026-01-01T10:00:06,001 [INFO ] W-{worker}-imgcls_2.0-stdout MODEL_LOG - {text}\n"


@pytest.mark.parametrize("worker", ["9001", "9006"])
def test_version_that_loaded_after_its_failure_was_not_refused(worker: str, tmp_path: Path) -> None:
    """Its worker was tried again, or it was registered again; it is gone because someone wanted that."""
    log = tmp_path / "model_log.log"
    log.write_text(LOG + said_by(worker, "Torch worker started.") + said_by(worker, LOADED))
    failures = find_version_failures(log, "imgcls")
    assert [version for version, failure in failures.items() if failure.has_loaded_since] == ["2.0"]
    assert [report.version for report in _describe_refused(failures, registered=["1.0"])] == ["3.0_rc"]
    with log.open("a") as file:
        file.write(said_by(worker, "Traceback (most recent call last):") + said_by(worker, "ValueError: again"))
    reports = _describe_refused(find_version_failures(log, "imgcls"), registered=["1.0"])
    assert [report.version for report in reports] == ["2.0", "3.0_rc"] and "again" in reports[0].problem


def test_sibling_that_loads_beside_a_failed_worker_does_not_hide_the_failure(tmp_path: Path) -> None:
    log = tmp_path / "model_log.log"
    log.write_text(said_by("9006", "Torch worker started.") + LOG + said_by("9006", LOADED))
    assert not find_version_failures(log, "imgcls")["2.0"].has_loaded_since
