"""Which trust file a server gets, and what its logs tell of versions that were refused."""

from pathlib import Path

import pytest

from imgcls.serving.environment import serving_environment
from imgcls.serving.logs import VersionFailure, find_version_failures
from imgcls.serving.report import _describe_refused
from imgcls.serving.state import ServerTrust
from imgcls.serving.trust import find_trust_file


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
        "2.0: refused, not registered: handler.integrity.IntegrityError: a.py: changed (2026-01-01T10:00:02)"
    )
